"""What does a long history say, and does ETA hear it?

    python -m benchmarks.histories --part=test [--quick] [--data_dir=../shared/data] [--workdir=DIR]

ETA and the models that it is measured against, on Online Retail's customers of 200 purchases or
more, by the same trainer, the same embeddings, MLP and optimizers:

    grid      every model over one grid of rates and dropout; the best by validation AUC
    test      every model as shipped, that is as the grid chose; no other part looks at the test
    lengths   validation AUC against how much of the history is seen
    bits      validation AUC against the fingerprints' bits, beside hyperplanes redrawn in each pass
    parts     validation AUC without products, without counts, and without both

Runs are kept in ``--workdir``, and one that has been made is not made again.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import statistics
import tempfile
from collections.abc import Iterable
from typing import Any

from absl import app, flags

from benchmarks import redrawn, report
from jaxrec.config import experiment as experiment_lib
from jaxrec.config import overrides, presets
from jaxrec.runs import loop, terminal
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.process import host
from jaxrec.runs.results import results as results_lib
from jaxrec.runs.setup import run as run_lib

PARTS = ("grid", "test", "lengths", "bits", "parts")
_PART = flags.DEFINE_enum("part", "test", PARTS, "Which of the questions.")
_QUICK = flags.DEFINE_bool("quick", False, "Under a minute: 60 steps, one seed, two points.")
_DATA_DIR = flags.DEFINE_string("data_dir", "../shared/data", "Where the data set's files lie.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where runs are kept; None: nowhere.")
_MODELS = flags.DEFINE_list("models", None, "Which models; None: all that the part compares.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each setting, but of the grid's.")
_FIGURE = flags.DEFINE_string("figure", None, "Where to draw lengths or bits.")

_GRID = {
  "optimizer.table_learning_rate": ("0.01", "0.02", "0.04"),
  "optimizer.learning_rate": ("0.0005", "0.002"),
  "model.dropout": ("0", "0.3"),
}
_LENGTHS = (50, 100, 256, 1024, 4096)
_BITS = (4, 8, 16, 32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run: the model, what differs from its shipped config, and whether its hash is redrawn."""

  model: str
  sets: tuple[str, ...]
  seed: int = 0
  is_redrawn: bool = False
  is_tested: bool = False

  def config(self) -> experiment_lib.ExperimentConfig:
    """The shipped config of the model, with what is to differ."""
    config = presets.for_dataset("online_retail", self.model)
    fixed = [
      f"data.data_dir={_DATA_DIR.value}",
      f"model.name={self.model}",
      f"seed={self.seed}",
      "baseline_steps=0",
      f"test_examples={0 if self.is_tested else config.batch_size}",  # which nobody looks at
    ]
    if _QUICK.value:
      fixed += ["epochs=0", "steps=60", "eval_every=60", "eval_examples=4096"]
    return overrides.with_overrides(config, [*self.sets, *fixed])

  def name(self) -> str:
    changed = [text.replace("/", "_") for text in self.sets]
    kind = ["redrawn"] if self.is_redrawn else []
    return ",".join([self.model, *kind, *changed, f"seed={self.seed}", f"test={self.is_tested}"])


def run(trial: Trial, folder: pathlib.Path) -> dict[str, Any]:
  """The result of a run, made in ``folder`` unless it has been."""
  config, path = trial.config(), str(folder / trial.name())
  if not trial.is_redrawn:
    return loop.run(config, path)
  workdir = workdir_lib.Workdir(path)
  done = workdir.result(config)
  if done is not None:
    return done
  parts = run_lib.prepare(config, workdir, terminal.silent())
  how = config.model.history
  search = redrawn.RedrawnSearch(how.k, how.num_bits or 2 * config.model.embedding_dim)
  parts = dataclasses.replace(parts, model=parts.model.clone(search=search))
  with loop.trained(parts, config) as trained:
    return results_lib.finish(parts, trained.test, trained.progress, trained.speed, trained.writer)


def summary(trials: Iterable[Trial], folder: pathlib.Path) -> dict[str, Any]:
  """Mean and spread of the AUCs of runs that differ in their seed."""
  trials = list(trials)
  results = [run(trial, folder) for trial in trials]
  found: dict[str, Any] = {"steps": [one["best_step"] for one in results]}
  for name in ("val_auc", "auc") if trials[0].is_tested else ("val_auc",):
    values = [one[name] for one in results]
    found[name] = round(statistics.mean(values), 5)
    found[f"{name}_spread"] = [round(min(values), 5), round(max(values), 5)]
  return found


def seeds() -> range:
  """Of each setting's runs."""
  return range(1 if _QUICK.value else _SEEDS.value)


def models(*known: str) -> list[str]:
  """Those of ``known`` that were asked for."""
  return [name for name in known if _MODELS.value is None or name in _MODELS.value]


def grid(folder: pathlib.Path) -> dict[str, Any]:
  """By model: the best point, and validation AUC at every point."""
  found = {}
  points = [
    tuple(f"{key}={value}" for key, value in zip(_GRID, values, strict=True))
    for values in itertools.product(*_GRID.values())
  ]
  for model in models("eta", "din", "full_attention", "average_pooling"):
    aucs = {
      ", ".join(point): run(Trial(model, point), folder)["val_auc"]
      for point in points[:: len(points) - 1 if _QUICK.value else 1]
    }
    found[model] = {"best": max(aucs, key=lambda point: aucs[point]), "val_auc": aucs}
  return found


def test(folder: pathlib.Path) -> dict[str, Any]:
  """By model: validation and test AUC."""
  found = {
    model: summary([Trial(model, (), seed, is_tested=True) for seed in seeds()], folder)
    for model in models("eta", "full_attention", "din", "average_pooling")
  }
  if {"eta", "full_attention", "din"} <= set(found):
    eta, full, din = (found[model]["auc"] for model in ("eta", "full_attention", "din"))
    found["differences"] = {"eta - din": round(eta - din, 5), "full - eta": round(full - eta, 5)}
  return found


def lengths(folder: pathlib.Path) -> dict[str, Any]:
  """By model and L: all see the last L steps; but ETA alone 4,096, which the others would read for
  hours on a small machine.
  """
  found: dict[str, Any] = {}
  for model in models("eta", "full_attention", "din"):
    of_model = _LENGTHS if model == "eta" else _LENGTHS[:-1]
    found[model] = {
      length: summary([Trial(model, _of_length(model, length), seed) for seed in seeds()], folder)
      for length in of_model[: 2 if _QUICK.value else None]
    }
  return found


def _of_length(model: str, length: int) -> tuple[str, ...]:
  seen = f"data.events.history_length={length}"
  asked = (f"model.history.short_length={length}",) if model == "din" else ()
  return (seen, *asked)


def bits(folder: pathlib.Path) -> dict[str, Any]:
  """ETA by number of bits, with hyperplanes that stay and with such as are redrawn."""
  return {
    name: {
      num: summary(
        [Trial("eta", (f"model.history.num_bits={num}",), seed, is_redrawn) for seed in seeds()],
        folder,
      )
      for num in (_BITS[:2] if _QUICK.value else _BITS)
    }
    for name, is_redrawn in (("fixed", False), ("redrawn", True))
  }


def parts(folder: pathlib.Path) -> dict[str, Any]:
  """By model: what products and counts are worth."""
  no_product, no_counts = "model.history.has_product=false", "model.history.kernels="
  changes = {
    "both": (),
    "no counts": (no_counts,),
    "no product": (no_product,),
    "neither": (no_product, no_counts),
  }
  return {
    model: {
      name: summary([Trial(model, sets, seed) for seed in seeds()], folder)
      for name, sets in changes.items()
    }
    for model in models("eta", "full_attention", "din", "average_pooling")
  }


def draw(path: str, found: dict[str, Any], label: str) -> None:
  """Validation AUC against ``label``, a line each of ``found``."""
  with report.drawing(path) as axes:
    for name, points in found.items():
      means = [one["val_auc"] for one in points.values()]
      ends = [one["val_auc_spread"] for one in points.values()]
      below = [mean - low for mean, (low, _) in zip(means, ends, strict=True)]
      above = [high - mean for mean, (_, high) in zip(means, ends, strict=True)]
      axes.errorbar(list(points), means, yerr=[below, above], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel(label)
    axes.set_ylabel("validation AUC")
    axes.legend()


def main(_: list[str]) -> None:
  """Runs the benchmark."""
  host.quiet_libraries()
  host.keep_large_allocations()
  part = _PART.value
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(_WORKDIR.value or temporary) / ("quick" if _QUICK.value else "whole")
    makers = {"grid": grid, "test": test, "lengths": lengths, "bits": bits, "parts": parts}
    found = makers[part](folder)
  if _FIGURE.value:
    draw(_FIGURE.value, found, {"lengths": "steps seen", "bits": "bits"}[part])
  report.finish(
    {
      "benchmark": "histories",
      "part": part,
      "found": found,
      "peer": "the models beside ETA; 'bought within the last 1,000' alone has a test AUC of 0.709",
      "seeds": 1 if part == "grid" else len(seeds()),
    }
  )


if __name__ == "__main__":
  app.run(main)
