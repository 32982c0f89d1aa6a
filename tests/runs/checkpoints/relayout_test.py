"""Checkpoints know no layout: saved under one mesh and plan, restored under any other."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from jaxrec import sharding
from jaxrec.runs.checkpoints import checkpoint, restore_rows
from jaxrec.training import metrics
from tests.sharding import cases

# Layouts in turn: a state that goes round ends as it began.
JOURNEY = {
  "one device": None,
  "8 row-wise": ({"data": 8}, sharding.row_wise()),
  "2x4 grid": ({"data": 2, "model": 4}, sharding.row_wise("model")),
  "8 replicated": ({"data": 8}, sharding.replicated()),
  "4 table-wise": ({"data": 4}, sharding.table_wise()),
  "2x2x2 columns": ({"dcn": 2, "data": 2, "model": 2}, sharding.column_wise("data", "model")),
  "3 row-wise": ({"data": 3}, sharding.row_wise()),
  "8 row-wise in lines": ({"data": 8}, sharding.row_wise(), "tpu"),
  "2x4 in lines, columns too": (
    {"data": 2, "model": 4},
    sharding.row_wise("data").and_columns("model"),
    "tpu",
  ),
  "one device again": None,
}


def placed(inputs, journey):
  if journey is None:
    return None
  mesh, layout, *platform = journey
  options = {"platform": platform[0]} if platform else {}
  return cases.placement(inputs, mesh, ((".*", layout),), **options)


def like(inputs, tx, where):
  shapes = jax.eval_shape(lambda: cases.fresh(inputs, tx, where))
  return shapes if where is None else sharding.placed(shapes, where)


def moved(path, state, inputs, tx, where):
  """``state``, saved and restored where ``where`` says."""
  with_window = metrics.WindowMetrics.zeros()
  keeper = checkpoint.Checkpoints(path)
  keeper.save(state, with_window, checkpoint.Progress(step=3, examples=96))
  keeper.wait()
  found, window, progress = keeper.restore(3, like(inputs, tx, where))
  keeper.close()
  assert progress.examples == 96
  jax.tree.map(np.testing.assert_array_equal, window, with_window)
  return found


def trained(inputs, optimizer, where=None, steps=3):
  tx = cases.optimizers(optimizer)
  batches = [cases.split(cases.examples(inputs, 24, seed), inputs, where) for seed in range(steps)]
  return cases.train(cases.fresh(inputs, tx, where), tx, batches)[0], tx


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rows_and_moments_survive_a_journey_through_all_layouts(tmp_path, dtype, monkeypatch):
  monkeypatch.setattr(restore_rows, "PIECE_BYTES", 600)  # many pieces, the last ones short
  inputs = cases.features("bags", dtype)
  state, tx = trained(inputs, "adam")
  expected, params = cases.by_table(state), jax.device_get(state.params)
  for i, name in enumerate(list(JOURNEY)[1:]):
    where = placed(inputs, JOURNEY[name])
    state = moved(tmp_path / str(i), state, inputs, tx, where)
    found = cases.by_table(state)
    assert found.keys() == expected.keys() and len(found) == 9
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), params)
    for array in jax.tree.leaves(state.tables.values):
      assert len(array.sharding.device_set) == (1 if where is None else where.mesh.size)


def test_the_same_layout_is_restored_by_orbax_alone(tmp_path, monkeypatch):
  inputs = cases.features()
  where = placed(inputs, JOURNEY["8 row-wise"])
  state, tx = trained(inputs, "adam", where)
  monkeypatch.setattr(restore_rows, "read", None)
  # Another mesh of as many shards in the same order has the same rows in the same places.
  other = placed(inputs, ({"data": 2, "model": 4}, sharding.row_wise()))
  for i, to in enumerate((where, other)):
    found = moved(tmp_path / str(i), state, inputs, tx, to)
    jax.tree.map(np.testing.assert_array_equal, cases.by_table(found), cases.by_table(state))


@pytest.mark.parametrize(("first", "then"), list(itertools.permutations([None, "8 row-wise"], 2)))
def test_a_run_that_moves_goes_on_as_one_that_stayed(tmp_path, first, then):
  inputs = cases.features("bags")
  places = [placed(inputs, JOURNEY[name]) if name else None for name in (first, then)]
  state, tx = trained(inputs, "rowwise_adagrad", places[0])
  stayed, _ = trained(inputs, "rowwise_adagrad", steps=6)
  found = moved(tmp_path, state, inputs, tx, places[1])
  later = [cases.split(cases.examples(inputs, 24, seed), inputs, places[1]) for seed in range(3, 6)]
  cases.check_close(cases.by_table(cases.train(found, tx, later)[0]), cases.by_table(stayed))


@pytest.mark.parametrize(
  ("first", "then"),
  [("one device", "2x4 in lines, columns too"), ("8 row-wise in lines", "4 table-wise")],
)
def test_rows_follow_the_ids_that_they_had(tmp_path, monkeypatch, first, then):
  monkeypatch.setattr(restore_rows, "PIECE_BYTES", 300)
  inputs = cases.features()
  state, tx = trained(inputs, "adam", placed(inputs, JOURNEY[first]))
  keeper = checkpoint.Checkpoints(tmp_path)
  keeper.save(state, metrics.WindowMetrics.zeros(), checkpoint.Progress(step=3))
  keeper.wait()
  rng = np.random.default_rng(0)
  kept = [feature.table for feature in inputs[:2]]  # the third table begins anew
  old_ids = {
    table.name: rng.integers(-table.vocab_size // 2, table.vocab_size, table.vocab_size)
    for table in kept
  }
  fresh = cases.fresh(inputs, tx, placed(inputs, JOURNEY[then]))
  before, new = cases.by_table(state), cases.by_table(fresh)
  assert not np.array_equal(jax.device_get(fresh.params), jax.device_get(state.params))
  shapes = like(inputs, tx, placed(inputs, JOURNEY[first]))
  found = keeper.follow(3, shapes, fresh, {name: old.clip(-1) for name, old in old_ids.items()})
  keeper.close()
  rows = cases.by_table(found)
  for key, ours in rows.items():
    old = next((old for name, old in old_ids.items() if name in str(key)), None)
    expected = new[key]
    if old is not None:
      assert len(np.unique(old[old >= 0])) < np.count_nonzero(old >= 0) < len(old)
      is_kept = (old >= 0).reshape(-1, *(1,) * (ours.ndim - 1))
      expected = np.where(is_kept, before[key][np.maximum(old, 0)], new[key])
    np.testing.assert_array_equal(ours, expected, err_msg=str(key))
  rest, expected = (jax.device_get((s.params, s.opt_state)) for s in (found, state))
  jax.tree.map(np.testing.assert_array_equal, rest, expected)
  assert int(found.step) == 0 < int(state.step)


def test_another_table_is_named(tmp_path):
  inputs = cases.features()
  state, tx = trained(inputs, "sgd")
  larger = dataclasses.replace(inputs[0].table, vocab_size=204)
  others = (dataclasses.replace(inputs[0], table=larger), *inputs[1:])
  where = placed(others, JOURNEY["8 row-wise"])
  with pytest.raises(checkpoint.CheckpointError, match="table 'user' has 203 rows there and 204"):
    moved(tmp_path, state, others, tx, where)
