"""Ends a run: with a test, a yardstick, curves and a result.

Read next: jaxrec/runs/workdir.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jaxrec.runs import metrics_writer, terminal, throughput
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.checkpoints import checkpoint
from jaxrec.runs.process import collectives
from jaxrec.runs.results import curves, logistic_baseline
from jaxrec.runs.setup import run as run_lib
from jaxrec.training import slices


def finish(
  run: run_lib.Run,
  test_fn: Callable[[], run_lib.Tested],
  progress: checkpoint.Progress,
  speed: throughput.Speed,
  writer: metrics_writer.MetricsWriter,
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
  linear = logistic_baseline.fit(run) if config.baseline_steps and collectives.is_first() else None
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
    known = [{name: metrics_writer.or_null(value) for name, value in one.items()} for one in found]
    details.setdefault("slices", {})[column] = known
  run.workdir.write_result(config, result, **details)
  possible = "" if run.ceiling is None else f" of {run.ceiling:.3f} possible"
  versus = "" if linear_auc is None else f" · logistic regression {linear_auc:.3f}"
  took = terminal.clock(seconds) if speed.num_steps else "(trained before)"
  run.terminal.line(f"done {took} · test auc {test['auc']:.3f}{possible}{versus}")
  following = f"python -m jaxrec.evaluate {run.workdir.path} --best --importance"
  if config.data.dataset == "synthetic":
    following = "--dataset=table --data_dir=YOUR.parquet --label=click"
  run.terminal.line(f"curves {curves_path} · next: {following}")
  return result


def _rounded(value: float | None) -> float | None:
  return None if value is None or not math.isfinite(value) else round(value, 6)
