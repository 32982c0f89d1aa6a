"""Fingerprints beside the table are those of its rows, whatever writes them (T8)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec import models, sharding, tables, training
from jaxrec.config import ConfigError, FeatureConfig, Initializer, TableConfig
from jaxrec.features import Batch, BatchSpec, IdBags, RowPlan, plan_tables
from jaxrec.layers import simhash

D, ITEMS, LENGTH = 6, 90, 20
KEY = jax.random.key(0)
WIDE = Initializer("normal", 1.0)


def tables_of(dtype="float32", *, num_items=ITEMS):
  found = [TableConfig("user", 7, D, dtype, WIDE), TableConfig("item", num_items, D, dtype, WIDE)]
  plan = plan_tables([FeatureConfig(t.name, t) for t in found])
  return tables.create(plan, jax.random.key(3))


def planes_of(num_bits, seed=0):
  return simhash.hyperplanes(jax.random.key(seed), D, num_bits)


def check(found: tables.DeviceTables, planes) -> int:
  """Every bit is that of its row, unless the row lies on the hyperplane but for rounding; of how
  many bits it is 1.
  """
  (stack,) = found.plan.stacks
  rows = np.concatenate([np.asarray(found.table(t.name), np.float64) for t in stack.tables])
  words = np.asarray(found.fingerprints.words[stack.name])
  bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
  num_bits = planes.shape[1]
  assert bits.shape == (stack.num_rows, 32 * -(-num_bits // 32)) and not bits[:, num_bits:].any()
  margins = rows @ np.asarray(planes, np.float64)
  is_clear = np.abs(margins) > 1e-5
  assert is_clear.mean() > 0.99
  np.testing.assert_array_equal(bits[:, :num_bits][is_clear], (margins > 0)[is_clear])
  return int(bits.sum())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("num_bits", [5, 32, 70])
def test_every_row_of_the_stack_has_its_words(dtype, num_bits):
  planes = planes_of(num_bits)
  found = tables.with_fingerprints(tables_of(dtype), {"item": planes})
  assert 0 < check(found, planes) < num_bits * (ITEMS + 7)


def test_a_table_larger_than_what_is_hashed_at_once():
  planes = planes_of(3)
  check(tables.with_fingerprints(tables_of(num_items=(1 << 14) + 5), {"item": planes}), planes)


@given(st.lists(st.integers(0, ITEMS + 20), unique=True, max_size=30), st.integers(0, 5))
def test_words_are_renewed_with_the_rows_that_are_written(rows, seed):
  planes = planes_of(40)
  before = tables.with_fingerprints(tables_of("bfloat16"), {"item": planes})
  (stack,) = before.plan.stacks
  values = np.random.default_rng(seed).normal(size=(len(rows), D)).astype(np.float32)
  ids = jnp.asarray(np.asarray(rows, np.int32))
  after = tables.write_rows(before, {stack.name: ids}, {stack.name: jnp.asarray(values)})
  check(after, planes)
  others = np.setdiff1d(np.arange(stack.num_rows), rows)
  old, new = (np.asarray(one.fingerprints.words[stack.name]) for one in (before, after))
  np.testing.assert_array_equal(old[others], new[others])


def test_what_is_stored_is_hashed_and_not_what_it_was_before_rounding():
  planes = jnp.asarray([[1.0], [-1.0], [0], [0], [0], [0]])  # 1 bit: whether x0 > x1
  found = tables.with_fingerprints(tables_of("bfloat16"), {"item": planes})
  (stack,) = found.plan.stacks
  row = jnp.asarray([[1 + 2.0**-12, 1.0, 0, 0, 0, 0]], jnp.float32)  # equal in bfloat16
  found = tables.write_rows(found, {stack.name: jnp.asarray([4])}, {stack.name: row})
  assert int(found.fingerprints.words[stack.name][4, 0]) == 0
  found = tables.write_rows(found, {stack.name: jnp.asarray([4])}, {stack.name: row * 2 - 1})
  assert int(found.fingerprints.words[stack.name][4, 0]) == 0
  row = row.at[0, 0].set(1.5)
  found = tables.write_rows(found, {stack.name: jnp.asarray([4])}, {stack.name: row})
  assert int(found.fingerprints.words[stack.name][4, 0]) == 1


def test_rows_past_the_end_have_words_of_zeros():
  found = tables.with_fingerprints(tables_of(), {"item": planes_of(40)})
  (stack,) = found.plan.stacks
  rows = jnp.asarray([0, stack.num_rows, 1 << 30])
  plans = {stack.name: RowPlan(rows=rows, inverse=rows, num_rows=1)}
  _, words = tables.fetch(found, plans)
  assert np.asarray(words[stack.name]).any(axis=1).tolist() == [True, False, False]
  assert tables.fetch(tables_of(), plans)[1] == {}


def test_a_table_that_is_not_there_or_two_of_one_stack_are_refused():
  with pytest.raises(KeyError, match=r"no table 'itme'; known: user, item"):
    tables.with_fingerprints(tables_of(), {"itme": planes_of(4)})
  with pytest.raises(ValueError, match="'item' lies in one stack with another"):
    tables.with_fingerprints(tables_of(), {"user": planes_of(4), "item": planes_of(4)})


def test_a_table_whose_columns_devices_share_is_refused():
  mesh = sharding.make_mesh({"data": 2})
  for layout in ("column_wise", "replicated().and_columns(data)"):
    plan = sharding.make_plan(spec_of().features, mesh.shape, {"item": layout, ".*": "row_wise"})
    found = jax.eval_shape(lambda p=plan: sharding.create(sharding.Sharded(mesh, p), KEY))
    jax.eval_shape(lambda t=found: tables.with_fingerprints(t, {"user": planes_of(4)}))
    with pytest.raises(ConfigError, match="table 'item' lies column_wise, .* data .*as row_wise"):
      tables.with_fingerprints(found, {"item": planes_of(4)})


# Whole models.


def spec_of():
  item = TableConfig("item", ITEMS, D, initializer=WIDE)
  features = (
    FeatureConfig("user", TableConfig("user", 7, D)),
    FeatureConfig("item", item),
    FeatureConfig("history", item, combiner="none", ids_per_bag=LENGTH),
  )
  return BatchSpec(features, num_dense=0, labels=("click",))


def batch_of(seed, size=16):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(0, LENGTH + 1, size)
  values = np.full(size * LENGTH, -1, np.int32)
  values[: lengths.sum()] = rng.integers(0, ITEMS // 2, lengths.sum())
  splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
  return Batch(
    dense=np.zeros((size, 0), np.float32),
    ids={
      "user": IdBags(rng.integers(0, 7, size).astype(np.int32)),
      "item": IdBags(rng.integers(0, ITEMS // 2, size).astype(np.int32)),
      "history": IdBags(values, splits),
    },
    labels={"click": rng.integers(0, 2, size).astype(np.float32)},
    weights=np.ones(size, np.float32),
    groups={},
    rows=None,
  )


def trained(tx, *, has_fingerprints, accumulate_steps=1, num_steps=6):
  model = models.ETA((8, 1), k=4)
  state = training.init_state(jax.random.key(0), model, spec_of(), tx=tx)
  if has_fingerprints:
    state = training.with_fingerprints(state, model)
  step = jax.jit(training.make_step(model, tx, accumulate_steps=accumulate_steps), donate_argnums=0)
  for n in range(num_steps):
    parts = [batch_of(10 * n + k) for k in range(accumulate_steps)]
    batch = parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: np.stack(x), *parts)
    state, _ = step(state, batch)
  return model, state


def test_fingerprints_follow_training_and_change_nothing_of_it():
  """Adam moves rows of no gradient too; micro-batches write once."""
  accumulate_steps = 3
  tx = training.Optimizers(dense=optax.adam(1e-2), rows=tables.lazily(optax.adam(0.2)))
  model, kept = trained(tx, has_fingerprints=True, accumulate_steps=accumulate_steps)
  _, plain = trained(tx, has_fingerprints=False, accumulate_steps=accumulate_steps)
  planes = kept.params["constants"]["search"]["hyperplanes"]
  check(kept.tables, planes)
  jax.tree.map(np.testing.assert_array_equal, kept.tables.values, plain.tables.values)
  jax.tree.map(np.testing.assert_array_equal, kept.params, plain.params)
  first = training.init_state(jax.random.key(0), model, spec_of(), tx=tx)
  first = training.with_fingerprints(first, model)
  (stack,) = kept.tables.plan.stacks
  old, new = (np.asarray(one.tables.fingerprints.words[stack.name]) for one in (first, kept))
  is_moved = (old != new).any(axis=1)
  assert 5 < is_moved.sum() <= ITEMS // 2 + 7  # ids of the upper half are in no batch
  batch = batch_of(99)
  ours, theirs = (training.evaluation.predict(model, one.params, one.tables, batch)
                  for one in (kept, plain))  # fmt: skip
  np.testing.assert_array_equal(ours, theirs)


def test_the_model_reads_the_words_and_hashes_no_row():
  tx = training.Optimizers(dense=optax.adam(1e-2), rows=tables.rowwise_adagrad(0.5))
  model, state = trained(tx, has_fingerprints=True, num_steps=1)
  batch = batch_of(5)
  right = training.evaluation.predict(model, state.params, state.tables, batch)
  kept = state.tables.fingerprints
  upset = dataclasses.replace(kept, words=jax.tree.map(lambda w: ~w, kept.words))
  wrong = dataclasses.replace(state.tables, fingerprints=upset)
  found = training.evaluation.predict(model, state.params, wrong, batch)
  assert (np.asarray(found) != np.asarray(right)).mean() > 0.5


def test_a_model_without_such_a_search_is_refused():
  tx = training.Optimizers(dense=optax.adam(1e-2), rows=tables.rowwise_adagrad(0.5))
  model = models.FullAttention((8, 1))
  state = training.init_state(jax.random.key(0), model, spec_of(), tx=tx)
  with pytest.raises(ValueError, match="only a model that searches by them"):
    training.with_fingerprints(state, model)
  with pytest.raises(ValueError, match="no feature 'past'"):
    training.with_fingerprints(state, models.ETA((8, 1), history="past"))
