"""What a run leaves behind: metrics as they come, and at the end a test, curves and a result.

Read next: jaxrec/training/workdir.py.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from jaxrec.training import baseline, checkpoint, curves, processes, setup, slices
from jaxrec.training import progress as progress_lib
from jaxrec.training import speed as speed_lib
from jaxrec.training import workdir as workdir_lib


class MetricsWriter:
  """One line a reading to ``metrics.jsonl``, and the same figures to TensorBoard.

  Not by tensorboardX's SummaryWriter: a full disk would end its thread, and then block the run.
  """

  def __init__(self, workdir: workdir_lib.Workdir, *, start: int):
    """``start``: steps made before; TensorBoard forgets what an earlier start wrote after them."""
    self._workdir = workdir
    self._folder = workdir.path / "tensorboard"
    with workdir_lib.writing(self._folder):
      self._folder.mkdir(exist_ok=True)
      self._events = event_file_writer.EventsWriter(str(self._folder / "events"), f".{start}")
    restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(event_pb2.Event(wall_time=time.time(), step=start + 1, session_log=restart))

  def write(self, step: int, split: str, figures: dict[str, float]) -> None:
    known = {name: _or_null(value) for name, value in figures.items()}
    self._workdir.append_metrics({"step": step, "split": split, **known})
    self._add(
      *(
        event_pb2.Event(
          wall_time=time.time(), step=step, summary=summary.scalar(f"{split}/{name}", value)
        )
        for name, value in known.items()
        if value is not None
      )
    )

  def close(self) -> None:
    with contextlib.suppress(OSError):  # nothing is unwritten but what has failed to be
      self._events.close()

  def _add(self, *events: event_pb2.Event) -> None:
    with workdir_lib.writing(self._folder):
      for event in events:
        self._events.write_event(event)
      self._events.flush()


def finish(
  run: setup.Run,
  test_fn: Callable[[], setup.Tested],
  progress: checkpoint.Progress,
  speed: speed_lib.Speed,
  writer: MetricsWriter,
) -> dict[str, Any]:
  """Tests once, by ``test_fn``, fits the yardstick, draws the curves, writes the result last."""
  if progress.step < run.config.steps:
    run.terminal.line(
      f"stopped early at step {progress.step}: no better AUC in {progress.stale_evaluations} "
      "evaluations"
    )
  config = run.config
  seconds, examples_per_s = speed.seconds(), speed.examples_per_s()
  test, by_value = test_fn()
  writer.write(progress.best_step or progress.step, "test", test)
  linear = baseline.fit(run) if config.baseline_steps and processes.is_first() else None
  linear_auc = None if linear is None else linear["auc"]
  curves_path = run.workdir.path / "curves.png"
  with workdir_lib.writing(curves_path):
    curves.plot_curves(
      run.workdir.metrics_path, curves_path, auc_ceiling=run.ceiling, logistic_auc=linear_auc
    )
  result = {
    "dataset": config.data.dataset,
    "model": config.model.name,
    "seed": config.seed,
    "steps": progress.step,
    "best_step": progress.best_step,
    "auc": _rounded(test["auc"]),
    "val_auc": _rounded(progress.best_auc),
    "auc_ceiling": _rounded(run.ceiling),
    "logloss": _rounded(test["logloss"]),
    "ne": _rounded(test["ne"]),
    "calibration": _rounded(test["calibration"]),
    "examples_per_s": round(examples_per_s) if speed.num_steps else None,
    "workdir": str(run.workdir.path),
  }
  details: dict[str, Any] = {
    "tested_with": run.tested_with, "test": test, "logistic_regression": linear
  }  # fmt: skip
  for column, found in by_value.items():
    for line in slices.table(column, found):
      run.terminal.line(line)
    known = [{name: _or_null(value) for name, value in one.items()} for one in found]
    details.setdefault("slices", {})[column] = known
  run.workdir.write_result(config, result, **details)
  possible = "" if run.ceiling is None else f" of {run.ceiling:.3f} possible"
  versus = "" if linear_auc is None else f" · logistic regression {linear_auc:.3f}"
  took = progress_lib.clock(seconds) if speed.num_steps else "(trained before)"
  run.terminal.line(f"done {took} · test auc {test['auc']:.3f}{possible}{versus}")
  following = f"python -m jaxrec.evaluate {run.workdir.path} --best --importance"
  if config.data.dataset == "synthetic":
    following = "--dataset=table --data_dir=YOUR.parquet --label=click"
  run.terminal.line(f"curves {curves_path} · next: {following}")
  return result


def _or_null(value: Any) -> Any:
  """``value``, or None for a number that JSON has not."""
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _rounded(value: float | None) -> float | None:
  return None if value is None or not math.isfinite(value) else round(value, 6)
