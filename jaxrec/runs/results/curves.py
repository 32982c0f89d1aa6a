"""Learning curves of one run, drawn from its ``metrics.jsonl``.

Two panels over the step: log loss and AUC, training windows thin, evaluations bold, and the two
lines that say what an AUC is worth on this data: logistic regression below, the ceiling above. The
file is the only input, so a curve can be drawn again at any time, also while the run still writes.

Read next: jaxrec/training/metrics.py, where the numbers come from.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any

Records = dict[str, list[dict[str, Any]]]

_INK = "#33383f"
_REFERENCE = "#7a828c"
_STYLES = {
  "train": {"color": "#8fb3d9", "linewidth": 1.4, "label": "training (windows)"},
  "val": {
    "color": "#c2410c",
    "linewidth": 2.2,
    "marker": "o",
    "markersize": 4.5,
    "label": "validation",
  },
  "test": {
    "color": _INK,
    "linestyle": "none",
    "marker": "*",
    "markersize": 14,
    "label": "test",
    "markeredgecolor": "white",
    "zorder": 4,
  },
}


def read_records(metrics_path: str | os.PathLike[str]) -> Records:
  """The lines of a metrics file by split, in order of step.

  A run resumed from a checkpoint repeats the steps after it: the last line of a step counts. A last
  line without its newline (a killed or still writing run) is left out.

  Raises:
    ValueError: a line is not a JSON object with ``step`` and ``split``, or there is no line at all.
  """
  path = pathlib.Path(metrics_path)
  by_step: dict[tuple[str, int], dict[str, Any]] = {}
  complete_lines = path.read_text(encoding="utf-8").split("\n")[:-1]
  for number, line in enumerate(complete_lines, start=1):
    try:
      record = json.loads(line)
      by_step[record["split"], int(record["step"])] = record
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"{path}, line {number}: expected a JSON object with 'step' and 'split', got "
        f"{line[:80]!r}; remove the line to draw the others"
      ) from error
  if not by_step:
    raise ValueError(f"{path}: expected one JSON object a line, got no complete line; train first")
  records: Records = {}
  for split, step in sorted(by_step):
    records.setdefault(split, []).append(by_step[split, step])
  return records


def plot_curves(
  metrics_path: str | os.PathLike[str],
  png_path: str | os.PathLike[str],
  *,
  auc_ceiling: float | None = None,
  logistic_auc: float | None = None,
  title: str | None = None,
) -> None:
  """Draws the learning curves as a PNG, replacing ``png_path`` in one step.

  Args:
    metrics_path: lines such as ``{"step": 100, "split": "train", "loss": 0.5, "auc": 0.7}``; splits
      ``train``, ``val`` and ``test``; ``logloss`` is read where there is no ``loss``.
    png_path: where the picture goes; its folder must exist.
    auc_ceiling: the best reachable AUC, drawn as a dashed line.
    logistic_auc: the AUC of a logistic regression, drawn as a dashed line.
    title: written above the panels.

  Raises:
    ValueError: as in ``read_records``.
  """
  # Imported here: training without a picture should not pay for it. A bare Figure, not pyplot,
  # which would choose a backend and keep figures for the whole process.
  from matplotlib import figure as mpl_figure
  from matplotlib import layout_engine
  from matplotlib.backends import backend_agg

  records = read_records(metrics_path)
  layout = layout_engine.ConstrainedLayoutEngine(wspace=0.06)
  figure = mpl_figure.Figure(figsize=(10, 4.2), dpi=150, layout=layout, facecolor="white")
  canvas = backend_agg.FigureCanvasAgg(figure)
  loss_axes, auc_axes = figure.subplots(1, 2)
  _draw_splits(loss_axes, records, ("loss", "logloss"))
  _draw_splits(auc_axes, records, ("auc",))
  if auc_ceiling is not None:
    _draw_reference(auc_axes, auc_ceiling, f"ceiling {auc_ceiling:.4f}")
  if logistic_auc is not None:
    _draw_reference(auc_axes, logistic_auc, f"logistic regression {logistic_auc:.4f}")
  for axes, name in ((loss_axes, "Log loss"), (auc_axes, "AUC")):
    _finish(axes, name)
  if loss_axes.lines:
    loss_axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
  if title:
    figure.suptitle(title, color=_INK, fontsize=13, fontweight="bold")
  _save(canvas, pathlib.Path(png_path))


def _draw_splits(axes: Any, records: Records, names: tuple[str, ...]) -> None:
  for split, style in _STYLES.items():
    points = [
      (record["step"], next(record[name] for name in names if name in record))
      for record in records.get(split, [])
      if any(name in record for name in names)
    ]
    points = [(step, value) for step, value in points if value is not None and math.isfinite(value)]
    if points:
      axes.plot(*zip(*points, strict=True), **style)


def _draw_reference(axes: Any, value: float, label: str) -> None:
  """A dashed line, named at its left end, where the learning curve is still below it."""
  axes.axhline(value, color=_REFERENCE, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
  axes.annotate(
    label,
    xy=(0.01, value),
    xycoords=("axes fraction", "data"),
    xytext=(0, 3),
    textcoords="offset points",
    ha="left",
    va="bottom",
    fontsize=8.5,
    color=_REFERENCE,
  )


def _finish(axes: Any, name: str) -> None:
  axes.set_title(name, loc="left", fontsize=11.5, fontweight="bold", color=_INK)
  axes.set_xlabel("step", color=_INK)
  axes.xaxis.set_major_formatter("{x:,.0f}")
  axes.grid(True, axis="y", color="#e6e8eb", linewidth=0.8)
  axes.set_axisbelow(True)
  axes.margins(x=0.02, y=0.12)
  axes.tick_params(colors=_INK, labelsize=9)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color("#b8bec6")


def _save(canvas: Any, path: pathlib.Path) -> None:
  partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    canvas.print_png(partial)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
