"""Rows in lines: the same reads, updates and checkpoints as row by row, bit for bit."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import sharding, tables, training
from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.features import plan_tables
from jaxrec.runs.checkpoints import checkpoint
from tests.sharding import cases
from tests.tables.in_lines import as_words, assert_same_bits, bits, laid_out

DTYPES = (np.float32, np.uint16, np.uint32)
ROW_MAJOR = tables.RowMajor()
NAME = "d8_bfloat16"
read, write = (
  jax.jit(lambda layout, *given, do=do: getattr(layout, do)(*given), static_argnums=0)
  for do in ("read", "write")
)


def draw(rng, shape, dtype):
  """Numbers of all bits: infinities, NaNs, zeros of both signs and subnormal numbers too."""
  words = np.dtype(f"u{np.dtype(dtype).itemsize}")
  drawn = rng.integers(0, 1 << 8 * words.itemsize, shape, np.uint64).astype(words)
  if dtype == np.float32:
    special = np.array([0, 1 << 31, 0x7F800000, 0x7FC00001, 0xFF800001, 1], words)
    drawn = np.where(rng.random(shape) < 0.3, rng.choice(special, shape), drawn)
  return drawn.view(dtype)


@hypothesis.given(
  st.integers(1, 300), st.integers(1, 127), st.sampled_from(DTYPES), st.integers(0, 10**6)
)
@hypothesis.example(128, 64, np.float32, 0)
@hypothesis.example(129, 1, np.uint16, 0)
@hypothesis.example(1, 127, np.float32, 0)
@hypothesis.settings(max_examples=5)
def test_lines_hold_read_and_write_the_same_bits_as_row_major(num_rows, columns, dtype, seed):
  rng = np.random.default_rng(seed)
  layout = tables.Lines(num_rows, columns)
  rows = draw(rng, (num_rows, columns), dtype)
  packed = jax.jit(layout.pack)(rows)
  assert packed.shape == layout.shape(columns) and packed.dtype == dtype
  np.testing.assert_array_equal(bits(layout.read_range(packed, 0, num_rows)), bits(rows))
  start = int(rng.integers(0, num_rows))
  count = int(rng.integers(0, num_rows - start + 1))
  part = layout.read_range(packed, start, count)
  np.testing.assert_array_equal(bits(part), bits(rows[start : start + count]))

  asked = rng.permutation(num_rows + 40)[: 1 + num_rows // 2].astype(np.int32)  # some are padding
  expected = read(ROW_MAJOR, jnp.asarray(rows), asked)
  np.testing.assert_array_equal(bits(read(layout, packed, asked)), bits(expected))

  values = draw(rng, (len(asked), columns), dtype)
  written = write(layout, packed, asked, values)
  expected = write(ROW_MAJOR, jnp.asarray(rows), asked, values)
  np.testing.assert_array_equal(bits(layout.read_range(written, 0, num_rows)), bits(expected))
  # Not a bit has changed in the lanes of no row.
  np.testing.assert_array_equal(bits(written), bits(layout.pack(expected)))


def test_rows_of_one_line_are_written_in_one_step():
  layout, rows = tables.Lines(5, 32), np.arange(160.0, dtype=np.float32).reshape(5, 32)
  written = layout.write(layout.pack(jnp.asarray(rows)), jnp.array([1, 0, 3]), -rows[[1, 0, 3]])
  expected = rows * np.array([-1, -1, 1, -1, 1], np.float32)[:, None]
  np.testing.assert_array_equal(layout.read_range(written, 0, 5), expected)


def test_a_row_past_the_end_has_no_room_in_the_last_line():
  layout = tables.Lines(5, 32)
  packed = layout.pack(jnp.ones((5, 32)))
  past = jnp.array([5, 6, 7, 127, 128, 10**6])
  np.testing.assert_array_equal(layout.write(packed, past, jnp.full((6, 32), 7.0)), packed)
  np.testing.assert_array_equal(layout.read(packed + 1, past), 0)


@pytest.mark.parametrize("dims", [(), (1,), (16,), (3,), (16, 2), (5,)])
def test_what_lies_beside_the_rows_is_told_by_its_shape(dims):
  layout, rng = tables.Lines(300, 5), np.random.default_rng(0)
  beside = rng.normal(size=(300, *dims)).astype(np.float32)
  packed = layout.pack(jnp.asarray(beside))
  assert (packed.shape[-1] == 128) == (dims in [(1,), (16,), (5,)])
  rows, by_row = jnp.array([299, 0, 300, 7]), jnp.asarray(beside)
  np.testing.assert_array_equal(read(layout, packed, rows), read(ROW_MAJOR, by_row, rows))
  values = rng.normal(size=(4, *dims)).astype(np.float32)
  written = write(layout, packed, rows, values)
  expected = write(ROW_MAJOR, by_row, rows, values)
  np.testing.assert_array_equal(layout.read_range(written, 0, 300), expected)


def test_an_array_as_wide_as_a_row_in_lines_but_narrower_lies_by_row():
  # Its lines would look like the rows' own, whose columns it has not.
  layout, words = tables.Lines(300, 3), jnp.ones((300, 4), jnp.uint32)
  assert layout.pack(words) is words


def test_lines_are_for_rows_below_128_lanes_on_a_tpu():
  wide, narrow = TableConfig("wide", 10, 128), TableConfig("narrow", 10, 127)
  plan = plan_tables([FeatureConfig(t.name, t) for t in (wide, narrow)])
  for platform in ("cpu", "gpu", "cuda"):
    assert tables.one_device(plan, platform) == tables.OneDevice()
  found = tables.one_device(plan, "tpu")
  assert [type(found.layout(s.name)) for s in plan.stacks] == [tables.RowMajor, tables.Lines]
  made = sharding.make_plan(plan.features, {"data": 2}, platform="tpu")
  assert [one.in_lines for one in made.sharded] == [False, True]
  shared = ((".*", sharding.column_wise()),)  # 128 columns of which a device has 64
  made = sharding.make_plan(plan.features[:1], {"data": 2}, shared, platform="tpu")
  assert [one.in_lines for one in made.sharded] == [True]


@dataclasses.dataclass(frozen=True)
class Pair:
  """One state row by row and the same in lines, and what brings either into the other's form."""

  rows: training.TrainState
  in_lines: training.TrainState

  def by_row(self) -> training.TrainState:
    return laid_out(self.in_lines, self.rows.tables.placement)


optimizers = functools.cache(cases.optimizers)  # a step is compiled once for each


@functools.cache
def fresh(optimizer="adam", dtype="float32", mesh=(), rules=None) -> Pair:
  inputs, tx = cases.features("single", dtype), optimizers(optimizer)
  if mesh:
    rows, in_lines = (
      cases.fresh(inputs, tx, cases.placement(inputs, dict(mesh), rules, platform=platform))
      for platform in ("cpu", "tpu")
    )
  else:
    rows = cases.fresh(inputs, tx)
    in_lines = cases.fresh(inputs, tx, tables.one_device(rows.tables.plan))
  for array in in_lines.tables.values.values():
    assert array.shape[1] % 128 == 0
  return Pair(rows, in_lines)


def draw_batches(state, count, first=0):
  inputs, where = state.tables.plan.features, state.tables.placement
  where = where if isinstance(where, sharding.Sharded) else None
  return [cases.split(cases.examples(inputs, 32, first + i), inputs, where) for i in range(count)]


MIXED = (
  ("user", sharding.row_wise("model").and_columns("data")),
  ("item", sharding.table_wise()),
  ("tag", sharding.column_wise("data")),
)


@pytest.mark.parametrize(
  ("mesh", "rules", "optimizer", "dtype"),
  [
    ((), None, "adam", "float32"),
    pytest.param((("data", 2), ("model", 4)), MIXED, "adam", "bfloat16", marks=pytest.mark.nightly),
    pytest.param((), None, "rowwise_adagrad", "bfloat16", marks=pytest.mark.nightly),
    pytest.param((), None, "sgd", "float32", marks=pytest.mark.nightly),
    pytest.param((("data", 8),), None, "sgd", "bfloat16", marks=pytest.mark.nightly),
    pytest.param((("data", 8),), None, "rowwise_adagrad", "float32", marks=pytest.mark.nightly),
  ],
)
def test_ten_steps_in_lines_are_ten_steps_row_by_row(mesh, rules, optimizer, dtype):
  before, tx = fresh(optimizer, dtype, mesh, rules), optimizers(optimizer)
  assert_same_bits(as_words(before.by_row()), as_words(before.rows))
  batches = draw_batches(before.rows, 10)
  (rows, theirs), (in_lines, ours) = (
    cases.train(state, tx, batches) for state in (before.rows, before.in_lines)
  )
  assert_same_bits(as_words(Pair(rows, in_lines).by_row()), as_words(rows))
  assert_same_bits(ours, theirs)
  for name, array in rows.tables.values.items():
    for old, new in zip(
      (before.rows.tables.values[name], *before.rows.row_state.rows[name]),
      (array, *rows.row_state.rows[name]),
      strict=True,
    ):
      assert np.any(bits(old) != bits(new))


def test_a_checkpoint_of_lines_is_one_of_rows_and_the_other_way_round(tmp_path):
  start, tx = fresh(), optimizers("adam")
  trained, windows = cases.train(start.in_lines, tx, draw_batches(start.rows, 2))
  planes = {"user": jax.random.normal(jax.random.key(1), (cases.DIM, 64))}
  with_words = tables.with_fingerprints(trained.tables, planes)
  in_lines = dataclasses.replace(trained, tables=with_words)
  rows = laid_out(in_lines, tables.OneDevice())
  for name, saved, expected in (("lines", in_lines, rows), ("rows", rows, in_lines)):
    keeper = checkpoint.Checkpoints(tmp_path / name)
    keeper.save(saved, windows[-1], checkpoint.Progress(step=2))
    keeper.wait()
    found, _, _ = keeper.restore(2, jax.eval_shape(lambda expected=expected: expected))
    keeper.close()
    assert_same_bits(as_words(found), as_words(expected))


def test_initial_rows_and_moments_are_made_in_lines():
  start = fresh("adam", "bfloat16")
  expected = laid_out(start.rows, start.in_lines.tables.placement)
  assert_same_bits(as_words(start.in_lines), as_words(expected))


def test_whole_tables_are_read_replaced_and_counted_in_lines():
  start, tx = fresh(), optimizers("adam")
  both = Pair(*(cases.train(s, tx, draw_batches(s, 2))[0] for s in (start.rows, start.in_lines)))
  ours, theirs = both.in_lines.tables, both.rows.tables
  for name in cases.VOCABULARY:
    np.testing.assert_array_equal(ours.table(name), theirs.table(name))
  rows = np.random.default_rng(0).normal(size=(31, cases.DIM)).astype(np.float32)
  ours, theirs = (tables.with_table(found, "item", rows) for found in (ours, theirs))
  np.testing.assert_array_equal(ours.table("item"), rows)
  for name in ("user", "tag"):
    np.testing.assert_array_equal(ours.table(name), theirs.table(name))
  key = training.state.split_key(jax.random.key(0))[1]
  mine, other = (
    tables.table_statistics(state.tables, key, row_state=state.row_state, optimizer=tx.rows)
    for state in (both.in_lines, both.rows)
  )
  assert mine == other
  assert 0 < mine["user"].touched_rows < mine["user"].rows


@pytest.mark.parametrize(
  ("mesh", "num_lines"), [((), 4), pytest.param((("data", 8),), 16, marks=pytest.mark.nightly)]
)
def test_fingerprints_lie_in_lines_beside_their_rows(mesh, num_lines):
  planes = {"user": jax.random.normal(jax.random.key(1), (cases.DIM, 64))}
  start = fresh("sgd", "bfloat16", mesh)
  rows, in_lines = (
    dataclasses.replace(state, tables=tables.with_fingerprints(state.tables, planes))
    for state in (start.rows, start.in_lines)
  )
  both = Pair(rows, in_lines)
  (words,) = in_lines.tables.fingerprints.words.values()
  assert words.shape == (num_lines, 128) and words.dtype == jnp.uint32
  assert_same_bits(both.by_row().tables, rows.tables)
  if not mesh:
    ids, values = jnp.array([3, 200, 4, 10**6]), jnp.ones((4, cases.DIM))
    new = Pair(*(
      dataclasses.replace(s, tables=tables.write_rows(s.tables, {NAME: ids}, {NAME: values}))
      for s in (rows, in_lines)
    ))  # fmt: skip
    assert_same_bits(new.by_row().tables, new.rows.tables)
    old, words = (bits(s.tables.fingerprints.words[NAME]) for s in (rows, new.rows))
    assert np.flatnonzero((old != words).any(axis=1)).tolist() == [3, 4, 200]
