"""Judges a checkpoint of a run: ``python -m jaxrec.evaluate runs/first --split=test --importance``.

Prints the exact metrics of the run's model on a split of its data and, with ``--importance``, what
each input contributes. The run is only read, and may still be training.

Read next: jaxrec/analysis/permutation_importance.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags

from jaxrec import config as config_lib
from jaxrec.analysis import permutation_importance
from jaxrec.data.views import view
from jaxrec.runs import open_run, saved_transforms, text_table
from jaxrec.runs.process import host
from jaxrec.runs.setup import run as run_lib

SPLITS = ("train", "val", "test")


def evaluate(
  path: str,
  *,
  split: str = "test",
  step: int | None = None,
  is_best: bool = False,
  num_examples: int | None = None,
  data_dir: str | None = None,
) -> dict[str, Any]:
  """Exact metrics of a run's checkpoint, as plain values; errors as ``open_run.reopen``.

  Args:
    path: the run's folder.
    split: ``train``, ``val`` or ``test``.
    step: of the checkpoint; None: the latest.
    is_best: takes the best evaluation's checkpoint instead; of a run that was refitted, the model
      that it has tested.
    num_examples: of the split, from the first on; 0: all of them; None: as many as the run itself
      evaluates.
    data_dir: a file or folder of new rows, all of them ``test``, instead of the run's data; which
      of them were left out, and why, is under ``bad_rows``.
  """
  found, source = _opened(path, split, step, is_best, num_examples, data_dir)
  return _report(path, found, split, source, data_dir)


def importances(
  path: str,
  *,
  repeats: int = 3,
  seed: int = 0,
  on_input: Callable[[permutation_importance.Input], None] = lambda which: None,
  **options: Any,
) -> dict[str, Any]:
  """``evaluate``, and under ``importance`` what each input contributes, the largest first.

  Args:
    path: the run's folder.
    repeats: permutations of each input.
    seed: of the permutations.
    on_input: called with each input as its turn comes.
    **options: those of ``evaluate``.
  """
  asked: dict[str, Any] = {
    "split": "test",
    "step": None,
    "is_best": False,
    "num_examples": None,
    "data_dir": None,
  }
  asked |= options
  found, source = _opened(path, **asked)
  measured = permutation_importance.measure(
    source,
    lambda permuted: _metrics(found, permuted),
    repeats=repeats,
    seed=seed,
    on_input=on_input,
  )
  rows = [
    {name: _finite(value) for name, value in dataclasses.asdict(row).items()} for row in measured
  ]
  report = _report(path, found, asked["split"], source, asked["data_dir"])
  return {**report, "repeats": repeats, "permutation_seed": seed, "importance": rows}


def _opened(
  path: str,
  split: str,
  step: int | None,
  is_best: bool,
  num_examples: int | None,
  data_dir: str | None,
) -> tuple[open_run.Reopened, permutation_importance.Evaluated]:
  """A run's checkpoint, and the examples to judge it by."""
  if is_best:
    path = str(saved_transforms.final_run(path))
  rows = None if data_dir is None else open_run.with_files(path, data_dir)
  found = open_run.reopen(path, step=step, is_best=is_best, dataset=rows)
  return found, evaluated(found.run, split, num_examples)


def evaluated(
  run: run_lib.Run, split: str, num_examples: int | None
) -> permutation_importance.Evaluated:
  """The examples of a split that are evaluated, with tables as the data set has them.

  Raises:
    ConfigError: no such split, or one without an end and no number of examples.
  """
  config_lib.require(
    split in SPLITS, f"--split: no split {split!r}; {config_lib.did_you_mean(split, SPLITS)}"
  )
  source = view.original(run.dataset)
  size = source.num_examples(split)
  if num_examples is None:
    wanted = run.config.test_examples if split == "test" else run.config.eval_examples
    batch_size = run.config.batch_size
    num_examples = -(-wanted // batch_size) * batch_size  # a run evaluates whole batches
  config_lib.require(num_examples >= 0, f"--num_examples: must be at least 0, got {num_examples}")
  config_lib.require(
    size is not None or num_examples > 0,
    f"--num_examples: split {split!r} has no end; say how many of its examples to evaluate",
  )
  count = num_examples or size or 0
  return permutation_importance.Evaluated(
    source, split, count if size is None else min(count, size)
  )


def _report(
  path: str,
  found: open_run.Reopened,
  split: str,
  source: permutation_importance.Evaluated,
  data_dir: str | None,
) -> dict[str, Any]:
  metrics = {name: _finite(value) for name, value in _metrics(found, source).items()}
  report = {"workdir": path, "step": found.progress.step, "split": split, "metrics": metrics}
  if data_dir is None:
    return report
  dataset: Any = view.original(found.run.dataset)  # the table at data_dir
  return {**report, "num_bad_rows": dataset.num_bad_rows, "bad_rows": dataset.bad_rows}


def _metrics(found: open_run.Reopened, source: Any) -> dict[str, float]:
  """The run's own evaluation on ``source``, whose ids are those of the original tables."""
  run = found.run
  judged = dataclasses.replace(run, dataset=view.around(run.dataset, source))
  return judged.evaluate(found.state, permutation_importance.IN_ORDER, 0)


def text(report: dict[str, Any]) -> str:
  """A report as people read it."""
  lines = [f"{report['workdir']} at step {report['step']}, split {report['split']}"]
  lines += text_table.aligned(
    [[name, "-" if value is None else f"{value:.6g}"] for name, value in report["metrics"].items()]
  )
  if bad_rows := report.get("bad_rows"):
    lines += ["", f"{report['num_bad_rows']:,} bad rows left out, the first: {bad_rows[0]}"]
  if "importance" in report:
    titles = ["input", "auc drop", "±", "logloss rise", "±"]
    rows = [
      [
        cell if isinstance(cell, str) else "-" if cell is None else f"{cell:.5f}"
        for cell in row.values()
      ]
      for row in report["importance"]
    ]
    lines += ["", *text_table.aligned([titles, *rows])]
    lines.append(
      f"Each input permuted across the split, {report['repeats']} times; ± is the standard "
      "deviation over them."
    )
  return "\n".join(lines)


def _finite(value: Any) -> Any:
  return value if not isinstance(value, float) or math.isfinite(value) else None


def define_flags() -> None:
  """The command's flags; not on import, where they would meet those of other programs."""
  flags.DEFINE_string("split", "test", "Split to evaluate on: train, val or test.")
  flags.DEFINE_integer("step", None, "Step of the checkpoint to read; the latest if not given.")
  flags.DEFINE_bool("best", False, "Read the checkpoint of the best evaluation.")
  flags.DEFINE_integer("num_examples", None, "Examples of the split; 0: all; else as the run.")
  flags.DEFINE_bool("importance", False, "Also print the permutation importance of each input.")
  flags.DEFINE_integer("repeats", 3, "Permutations of each input.")
  flags.DEFINE_integer("permutation_seed", 0, "Seed of the permutations.")
  flags.DEFINE_string(
    "new_data_dir", None, "New rows to evaluate: a file or folder, as --dataset=table."
  )
  flags.DEFINE_bool("json", False, "Print one JSON object.")


def main(argv: list[str]) -> int:
  """Runs the command line; the exit code."""
  given = flags.FLAGS
  if len(argv) != 2:
    raise app.UsageError("expected one folder: python -m jaxrec.evaluate WORKDIR")
  if given.best and given.step is not None:
    raise app.UsageError("give --step or --best, not both")
  host.quiet_libraries()
  host.repeat_bits_on_gpu()
  options = {
    "split": given.split,
    "step": given.step,
    "is_best": given.best,
    "num_examples": given.num_examples,
    "data_dir": given.new_data_dir,
  }
  try:
    if given.importance:
      report = importances(argv[1], **options, repeats=given.repeats, seed=given.permutation_seed)
    else:
      report = evaluate(argv[1], **options)
  except open_run.ERRORS as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(json.dumps(report) if given.json else text(report), flush=True)
  return 0


if __name__ == "__main__":
  define_flags()
  app.run(main)
