"""Metrics of each value of a group column: who the model serves well, and whom not.

``ScoreCounts`` are sorted by group, so one pass over the test counts all values of a column, and
what belongs to one value lies in one piece. Each is measured exactly as an evaluation of its
examples alone would.

Read next: jaxrec/training/metrics.py.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from jaxrec.inputs import batch as batch_lib
from jaxrec.training import evaluation, metrics, state

MOST_SHOWN = 10
_FIGURES = ("examples", "auc", "logloss", "calibration")
Slice = dict[str, Any]  # value, and _FIGURES; "like/auc" of further labels


def evaluate(
  model: nn.Module,
  current: state.TrainState,
  batches: Iterable[batch_lib.Batch],
  *,
  labels: tuple[str, ...],
  group: str | None = None,
  columns: Sequence[str] = (),
) -> tuple[dict[str, float], dict[str, list[Slice]]]:
  """What ``evaluation.evaluate`` says, and the same by value of each of ``columns``.

  Returns:
    The figures of all examples; and by column a list of dicts, the value with most examples first:
    ``value`` i32, ``examples``, ``auc``, ``logloss``, ``calibration``.
  """
  parts = (
    _Sliced(
      evaluation.TaskMetrics.from_batch(logits, batch, labels, group),
      {name: _Column.from_batch(logits, batch, labels, name) for name in columns},
    )
    for logits, batch in evaluation.scored(model, current, batches)
  )
  total = metrics.merge_stream(parts)
  if total is None:
    return evaluation.TaskMetrics.empty(labels).compute(), {name: [] for name in columns}
  return total.whole.compute(), {name: found.slices() for name, found in total.columns.items()}


def with_names(found: Sequence[Slice], names: Sequence[str] | None) -> list[Slice]:
  """``found`` with a data set's names in place of its values, where it has one.

  >>> with_names([{"value": 1, "auc": 0.7}, {"value": 9, "auc": 0.6}], ["ca", "de"])
  [{'value': 'de', 'auc': 0.7}, {'value': '9', 'auc': 0.6}]
  """
  names = names or ()

  def name(value: int) -> str:
    return str(names[value]) if 0 <= value < len(names) else str(value)

  return [{**one, "value": name(one["value"])} for one in found]


def table(column: str, found: Sequence[Slice]) -> list[str]:
  """The largest values of a column as lines of text."""
  shown = found[:MOST_SHOWN]
  width = max(len(column), *(len(str(one["value"])) for one in shown)) if shown else len(column)
  lines = [f" {column:<{width}} {'examples':>10} {'auc':>6} {'logloss':>8} {'calibration':>11}"]
  for one in shown:
    lines.append(
      f" {one['value']!s:<{width}} {one['examples']:>10,} {one['auc']:>6.3f} "
      f"{one['logloss']:>8.3f} {one['calibration']:>11.2f}"
    )
  if len(found) > len(shown):
    lines.append(f" ... and {len(found) - len(shown):,} smaller ones in result.json")
  return lines


@dataclasses.dataclass(frozen=True, eq=False)
class _Column:
  """The tasks by value of one column, and how many examples each value has."""

  tasks: evaluation.TaskMetrics
  examples: collections.Counter[int]

  @classmethod
  def from_batch(
    cls, logits: np.ndarray, batch: batch_lib.Batch, labels: tuple[str, ...], column: str
  ) -> _Column:
    values = np.asarray(batch.groups[column])[np.asarray(batch.weights) > 0]
    found, counts = np.unique(values, return_counts=True)
    return cls(
      evaluation.TaskMetrics.from_batch(logits, batch, labels, column),
      collections.Counter(dict(zip(found.tolist(), counts.tolist(), strict=True))),
    )

  def merge(self, other: _Column) -> _Column:
    return _Column(self.tasks.merge(other.tasks), self.examples + other.examples)

  def slices(self) -> list[Slice]:
    by_value = [_by_value(task.counts) for task in self.tasks.tasks]
    slices = []
    for value, examples in sorted(self.examples.items(), key=lambda item: (-item[1], item[0])):
      parts = [metrics.BinaryMetrics(counts[value], examples).compute() for counts in by_value]
      figures = [{name: part[name] for name in _FIGURES} for part in parts]
      named: Slice = metrics.by_label(self.tasks.labels, figures)
      slices.append({"value": value, **named, "examples": examples})
    return slices


def _by_value(counts: metrics.ScoreCounts) -> Mapping[int, metrics.ScoreCounts]:
  """The counts of each group."""
  groups = (counts.keys >> np.uint64(32)).astype(np.uint32).view(np.int32)
  starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1])[: len(groups)])
  ends = np.append(starts, len(groups))[1:]
  return {
    int(groups[start]): metrics.ScoreCounts(
      counts.keys[start:end], counts.positives[start:end], counts.negatives[start:end]
    )
    for start, end in zip(starts, ends, strict=True)
  }


@dataclasses.dataclass(frozen=True, eq=False)
class _Sliced:
  """All that one pass over a test counts."""

  whole: evaluation.TaskMetrics
  columns: Mapping[str, _Column]

  def merge(self, other: _Sliced) -> _Sliced:
    columns = {name: found.merge(other.columns[name]) for name, found in self.columns.items()}
    return _Sliced(self.whole.merge(other.whole), columns)
