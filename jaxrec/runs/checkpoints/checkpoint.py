"""Checkpoints: the whole state, the data's position, and the metrics it was judged by.

A thin layer over Orbax's CheckpointManager. A checkpoint is committed by one rename, so a kill at
any moment leaves the one before it. The latest and the best by validation AUC are kept; which is
best is read from ``Progress``, because Orbax forgets metrics when a run resumes.

Read next: jaxrec/runs/loop.py.
"""

from __future__ import annotations

import dataclasses
import errno
import gc
import math
import os
import pathlib
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxrec import sharding
from jaxrec import tables as tables_lib
from jaxrec.runs.checkpoints import restore_rows, state_layout
from jaxrec.training import metrics, state


class CheckpointError(RuntimeError):
  """A checkpoint that cannot be written or read; the message names its folder and what to do."""


@dataclasses.dataclass(frozen=True)
class Progress:
  """Where a run stands; everything beside the arrays that a resumed run must know.

  Attributes:
    step: updates made.
    examples: examples trained, the position in the data.
    best_step: step of the best evaluation so far, or None.
    best_auc: its validation AUC.
    stale_evaluations: evaluations since the last that was better than all before it.
  """

  step: int = 0
  examples: int = 0
  best_step: int | None = None
  best_auc: float | None = None
  stale_evaluations: int = 0

  def trained(self, num_examples: int) -> Progress:
    """One step later."""
    return dataclasses.replace(self, step=self.step + 1, examples=self.examples + num_examples)

  def judged(self, auc: float) -> Progress:
    """After an evaluation at this step.

    Of two equals the later is best, though no better, so it is stale. Any number beats NaN.
    """
    best = -math.inf if self.best_auc is None or math.isnan(self.best_auc) else self.best_auc
    stale = dataclasses.replace(
      self, stale_evaluations=0 if auc > best else self.stale_evaluations + 1
    )
    if self.best_auc is None or math.isnan(self.best_auc) or auc >= self.best_auc:
      return dataclasses.replace(stale, best_step=self.step, best_auc=auc)
    return stale


@dataclasses.dataclass
class _LatestAndBest:
  """What Orbax keeps: its latest checkpoint and the one of ``best_step``."""

  best_step: int | None = None

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    latest = max(found.step for found in checkpoints)
    return [found.step in (latest, self.best_step) for found in checkpoints]


class Checkpoints:
  """The checkpoints of one run, in ``directory/<step>``."""

  def __init__(self, directory: pathlib.Path, *, read_only: bool = False):
    """``read_only``: nothing can be saved or is cleaned up, so the run may still be training."""
    self.directory = directory
    self._read_only = read_only
    self._kept = _LatestAndBest()
    if not isinstance(sys.unraisablehook, _WithoutAbandonedTransfers):
      sys.unraisablehook = _WithoutAbandonedTransfers(sys.unraisablehook)
    if read_only:  # without Orbax's own option of this name: it logs a warning whenever it is set
      options = ocp.CheckpointManagerOptions(create=False, enable_async_checkpointing=False)
    else:
      options = ocp.CheckpointManagerOptions(
        preservation_policy=self._kept, cleanup_tmp_directories=True
      )
    try:
      self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
    except Exception as error:
      raise CheckpointError(
        f"cannot use {directory} for checkpoints: {_reason(error)}; choose another --workdir"
      ) from error

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save(
    self,
    current: state.TrainState,
    window: metrics.WindowMetrics,
    progress: Progress,
  ) -> None:
    """Begins to write; returns once the arrays may change.

    Raises:
      CheckpointError: this write, or the one still under way, failed; earlier ones are intact.
    """
    if self._read_only:
      raise CheckpointError(f"{self.directory} was opened to be read; nothing is saved there")
    try:
      self.wait()
      self._kept.best_step = progress.best_step
      rows, rest = state_layout.taken_apart(current)
      in_pieces = jax.tree.map(
        lambda _: ocp.SaveArgs(chunk_byte_size=restore_rows.PIECE_BYTES), rows
      )
      self._manager.save(
        progress.step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave({"train": rest, "window": window}),
          tables=ocp.args.StandardSave(rows, save_args=in_pieces),
          row_map=ocp.args.JsonSave(state_layout.map_of(current).to_json()),
          progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
        ),
        force=True,
      )
    except CheckpointError:
      raise
    except Exception as error:
      raise self._write_error(error) from error

  def wait(self) -> None:
    """Returns when everything begun is on disk."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._write_error(error) from error

  def restore(
    self, step: int, like: Any, *, num_labels: int = 1
  ) -> tuple[Any, metrics.WindowMetrics, Progress]:
    """The checkpoint of ``step``; ``like`` is the TrainState's shapes (``jax.eval_shape``).

    Tables come back where ``like`` has them, however they lay when they were saved.

    Raises:
      CheckpointError: it is damaged, or holds another model.
    """
    rows, rest = state_layout.taken_apart(like)
    where, rows = like.tables.placement, jax.tree.map(_placed, rows)

    def read() -> tuple[Any, metrics.WindowMetrics, Progress]:
      found = self._restored(step, rest, where, num_labels)
      before, now = sharding.RowMap.from_json(found["row_map"]), state_layout.map_of(like)
      if before == now:
        args = ocp.args.Composite(tables=ocp.args.StandardRestore(rows))
        arrays = self._manager.restore(step, args=args)["tables"]
      else:
        arrays = restore_rows.read(self._rows_of(step), before, rows, now, where)
      train = state_layout.put_together(like, arrays, found["state"]["train"])
      return train, found["state"]["window"], Progress(**found["progress"])

    return self._or_damaged(step, read)

  def follow(
    self,
    step: int,
    like: Any,
    current: state.TrainState,
    old_ids: Mapping[str, np.ndarray],
    *,
    num_labels: int = 1,
  ) -> state.TrainState:
    """``current``, which is given up, going on from the checkpoint of ``step``, of another run.

    Rows with an id there have its values and moments; layers, their optimizer's state and the row
    optimizer's globals are those of the checkpoint, and must have the same shapes. Fingerprints
    stay as they are, and are to be made anew.

    Args:
      step: of the checkpoint.
      like: the shapes of its TrainState.
      current: its step, its key and all other rows stay.
      old_ids: by name of a table, i32[V]: the id that each id has there; -1: none.
      num_labels: of the checkpoint.

    Raises:
      CheckpointError: it is damaged.
    """
    rows, rest = state_layout.taken_apart(current)
    where, wanted = current.tables.placement, state_layout.taken_apart(like)[1]
    if isinstance(where, sharding.Sharded):
      wanted = sharding.placed(wanted, where)
    words = {"words": rows.pop("words")} if "words" in rows else {}

    def read() -> state.TrainState:
      found = self._restored(step, wanted, where, num_labels)
      before, now = sharding.RowMap.from_json(found["row_map"]), state_layout.map_of(current)
      arrays = restore_rows.follow(self._rows_of(step), before, rows, now, where, old_ids)
      own = {name: rest[name] for name in ("step", "rng", "planes")}
      train = found["state"]["train"] | own
      return state_layout.put_together(current, arrays | words, train)

    return self._or_damaged(step, read)

  def _rows_of(self, step: int) -> pathlib.Path:
    return self.directory / str(step) / "tables"

  def _restored(
    self, step: int, rest: dict[str, Any], where: tables_lib.Placement, num_labels: int
  ) -> Any:
    """All items but the arrays of rows; ``rest`` is that part of a state, or its shapes."""
    window = jax.eval_shape(lambda: metrics.WindowMetrics.zeros(num_labels))
    if isinstance(where, sharding.Sharded):
      window = sharding.placed(window, where)
    wanted = jax.tree.map(_placed, {"train": rest, "window": window})
    json = ocp.args.JsonRestore()
    return self._manager.restore(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted), row_map=json, progress=json),
    )

  def _or_damaged(self, step: int, read: Callable[[], Any]) -> Any:
    """``read()``, whose errors become a CheckpointError that says what to do."""
    try:
      return read()
    except Exception as error:
      reason = _reason(error)
    with warnings.catch_warnings(action="ignore"):
      gc.collect()  # ends abandoned reads now, and not at exit
    others = [found for found in self.steps() if found != step]
    earlier = f" resumes from step {max(others)}" if others else " starts over"
    raise CheckpointError(
      f"checkpoint {self.directory / str(step)} cannot be read: it is damaged or from another "
      f"configuration ({reason}). Move that folder away and the same command{earlier}; or start in "
      "a new folder with --fresh. Nothing was changed."
    )

  def progress(self, step: int) -> Progress:
    """Where the run stood at ``step``, without its arrays; errors as ``restore``."""
    try:
      args = ocp.args.Composite(progress=ocp.args.JsonRestore())
      return Progress(**self._manager.restore(step, args=args)["progress"])
    except Exception as error:
      raise CheckpointError(
        f"checkpoint {self.directory / str(step)} cannot be read: {_reason(error)}"
      ) from error

  def steps(self) -> list[int]:
    """Steps of the checkpoints on disk."""
    return _steps_in(self.directory)

  def tidy(self, progress: Progress) -> None:
    """Deletes what a kill left over: checkpoints, whole or not, that ``progress`` does not need."""
    kept = (progress.step, progress.best_step)
    stale = [] if self._read_only else [step for step in self.steps() if step not in kept]
    if jax.process_count() > 1:  # all have looked before the first deletes
      multihost_utils.sync_global_devices("tidy")
    for step in stale:
      self._manager.delete(step)

  def close(self) -> None:
    """Returns when everything begun is on disk; what could not be written is removed."""
    try:
      self._manager.close()
    except Exception as error:
      raise self._write_error(error) from error
    finally:
      is_idle = self._read_only or jax.process_index() > 0
      for unfinished in () if is_idle else self.directory.glob("*.orbax-checkpoint-tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)

  def _write_error(self, error: Exception) -> CheckpointError:
    steps = self.steps()
    intact = f"The one at step {steps[-1]} is intact" if steps else "There is none before it"
    return CheckpointError(
      f"a checkpoint in {self.directory} could not be written: {_reason(error)}. {intact}. "
      "Make room on the disk, or choose another --workdir, and run the same command again."
    )


def latest_step(directory: pathlib.Path) -> int:
  """The step of the latest whole checkpoint in ``directory``, 0 if there is none; only looks."""
  return max(_steps_in(directory), default=0)


def _steps_in(directory: pathlib.Path) -> list[int]:
  """Steps of the checkpoints on disk: a folder has its bare number once it is whole."""
  return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())


def _placed(like: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """``like`` with a device, so that Orbax does not take the one it was saved on."""
  sharding = like.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding)


class _WithoutAbandonedTransfers:
  """A ``sys.unraisablehook`` for Orbax: when one array fails, it abandons all the others.

  Each of them would print a traceback of its own.
  """

  def __init__(self, show: Callable[[Any], Any]):
    self._show = show

  def __call__(self, unraisable: Any) -> None:
    complaints = ("Event loop is closed", "was never awaited", "while reading array index")
    if not any(complaint in str(unraisable.exc_value) for complaint in complaints):
      self._show(unraisable)


def _reason(error: BaseException) -> str:
  """What the system said, if it did, from the depths of a message; else its first line."""
  for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
    if os.strerror(number) in str(error):
      return os.strerror(number)
  text = str(error).strip().splitlines()
  return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
