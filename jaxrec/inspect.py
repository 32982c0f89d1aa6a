"""Looks into the tables of a run: ``python -m jaxrec.inspect runs/first``.

For each table of a checkpoint: how many rows training has touched, how many are dead and how many
are zero, as L1 leaves them, the norms of its rows, and how skewed the run's own data is. A table
that is mostly dead is too large for its data, or hashed badly; norms that tower over the others are
the first sign of a rate that is too high. The run is only read, and may still be training.

Read next: jaxrec/tables/statistics.py, jaxrec/inputs/id_counts.py.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import jax
from absl import app, flags

from jaxrec import tables as tables_lib
from jaxrec.data import pipeline
from jaxrec.inputs import id_counts
from jaxrec.runs import open_run, text_table
from jaxrec.runs.process import host
from jaxrec.training import state

_COLUMNS = {
  "table": "table",
  "rows": "rows",
  "embedding_dim": "dim",
  "bytes": "bytes",
  "touched_rows": "touched",
  "dead_rows": "dead",
  "zero_rows": "zero",
  "mean_norm": "mean norm",
  "max_norm": "max norm",
  "lookups": "look-ups",
  "distinct_ids": "ids seen",
  "top_share": "top {top:g} %",
}


def inspect(
  path: str,
  *,
  step: int | None = None,
  is_best: bool = False,
  top_percent: float = 1.0,
  num_batches: int = 50,
) -> dict[str, Any]:
  """What there is to see of a run's tables, as plain values; errors as ``open_run.reopen``.

  Args:
    path: the run's folder.
    step: of the checkpoint; None: the latest.
    is_best: takes the best evaluation's checkpoint instead.
    top_percent: the skew figure is the share of look-ups of so many per cent of the ids seen.
    num_batches: training batches, from the first on, in which ids are counted.
  """
  found = open_run.reopen(path, step=step, is_best=is_best)
  run, config = found.run, found.run.config
  _, tables_key, _ = state.split_key(jax.random.key(config.seed))
  statistics = tables_lib.table_statistics(
    found.state.tables,
    tables_key,
    row_state=found.state.row_state,
    optimizer=tables_lib.by_label(run.tx.rows, found.state.tables.plan),
  )
  batches = pipeline.batches(
    run.dataset, config.batch_size, num_steps=num_batches, seed=config.seed
  )
  counts = id_counts.count_ids(batches, run.spec.features)
  return {
    "workdir": path,
    "step": found.progress.step,
    "batches": num_batches,
    "examples": num_batches * config.batch_size,
    "top_percent": top_percent,
    "tables": [
      {
        "table": name,
        "rows": table.rows,
        "embedding_dim": table.embedding_dim,
        "bytes": table.num_bytes,
        "touched_rows": table.touched_rows,
        "dead_rows": table.dead_rows,
        "zero_rows": table.zero_rows,
        "mean_norm": _finite(table.mean_norm),
        "max_norm": _finite(table.max_norm),
        "lookups": counts[name].lookups,
        "distinct_ids": len(counts[name].ids),
        "top_share": _finite(counts[name].top_share(top_percent / 100)),
      }
      for name, table in statistics.items()
    ],
  }


def text(report: dict[str, Any]) -> str:
  """``inspect``'s report as a table to read."""
  titles = [title.format(top=report["top_percent"]) for title in _COLUMNS.values()]
  rows = [[_cell(name, table[name]) for name in _COLUMNS] for table in report["tables"]]
  return "\n".join(
    [
      f"{report['workdir']} at step {report['step']}",
      *text_table.aligned([titles, *rows]),
      f"touched: rows that differ from their first value, or whose moments do. zero: those of them "
      f"in which every number is zero. look-ups: in the first "
      f"{report['batches']} batches of training ({report['examples']:,} examples). "
      f"top {report['top_percent']:g} %: their share that the most popular "
      f"{report['top_percent']:g} % of the ids seen take.",
    ]
  )


def _cell(name: str, value: Any) -> str:
  if value is None:
    return "-"
  if name == "top_share":
    return f"{value:.1%}"
  return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if name != "table" else value


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def define_flags() -> None:
  """The command's flags; not on import, where they would meet those of other programs."""
  flags.DEFINE_integer("step", None, "Step of the checkpoint to read; the latest if not given.")
  flags.DEFINE_bool("best", False, "Read the checkpoint of the best evaluation.")
  flags.DEFINE_float("top", 1.0, "Per cent of the ids seen that count as the most popular.")
  flags.DEFINE_integer("batches", 50, "Training batches in which ids are counted.")
  flags.DEFINE_bool("json", False, "Print one JSON object.")


def main(argv: list[str]) -> int:
  """Runs the command line; the exit code."""
  given = flags.FLAGS
  if len(argv) != 2:
    raise app.UsageError("expected one folder: python -m jaxrec.inspect WORKDIR")
  if given.batches < 1 or not 0 < given.top <= 100:
    raise app.UsageError("--batches must be at least 1, and --top a percentage above 0")
  if given.best and given.step is not None:
    raise app.UsageError("give --step or --best, not both")
  host.quiet_libraries()
  try:
    report = inspect(
      argv[1],
      step=given.step,
      is_best=given.best,
      top_percent=given.top,
      num_batches=given.batches,
    )
  except open_run.ERRORS as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(json.dumps(report) if given.json else text(report), flush=True)
  return 0


if __name__ == "__main__":
  define_flags()
  app.run(main)
