"""What is saved comes back bit for bit; what cannot be read or written says so."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import config, models, tables, training
from jaxrec.inputs import batch as batch_lib
from jaxrec.runs.checkpoints import checkpoint
from jaxrec.training import metrics


@functools.cache
def fresh_state(seed: int = 0, *, rows: int = 50, dtype: str = "float32") -> training.TrainState:
  table = config.TableConfig("item", rows, 4, dtype=dtype)
  spec = batch_lib.BatchSpec((config.FeatureConfig("item", table),), 2)
  model = models.DLRM(bottom_mlp=(4,), top_mlp=(1,))
  tx = training.Optimizers(dense=optax.adam(1e-3), rows=tables.rowwise_adagrad(0.1))
  return training.init_state(jax.random.key(seed), model, spec, tx=tx)


def shapes(state):
  return jax.eval_shape(lambda: state)


def save(checkpoints, state, progress):
  window = metrics.WindowMetrics.zeros().replace(loss_sum=jnp.float32(0.1))
  checkpoints.save(state, window, progress)
  checkpoints.wait()


def bits(tree):
  leaves, treedef = jax.tree.flatten(tree)
  is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
  assert any(is_key)
  raw = [jax.random.key_data(x) if key else x for x, key in zip(leaves, is_key, strict=True)]
  return treedef, [(x.dtype.name, x.shape, np.asarray(x).tobytes()) for x in raw]


def steps_on_disk(path):
  return sorted(found.name for found in path.iterdir())


@pytest.fixture
def checkpoints(tmp_path):
  found = checkpoint.Checkpoints(tmp_path / "checkpoints")
  yield found
  found.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_whole_state_comes_back_bit_for_bit(checkpoints, dtype):
  state = fresh_state(dtype=dtype).replace(step=jnp.int32(7))
  progress = checkpoint.Progress(step=7, examples=448, best_step=7, best_auc=0.1 + 0.2)
  save(checkpoints, state, progress)
  found, window, found_progress = checkpoints.restore(7, shapes(state))
  assert bits(found) == bits(state)
  assert found_progress == progress
  assert float(window.loss_sum) == np.float32(0.1)


def test_training_may_go_on_while_the_state_is_being_written(checkpoints):
  """On a CPU the writer views the arrays, and a step that would overwrite them copies them."""
  train = jax.jit(lambda s: jax.tree.map(jnp.add, s, s), donate_argnums=0)
  num_concurrent = 0
  for step in range(1, 11):
    state = fresh_state(seed=step, rows=200_000)
    expected, like = bits(state), shapes(state)
    numbers = {"params": state.params, "values": state.tables.values, "rows": state.row_state.rows}
    train(jax.tree.map(jnp.copy, numbers))  # compiled before the writer begins
    checkpoints.save(state, metrics.WindowMetrics.zeros(), checkpoint.Progress(step=step))
    for _ in range(5):
      numbers = train(numbers)
    jax.block_until_ready(numbers)
    num_concurrent += checkpoints._manager.is_saving_in_progress()
    checkpoints.wait()
    assert bits(checkpoints.restore(step, like)[0]) == expected
    if num_concurrent == 3:
      return
  raise AssertionError("the writer was always done before training was")


def test_the_latest_and_the_best_are_kept_also_across_a_restart(tmp_path):
  state, path = fresh_state(), tmp_path / "checkpoints"
  first = checkpoint.Checkpoints(path)
  best = checkpoint.Progress(step=1).judged(0.8)
  save(first, state, best)
  save(first, state, checkpoint.Progress(step=2, best_step=1, best_auc=0.8))
  first.close()
  second = checkpoint.Checkpoints(path)
  assert second.latest_step() == 2
  save(second, state, checkpoint.Progress(step=3, best_step=1, best_auc=0.8))
  assert steps_on_disk(path) == ["1", "3"]
  save(second, state, checkpoint.Progress(step=4, best_step=4, best_auc=0.9))
  assert steps_on_disk(path) == ["4"]
  second.close()


def test_what_a_kill_left_behind_is_deleted(tmp_path):
  state, path = fresh_state(), tmp_path / "checkpoints"
  first = checkpoint.Checkpoints(path)
  save(first, state, checkpoint.Progress(step=4, best_step=4, best_auc=0.5))
  first.close()
  shutil.copytree(path / "4", path / "9.orbax-checkpoint-tmp")  # killed as it wrote
  shutil.copytree(path / "4", path / "3")  # killed as it deleted
  shutil.rmtree(path / "3" / "state")
  second = checkpoint.Checkpoints(path)
  assert second.latest_step() == 4
  second.tidy(second.restore(4, shapes(state))[2])
  second.close()
  assert steps_on_disk(path) == ["4"]


def test_of_two_equal_evaluations_the_later_is_best_and_nan_is_never():
  progress = checkpoint.Progress(step=1).judged(math.nan)
  assert progress.best_step == 1
  progress = progress.trained(64).judged(0.7)
  assert (progress.step, progress.examples, progress.best_step) == (2, 64, 2)
  assert progress.trained(64).judged(0.7).best_step == 3
  for auc in (0.6, math.nan):
    worse = progress.trained(64).judged(auc)
    assert dataclasses.replace(worse, stale_evaluations=0) == progress.trained(64)


def test_an_evaluation_is_stale_unless_it_is_better_than_all_before():
  progress, stale = checkpoint.Progress(), []
  for auc in (math.nan, 0.7, 0.7, 0.6, 0.65, 0.71, math.nan, 0.72):
    progress = progress.trained(64).judged(auc)
    stale.append(progress.stale_evaluations)
  assert stale == [1, 0, 1, 2, 3, 0, 1, 0]


def test_a_checkpoint_of_another_model_is_refused(checkpoints):
  state = fresh_state()
  save(checkpoints, state, checkpoint.Progress(step=5))
  for other in ({"rows": 51}, {"rows": 49}, {"dtype": "bfloat16"}):
    with pytest.raises(checkpoint.CheckpointError) as refused:
      checkpoints.restore(5, jax.eval_shape(functools.partial(fresh_state.__wrapped__, **other)))
    message = str(refused.value)
    assert str(checkpoints.directory / "5") in message
    assert "damaged or from another configuration" in message
    assert "starts over" in message and "--fresh" in message
    assert "\n" not in message


@pytest.mark.parametrize("keep", [pytest.param(0.0, marks=pytest.mark.nightly), 0.5])
def test_a_truncated_checkpoint_is_refused_or_harmless(tmp_path, keep):
  state, whole = fresh_state(), tmp_path / "whole"
  writer = checkpoint.Checkpoints(whole)
  save(writer, state, checkpoint.Progress(step=3, examples=192))
  save(writer, state, checkpoint.Progress(step=5, examples=320, best_step=3))
  writer.close()
  refused = set()
  files = [found.relative_to(whole) for found in (whole / "5").rglob("*") if found.is_file()]
  for number, name in enumerate(files):
    damaged = tmp_path / str(number)
    shutil.copytree(whole, damaged)
    os.truncate(damaged / name, int(keep * (damaged / name).stat().st_size))
    reader = checkpoint.Checkpoints(damaged)
    try:
      found, _, progress = reader.restore(reader.latest_step(), shapes(state))
    except checkpoint.CheckpointError as error:
      assert str(damaged / "5") in str(error)
      assert "Move that folder away and the same command resumes from step 3" in str(error)
      refused.add(name.name)
    else:
      assert bits(found) == bits(state) and progress.examples == 320, name
    reader.close()
  assert {"manifest.ocdbt", "_METADATA", "metadata"} <= refused
  arrays = {name.name for name in files if name.parent.name == "d"}
  assert arrays & refused  # the others are copies, which Orbax has merged into one


def test_a_folder_that_cannot_hold_checkpoints_is_refused(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(checkpoint.CheckpointError, match="cannot use .*checkpoints for .*--workdir"):
    checkpoint.Checkpoints(tmp_path / "file" / "checkpoints")


def test_what_is_opened_to_be_read_stays_as_it_is(tmp_path):
  state, path = fresh_state(), tmp_path / "checkpoints"
  writer = checkpoint.Checkpoints(path)
  save(writer, state, checkpoint.Progress(step=1))
  save(writer, state, checkpoint.Progress(step=2, best_step=1))
  writer.close()
  (path / "3.orbax-checkpoint-tmp").mkdir()
  before = {p: p.stat().st_mtime_ns for p in (path, *path.rglob("*"))}
  reader = checkpoint.Checkpoints(path, read_only=True)
  found, _, _ = reader.restore(2, shapes(state))
  with pytest.raises(checkpoint.CheckpointError, match="checkpoints was opened to be read"):
    save(reader, state, checkpoint.Progress(step=3))
  reader.tidy(checkpoint.Progress())
  reader.close()
  assert bits(found) == bits(state)
  assert {p: p.stat().st_mtime_ns for p in (path, *path.rglob("*"))} == before


def test_a_failed_write_says_which_checkpoint_is_intact(tmp_path, monkeypatch):
  state, path = fresh_state(), tmp_path / "checkpoints"
  checkpoints = checkpoint.Checkpoints(path)
  save(checkpoints, state, checkpoint.Progress(step=1))

  def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(checkpoints._manager, "save", fail)
  with pytest.raises(checkpoint.CheckpointError) as refused:
    save(checkpoints, state, checkpoint.Progress(step=2))
  assert f"a checkpoint in {path} could not be written: " in str(refused.value)
  assert "No space left on device. The one at step 1 is intact. Make room" in str(refused.value)
  checkpoints.close()
