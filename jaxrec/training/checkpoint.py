"""Checkpoints: the whole state, the data's position, and the metrics it was judged by.

A thin layer over Orbax's CheckpointManager. A checkpoint is committed by one rename, so a kill at any
moment leaves the one before it. The latest and the best by validation AUC are kept.

Read next: jaxrec/training/loop.py.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

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
  """

  step: int = 0
  examples: int = 0
  best_step: int | None = None
  best_auc: float | None = None


class Checkpoints:
  """The checkpoints of one run, in ``directory/<step>``."""

  def __init__(self, directory: pathlib.Path):
    self.directory = directory
    keep = managers.AnyPreservationPolicy([
        managers.LatestN(1),
        managers.BestN(
            get_metric_fn=lambda values: values["auc"], n=1, keep_checkpoints_without_metrics=False
        ),
    ])
    options = ocp.CheckpointManagerOptions(preservation_policy=keep, cleanup_tmp_directories=True)
    try:
      self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
    except OSError as error:
      raise CheckpointError(f"cannot use {directory} for checkpoints: {error}") from error

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save(
      self,
      current: state.TrainState,
      window: metrics.WindowMetrics,
      progress: Progress,
      *,
      auc: float | None,
  ) -> None:
    """Begins to write; returns once the arrays may change. ``auc``: of the evaluation at this step.

    Raises:
      CheckpointError: this write, or the one still under way, failed; earlier checkpoints are intact.
    """
    try:
      self.wait()
      if progress.step in self._manager.all_steps():
        return
      self._manager.save(
          progress.step,
          args=ocp.args.Composite(
              state=ocp.args.StandardSave({"train": current, "window": window}),
              progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
          ),
          metrics=None if auc is None else {"auc": auc},
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

  def restore(self, step: int, like: Any) -> tuple[Any, metrics.WindowMetrics, Progress]:
    """The checkpoint of ``step``; ``like`` is the TrainState's shapes (``jax.eval_shape``).

    Raises:
      CheckpointError: it is damaged, or holds another model.
    """
    wanted = {"train": like, "window": jax.eval_shape(metrics.WindowMetrics.zeros)}
    try:
      found = self._manager.restore(
          step,
          args=ocp.args.Composite(
              state=ocp.args.StandardRestore(wanted), progress=ocp.args.JsonRestore()
          ),
      )
      return found["state"]["train"], found["state"]["window"], Progress(**found["progress"])
    except Exception as error:
      folder = self.directory / str(step)
      others = [s for s in self._manager.all_steps() if s != step]
      earlier = f" resumes from step {max(others)}" if others else " starts over"
      raise CheckpointError(
          f"checkpoint {folder} cannot be read: it is damaged or from another configuration "
          f"({_first_line(error)}). Move that folder away and the same command{earlier}; or start in a "
          "new folder with --fresh. Nothing was changed."
      ) from error

  def close(self) -> None:
    self._manager.close()

  def _write_error(self, error: Exception) -> CheckpointError:
    latest = self._manager.latest_step()
    intact = f"the one at step {latest} is intact" if latest is not None else "there is none before it"
    return CheckpointError(
        f"a checkpoint in {self.directory} could not be written: {_first_line(error)}. {intact}; make "
        "room on the disk, or choose another --workdir, and run the same command again."
    )


def _first_line(error: BaseException) -> str:
  text = str(error).strip().splitlines()
  return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
