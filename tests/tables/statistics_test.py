"""Figures of tables equal a brute-force computation over whole tables in float64."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import config, features, tables

KEY = jax.random.key(3)
SPECS = (
  config.TableConfig("user", 1000, 6),
  config.TableConfig("item", 37, 6, initializer=config.Initializer("normal", 0.1)),
  config.TableConfig("idle", 50, 6),
  config.TableConfig("half", 130, 5, dtype="bfloat16"),
  config.TableConfig("float16", 64, 6, dtype="float16"),
  config.TableConfig("zeros", 20, 3, initializer=config.Initializer("constant", 0.0)),
)


@pytest.fixture
def moved():
  """Tables of which some rows have moved, and their bits before and after."""
  plan = features.plan_tables([config.FeatureConfig(spec.name, spec) for spec in SPECS])
  before = tables.create(plan, KEY)
  after = before
  rng = np.random.default_rng(0)
  for stack in plan.stacks:
    if stack.tables[0].name == "user":  # nothing of "idle", which shares the stack
      rows = np.concatenate([rng.choice(1000, 90, replace=False), 1000 + np.array([0, 36])])
    else:
      rows = rng.choice(stack.num_rows, 7, replace=False)
    values = rng.normal(size=(len(rows), stack.embedding_dim)).astype(np.float32)
    after = tables.write_rows(
      after, {stack.name: jnp.asarray(rows, jnp.int32)}, {stack.name: jnp.asarray(values)}
    )
  return before, after


@pytest.mark.parametrize("chunk_rows", [16, 1 << 16])
def test_figures_equal_a_brute_force_over_whole_tables(moved, chunk_rows):
  before, after = moved
  assert len(after.plan.stacks) == 4
  found = tables.table_statistics(after, KEY, chunk_rows=chunk_rows)
  assert set(found) == {spec.name for spec in SPECS}
  for spec in SPECS:
    first, last = np.asarray(before.table(spec.name)), np.asarray(after.table(spec.name))
    is_touched = [a.tobytes() != b.tobytes() for a, b in zip(first, last, strict=True)]
    norms = [float(np.linalg.norm(row.astype(np.float64))) for row in last]
    figures = found[spec.name]
    assert figures.touched_rows == sum(is_touched)
    assert figures.dead_rows == spec.vocab_size - sum(is_touched)
    assert figures.mean_norm == pytest.approx(np.mean(norms), rel=1e-12)
    assert figures.max_norm == pytest.approx(max(norms), rel=1e-12)
    assert figures.rows == spec.vocab_size and figures.embedding_dim == spec.embedding_dim
    assert figures.num_bytes == last.nbytes
  assert found["user"].touched_rows == 90 and found["item"].touched_rows == 2
  assert found["idle"].touched_rows == 0 and found["idle"].dead_rows == 50
  assert found["half"].touched_rows == 7


def test_a_row_that_came_back_to_minus_zero_or_to_nan_is_touched(moved):
  before, _ = moved
  (stack,) = [s.name for s in before.plan.stacks if s.tables[0].name == "zeros"]
  rows = {stack: jnp.array([4, 9], jnp.int32)}
  after = tables.write_rows(before, rows, {stack: jnp.array([[0.0, -0.0, 0.0], [jnp.nan, 0, 0]])})
  found = tables.table_statistics(after, KEY)["zeros"]
  assert found.touched_rows == 2 and np.isnan(found.max_norm) and np.isnan(found.mean_norm)


def test_with_another_key_every_row_is_touched(moved):
  before, _ = moved
  assert tables.table_statistics(before, jax.random.key(4))["user"].dead_rows == 0
  assert tables.table_statistics(before, KEY)["user"].touched_rows == 0


def test_rows_are_read_through_the_layout(moved):
  _, after = moved

  @dataclasses.dataclass(frozen=True)
  class Backwards:
    def read(self, array, rows):
      return array.at[array.shape[0] - 1 - rows].get(mode="fill", fill_value=0)

  class Turned(tables.OneDevice):
    def layout(self, stack):
      return Backwards()

  values = {name: array[::-1] for name, array in after.values.items()}
  turned = dataclasses.replace(after, values=values, placement=Turned())
  assert tables.table_statistics(turned, KEY) == tables.table_statistics(after, KEY)


@pytest.mark.parametrize("chunk_rows", [7, 1 << 16])
def test_a_weight_that_l1_holds_at_zero_is_touched_and_zero_and_not_dead(chunk_rows):
  weights = config.TableConfig(
    "weights", 20, 1, initializer=config.Initializer("constant", 0.0), optimizer="wide"
  )
  plan = features.plan_tables(
    [config.FeatureConfig(t.name, t) for t in (weights, config.TableConfig("item", 9, 4))]
  )
  optimizer = tables.by_label(
    {"wide": tables.lazily(tables.ftrl(0.1, l1=1.0)), None: tables.rowwise_adagrad(0.1)}, plan
  )
  now = tables.create(plan, KEY)
  row_state = tables.init_row_state(optimizer, now)
  name, item = plan.place("weights").stack.name, plan.place("item").stack.name
  grads = {
    name: tables.RowGradients(jnp.array([3, 8, 19]), jnp.array([[0.5], [3.0], [-0.2]]), 3),
    item: tables.RowGradients(jnp.array([2, 5]), jnp.zeros((2, 4)).at[0].set(1.0), 2),
  }
  now, row_state = tables.apply_row_gradients(now, row_state, grads, optimizer)
  assert np.flatnonzero(np.asarray(now.table("weights"))).tolist() == [8]
  more = {"row_state": row_state, "optimizer": optimizer, "chunk_rows": chunk_rows}
  found = tables.table_statistics(now, KEY, **more)
  figures = [(t.touched_rows, t.zero_rows, t.dead_rows) for t in found.values()]
  assert dict(zip(found, figures, strict=True)) == {"weights": (3, 2, 17), "item": (1, 0, 8)}
  alone = tables.table_statistics(now, KEY)["weights"]  # by values alone two of them look untouched
  assert (alone.touched_rows, alone.zero_rows) == (1, 0)


def test_a_moment_that_begins_as_its_row_is_not_taken_for_a_touch():
  table = config.TableConfig("item", 9, 4)
  plan = features.plan_tables([config.FeatureConfig("item", table)])

  def init(values):  # as the slow weights of a look-ahead
    return tables.RowOptState({n: (v, v[:, 0] * 0) for n, v in values.items()}, ())

  def update(grads, leaves, globals_, values):
    return values, leaves, globals_

  optimizer = tables.RowOptimizer(init, update)
  now = tables.create(plan, KEY)
  row_state = tables.init_row_state(optimizer, now)
  found = tables.table_statistics(now, KEY, row_state=row_state, optimizer=optimizer)["item"]
  assert found.touched_rows == 0
  moved = {n: (v, m.at[3].set(1.0)) for n, (v, m) in row_state.rows.items()}
  row_state = tables.RowOptState(moved, ())
  found = tables.table_statistics(now, KEY, row_state=row_state, optimizer=optimizer)["item"]
  assert found.touched_rows == 1 and found.zero_rows == 0
