"""What a run leaves behind: metrics as they come, and at the end a test, curves and a result.

Read next: jaxrec/training/workdir.py.
"""

from __future__ import annotations

import math
from typing import Any

import tensorboardX

from jaxrec.training import baseline, checkpoint, curves, setup, state
from jaxrec.training import evaluation
from jaxrec.training import progress as progress_lib
from jaxrec.training import speed as speed_lib
from jaxrec.training import workdir as workdir_lib


class MetricsWriter:
  """One line a reading to ``metrics.jsonl``, and the same figures to TensorBoard."""

  def __init__(self, workdir: workdir_lib.Workdir):
    self._workdir = workdir
    self._board = tensorboardX.SummaryWriter(str(workdir.path / "tensorboard"), flush_secs=5)

  def write(self, step: int, split: str, figures: dict[str, float]) -> None:
    known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    self._workdir.append_metrics({"step": step, "split": split, **known})
    for name, value in figures.items():
      self._board.add_scalar(f"{split}/{name}", value, step)

  def close(self) -> None:
    self._board.close()


def finish(
    run: setup.Run,
    best: state.TrainState,
    progress: checkpoint.Progress,
    speed: speed_lib.Speed,
) -> dict[str, Any]:
  """Tests ``best`` once, fits the yardstick, draws the curves, writes the result last."""
  config, started = run.config, speed.seconds()
  test = evaluation.evaluate(
      run.model,
      best,
      run.eval_batches("test", config.test_examples),
      label=run.spec.labels[0],
      group=next(iter(run.spec.groups), None),
  )
  linear = baseline.fit(run) if config.baseline_steps else None
  linear_auc = None if linear is None else linear["auc"]
  curves_path = run.workdir.path / "curves.png"
  curves.plot_curves(
      run.workdir.metrics_path, curves_path, auc_ceiling=run.ceiling, logistic_auc=linear_auc
  )
  result = {
      "dataset": config.data.dataset,
      "model": config.model.name,
      "seed": config.seed,
      "steps": config.steps,
      "best_step": progress.best_step,
      "auc": _rounded(test["auc"]),
      "val_auc": _rounded(progress.best_auc),
      "auc_ceiling": _rounded(run.ceiling),
      "logloss": _rounded(test["logloss"]),
      "ne": _rounded(test["ne"]),
      "calibration": _rounded(test["calibration"]),
      "examples_per_s": round(speed.examples_per_s()),
      "workdir": str(run.workdir.path),
  }
  possible = "" if run.ceiling is None else f" of {run.ceiling:.3f} possible"
  versus = "" if linear_auc is None else f" · logistic regression {linear_auc:.3f}"
  run.terminal.line(
      f"done {progress_lib.clock(started)} · test auc {test['auc']:.3f}{possible}{versus}"
  )
  run.terminal.line(f"curves {curves_path} · next: --model=dlrm_dcnv2 --workdir=runs/dcnv2")
  run.workdir.write_result(result, test=test, logistic_regression=linear)
  return result


def _rounded(value: float | None) -> float | None:
  return None if value is None or not math.isfinite(value) else round(value, 6)
