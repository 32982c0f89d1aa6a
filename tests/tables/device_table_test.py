"""Tables: initial rows, reads and writes, and the bytes of a compiled step."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import tables
from jaxrec.config import FeatureConfig, Initializer, TableConfig
from jaxrec.features import plan_tables
from jaxrec.inputs import table_plan
from jaxrec.tables import row_init
from tests.tables import compiled as compiled_lib


def create(*configs, seed=0, **kwargs):
  plan = plan_tables([FeatureConfig(t.name, t) for t in configs], **kwargs)
  return tables.create(plan, jax.random.key(seed))


def test_initial_rows_are_a_function_of_seed_table_and_id_alone():
  user, item = TableConfig("user", 70_001, 6), TableConfig("item", 300, 6)
  both, alone = create(user, item), create(item)
  np.testing.assert_array_equal(both.table("item"), alone.table("item"))
  split = create(user, item, max_rows=70_001)
  assert len(split.plan.stacks) == 2
  np.testing.assert_array_equal(split.table("user"), both.table("user"))
  words = row_init.table_words(jax.random.key(0), user)
  ids = jnp.array([70_000, 0, 65_536, 5, 5], jnp.int32)
  np.testing.assert_array_equal(
    tables.initial_rows(words, user, ids), np.asarray(both.table("user"))[np.asarray(ids)]
  )
  larger = tables.initial_rows(words, user, jnp.arange(70_001, dtype=jnp.int32))
  np.testing.assert_array_equal(larger, both.table("user"))
  other = create(user, item, seed=1)
  assert (np.asarray(other.table("user")) != np.asarray(both.table("user"))).mean() > 0.99


@pytest.mark.parametrize(("kind", "scale"), [("uniform", None), ("uniform", 0.5), ("normal", 0.1)])
def test_initial_rows_have_the_distribution_asked_for(kind, scale):
  table = TableConfig("t", 40_000, 5, initializer=Initializer(kind, scale))
  values = np.asarray(create(table).table("t"), np.float64)
  scale = 1 / np.sqrt(40_000) if scale is None else scale
  assert values.mean() == pytest.approx(0, abs=5 * scale / np.sqrt(values.size))
  if kind == "uniform":
    assert np.abs(values).max() <= scale
    assert values.std() == pytest.approx(scale / np.sqrt(3), rel=0.01)
  else:
    assert values.std() == pytest.approx(scale, rel=0.01)
    assert np.mean(np.abs(values) < scale) == pytest.approx(0.6827, abs=0.01)
  assert len(np.unique(values)) > 0.9 * values.size


def test_a_constant_table_and_a_narrow_dtype():
  made = create(
    TableConfig("zeros", 3, 4, initializer=Initializer("constant", 0.0)),
    TableConfig("half", 3, 4, dtype="bfloat16"),
  )
  np.testing.assert_array_equal(made.table("zeros"), 0)
  assert made.table("half").dtype == jnp.bfloat16
  assert [s.name for s in made.plan.stacks] == ["d4_float32", "d4_bfloat16"]


def test_an_unknown_table_is_named():
  with pytest.raises(KeyError, match="no table 'c'; known: a"):
    create(TableConfig("a", 3, 4)).table("c")


def test_row_major_reads_zeros_past_the_end_and_writes_nothing_there():
  layout, array = tables.RowMajor(), jnp.arange(6.0).reshape(3, 2)
  rows = jnp.array([2, 0, 3, 9], jnp.int32)
  np.testing.assert_array_equal(layout.read(array, rows), [[4, 5], [0, 1], [0, 0], [0, 0]])
  written = layout.write(array, rows, jnp.full((4, 2), 7.0))
  np.testing.assert_array_equal(written, [[7, 7], [2, 3], [7, 7]])


def test_stacks_split_before_they_pass_the_largest_row_number():
  features = [FeatureConfig(n, TableConfig(n, 6, 2)) for n in "abc"]
  plan = plan_tables(features, max_rows=13)
  assert [(s.name, s.num_rows) for s in plan.stacks] == [("d2_float32", 12), ("d2_float32_1", 6)]
  assert plan.offset(features[2]) == 0
  assert isinstance(hash(plan), int) and isinstance(plan, table_plan.TablePlan)


OPTIMIZERS = compiled_lib.OPTIMIZERS


def compile_step(vocab_size, dim, optimizer, *, dtype="float32", **options):
  """The whole training step, compiled from shapes alone: no table is ever allocated."""
  step = compiled_lib.Step(vocab_size, dim, optimizer, dtype)
  compiled, state = step.program(**options)
  return compiled, sum(v.size * v.dtype.itemsize for v in state.tables.values.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dim", [16, 64, 128])
def test_a_step_copies_no_table_and_its_memory_does_not_grow_with_the_vocabulary(dim, optimizer):
  temporaries = []
  for vocab_size in (100_000, 10_000_000 if dim == 16 else 2_000_000):
    compiled, table_bytes = compile_step(vocab_size, dim, optimizer)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= table_bytes  # every table is updated in place
    temporaries.append(memory.temp_size_in_bytes)
    rows = 2 * vocab_size
    table_sized = re.findall(
      rf"= \w+\[{rows}[,\]][^ ]* (copy|transpose|copy-start)\(", compiled.as_text()
    )
    assert not table_sized
  assert temporaries[0] == temporaries[1]
  assert temporaries[0] < 64 * 256 * dim * 4 + 2**20  # O(batch): a few dozen arrays of [2B, D]


@pytest.mark.parametrize(
  ("dim", "optimizer", "num_devices"),
  [
    (16, "adam", 1),
    (64, "rowwise_adagrad", 1),
    (128, "sgd", 1),
    (64, "adam", 8),
    pytest.param(16, "rowwise_adagrad", 8, marks=pytest.mark.nightly),
    pytest.param(128, "sgd", 8, marks=pytest.mark.nightly),
  ],
)
def test_a_narrow_table_is_updated_in_place_too(dim, optimizer, num_devices):
  devices = () if num_devices == 1 else tuple(jax.devices("cpu"))
  step = compiled_lib.Step(1_000_000, dim, optimizer, "bfloat16", devices=devices)
  found = step.compile()
  assert found.aliased_bytes >= found.table_bytes
  assert found.temp_bytes < 64 * 256 * num_devices * dim * 4
  assert found.temp_bytes < found.table_bytes / (2 if num_devices > 1 else 8)
  assert found.copies == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_l2_penalty_reads_no_row_twice_and_makes_no_table(optimizer):
  def penalise(row_grads, now):
    return tables.clip_by_global_norm(tables.add_l2(row_grads, now, 0.1), 1.0)

  def count_gathers(compiled):
    return len(re.findall(r"= \w+\[\d+,1,16\]\S* gather\(", compiled.as_text()))

  plain, _ = compile_step(1_000_000, 16, optimizer)
  temporaries = []
  for vocab_size in (100_000, 1_000_000):
    compiled, table_bytes = compile_step(vocab_size, 16, optimizer, row_transform=penalise)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= table_bytes
    temporaries.append(memory.temp_size_in_bytes)
    if jax.default_backend() == "cpu":  # a GPU fuses a gather into each of its readers
      assert count_gathers(compiled) == count_gathers(plain) > 0
    assert not re.findall(
      rf"= \w+\[{2 * vocab_size}[,\]][^ ]* (copy|multiply|add)\(", compiled.as_text()
    )
  assert temporaries[0] == temporaries[1]
  assert temporaries[0] <= plain.memory_analysis().temp_size_in_bytes + 8 * 512 * 16 * 4


def test_a_table_may_be_replaced_by_vectors_from_elsewhere_and_its_neighbours_stay():
  before = create(TableConfig("user", 5, 4), TableConfig("item", 7, 4, "bfloat16"),
                  TableConfig("shop", 3, 4))  # fmt: skip
  rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
  after = tables.with_table(before, "shop", rows)
  np.testing.assert_array_equal(after.table("shop"), rows)
  for name in ("user", "item"):
    np.testing.assert_array_equal(after.table(name), before.table(name))
  with pytest.raises(KeyError, match="no table 'shops'; known: user, shop, item"):
    tables.with_table(before, "shops", rows)
  with pytest.raises(ValueError, match=r"table 'item': expected rows \[7, 4\], got \[3, 4\]"):
    tables.with_table(before, "item", rows)
