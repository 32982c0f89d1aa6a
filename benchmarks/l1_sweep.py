"""How many wide weights does L1 leave, and what do they cost in AUC?

    python -m benchmarks.l1_sweep [--quick] --data_dir=../shared/data [--figure=l1_sweep.png]

The shipped Wide & Deep of a data set, and its wide part alone, trained with L1 penalties from none
to so much that hardly a weight is left. AUC is that of the validation split, as the penalty is
chosen by it; the test is not looked at. Counted are weights that are not zero, of all wide rows.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import tempfile
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import report
from jaxrec import tables as tables_lib
from jaxrec.config import experiment as experiment_lib
from jaxrec.config import presets
from jaxrec.data.views import wide_features
from jaxrec.runs import loop, open_run
from jaxrec.runs.process import host

_QUICK = flags.DEFINE_bool("quick", False, "Under a minute: three penalties, one seed.")
_DATASET = flags.DEFINE_string("dataset", "adult", "Data set with a config of its own.")
_DATA_DIR = flags.DEFINE_string("data_dir", "../shared/data", "Where its files lie.")
_FIGURE = flags.DEFINE_string("figure", None, "Where to draw AUC against weights.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each penalty.")

_PENALTIES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def run(model: str, l1: float, seed: int) -> dict[str, float]:
  """One run's validation AUC and the share of its wide weights that are not zero."""
  config = presets.for_dataset(_DATASET.value, "wide_deep")
  optimizer = dataclasses.replace(
    config.optimizer, ftrl=dataclasses.replace(config.optimizer.ftrl, l1=l1)
  )
  config = dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, data_dir=_DATA_DIR.value),
    model=dataclasses.replace(config.model, name=model),
    optimizer=optimizer,
    epochs=2.0 if _QUICK.value else config.epochs,
    refit=False,
    seed=seed,
    baseline_steps=0,
    test_examples=config.batch_size,  # which nobody looks at
  )
  with tempfile.TemporaryDirectory() as folder:
    result = loop.run(config, str(pathlib.Path(folder) / "run"))
    found = open_run.reopen(str(pathlib.Path(folder) / "run"), is_best=True)
  return {"auc": result["val_auc"], **_weights(config, found)}


def _weights(config: experiment_lib.ExperimentConfig, found: open_run.Reopened) -> dict[str, float]:
  tables, row_state = tables_lib.laid_out(
    found.state.tables, found.state.row_state, tables_lib.OneDevice()
  )
  (stack,) = (stack for stack in tables.plan.stacks if stack.optimizer == wide_features.OPTIMIZER)
  weights = np.asarray(tables.values[stack.name])
  _, n = row_state.rows[stack.name]
  is_seen = np.asarray(n) > np.float32(config.optimizer.ftrl.initial_accumulator)
  return {
    "nonzeros": int(np.count_nonzero(weights)),
    "seen": int(np.count_nonzero(is_seen)),
    "rows": weights.size,
  }


def draw(path: str, points: dict[str, list[dict[str, Any]]]) -> None:
  """Validation AUC against the number of weights, a line a model."""
  with report.drawing(path) as axes:
    for model, found in points.items():
      axes.errorbar(
        [max(1, one["nonzeros"]) for one in found],
        [one["auc"] for one in found],
        yerr=[one["auc_spread"] for one in found],
        marker="o",
        label=model,
      )
      for one in found:
        axes.annotate(f"{one['l1']:g}", (max(1, one["nonzeros"]), one["auc"]), fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("wide weights that are not zero (by the points: l1)")
    axes.set_ylabel("validation AUC")
    axes.legend()


def main(_: list[str]) -> None:
  """Runs the benchmark."""
  host.quiet_libraries()
  penalties = (0.0, 0.03, 0.3) if _QUICK.value else _PENALTIES
  seeds = 1 if _QUICK.value else _SEEDS.value
  points: dict[str, list[dict[str, Any]]] = {}
  for model in ("wide_deep", "wide"):
    for l1 in penalties:
      runs = [run(model, l1, seed) for seed in range(seeds)]
      aucs = [one["auc"] for one in runs]
      points.setdefault(model, []).append(
        {
          "l1": l1,
          "auc": round(statistics.mean(aucs), 5),
          "auc_spread": round(statistics.stdev(aucs), 5) if seeds > 1 else 0.0,
          **{name: round(statistics.mean(one[name] for one in runs))
             for name in ("nonzeros", "seen", "rows")},
        }
      )  # fmt: skip
  if _FIGURE.value:
    draw(_FIGURE.value, points)
  most, least = (points["wide_deep"][k]["nonzeros"] for k in (0, -1))
  report.finish(
    {
      "benchmark": "l1_sweep",
      "dataset": _DATASET.value,
      "points": points,
      "ratio": {"weights_without_to_with_most_l1": round(most / max(1, least), 2)},
      "peer": "none: the penalty is compared with none",
      "seeds": seeds,
    }
  )


if __name__ == "__main__":
  app.run(main)
