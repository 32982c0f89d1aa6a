"""What is a warm start worth, when next month has another vocabulary?

    python -m benchmarks.warm_start [--quick] --data_dir=../shared/data [--figure=warm_start.png]

MovieTweetings by time: a model is trained on the first ratings, then another on the ratings of the
month after them, with the people and movies of that month, once from nothing and once from the
first model. Both see the same batches; the log loss is that of the month's latest tenth, at step 0
and as training goes on. No test part is looked at.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import tempfile
from typing import Any

import jax
import pyarrow.compute as pc
from absl import app, flags

from benchmarks import report
from jaxrec import data
from jaxrec.config import experiment as experiment_lib
from jaxrec.config import presets
from jaxrec.data.datasets import movietweetings
from jaxrec.data.readers import files
from jaxrec.runs import loop, terminal, warm_start, workdir
from jaxrec.runs.process import host
from jaxrec.runs.setup import run as run_lib

_QUICK = flags.DEFINE_bool("quick", False, "Under a minute: fewer ratings and steps, one seed.")
_DATA_DIR = flags.DEFINE_string("data_dir", "../shared/data", "Where the ratings lie.")
_FIGURE = flags.DEFINE_string("figure", None, "Where to draw the losses.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Pairs of runs.")

_MONTH_S = 30 * 24 * 3600
_FIRST_SHARE = 0.6  # of all ratings: the first model's


def config(seed: int) -> experiment_lib.ExperimentConfig:
  """The shipped config, as Wide & Deep."""
  found = presets.get("movietweetings")
  return dataclasses.replace(
    found,
    data=dataclasses.replace(found.data, data_dir=_DATA_DIR.value, test_fraction=0.0),
    model=dataclasses.replace(found.model, name="wide_deep"),
    epochs=1.0 if _QUICK.value else 3.0,
    eval_every=0,
    refit=False,
    seed=seed,
    baseline_steps=0,
  )


def months(settings: experiment_lib.DataConfig) -> tuple[data.StoredTable, data.StoredTable]:
  """The first ratings, and those of the month after."""
  paths = [files.find(settings, n) for n in (movietweetings.RATINGS, movietweetings.MOVIES)]
  ratings = movietweetings.ratings(*paths)
  cut = ratings["ts"][int(_FIRST_SHARE * len(ratings))].as_py()
  earlier = ratings.filter(pc.less(ratings["ts"], cut))
  later = pc.and_(pc.greater_equal(ratings["ts"], cut), pc.less(ratings["ts"], cut + _MONTH_S))
  if _QUICK.value:
    earlier = earlier.slice(len(earlier) - 10_000)
  width = presets.get("movietweetings").model.embedding_dim
  made = [
    data.from_arrow(
      rows,
      label="liked",
      schema=movietweetings.schema(settings),
      embedding_dim=width,
      val_fraction=0.1,
      test_fraction=0.0,
    )
    for rows in (earlier, ratings.filter(later))
  ]
  return made[0], made[1]


def losses(run: run_lib.Run, state: Any, at: list[int]) -> list[float]:
  """Validation log loss at each of the steps ``at``."""
  step, found = jax.jit(run.step_fn(), donate_argnums=0), []
  batches = run.train_batches(0, at[-1])
  for number in range(at[-1] + 1):
    if number in at:
      found.append(run.evaluate(state, "val", 0)["logloss"])
    if number < at[-1]:
      state, _ = step(state, next(batches))
  return found


def compare(seed: int, at: list[int]) -> dict[str, Any]:
  """Both starts with one seed, and the report on rows."""
  settings = config(seed)
  first, month = months(settings.data)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    loop.run(settings, str(path / "first"), dataset=first)
    run = run_lib.build(settings, workdir.Workdir(path / "next"), terminal.silent(), month)
    warm, rows = warm_start.warm_start(run, path / "first")
  return {
    "cold": losses(run, run.initial_state(), at),
    "warm": losses(run, warm, at),
    "rows": {one.table: [one.kept, one.new, one.dropped] for one in rows},
    "ratings": [first.num_examples("train"), month.num_examples("train")],
  }


def draw(path: str, at: list[int], found: list[dict[str, Any]]) -> None:
  """Log loss by step, a line a start, thin ones a seed."""
  with report.drawing(path) as axes:
    for kind, colour in (("cold", "tab:blue"), ("warm", "tab:orange")):
      runs = [one[kind] for one in found]
      for one in runs:
        axes.plot(at, one, color=colour, alpha=0.25)
      axes.plot(at, [statistics.mean(x) for x in zip(*runs, strict=True)], color=colour, label=kind)
    axes.set_xlabel("steps on the next month")
    axes.set_ylabel("validation log loss")
    axes.legend(title="start")


def main(_: list[str]) -> None:
  """Runs the benchmark."""
  host.quiet_libraries()
  at = [0, 10] if _QUICK.value else [0, 5, 10, 20, 40, 80, 120]
  seeds = 1 if _QUICK.value else _SEEDS.value
  found = [compare(seed, at) for seed in range(seeds)]
  if _FIGURE.value:
    draw(_FIGURE.value, at, found)
  mean = {
    kind: [round(statistics.mean(x), 4) for x in zip(*(one[kind] for one in found), strict=True)]
    for kind in ("cold", "warm")
  }
  report.finish(
    {
      "benchmark": "warm_start",
      "steps": at,
      "logloss": mean,
      "rows_kept_new_dropped": found[0]["rows"],
      "ratings": found[0]["ratings"],
      "ratio": {
        "warm_to_cold_at_0": round(mean["warm"][0] / mean["cold"][0], 3),
        "warm_to_cold_at_last": round(mean["warm"][-1] / mean["cold"][-1], 3),
      },
      "peer": "a cold start of the same model on the same batches",
      "seeds": seeds,
    }
  )


if __name__ == "__main__":
  app.run(main)
