"""Predictions and exact metrics of a model over any iterator of batches.

Each label is a task of its own, measured as if it were the only one. ``slices`` breaks the same
pass down by the values of a group column.

Read next: jaxrec/training/metrics.py.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxrec import sharding
from jaxrec import tables as tables_lib
from jaxrec.data.pipeline.prefetch import put, unpack
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import batch_checks
from jaxrec.training import metrics, state


@functools.partial(jax.jit, static_argnums=0)
def predict(
  model: nn.Module, params: Any, tables: tables_lib.DeviceTables, batch: batch_lib.Batch
) -> jax.Array:
  """Logits f32[B] of a batch, or f32[B, T] of T labels; compiled once a model and batch shape."""
  return sharding.each_example(functools.partial(logits_of, model))(params, tables, batch)


def logits_of(
  model: nn.Module, params: Any, tables: tables_lib.DeviceTables, batch: batch_lib.Batch
) -> jax.Array:
  """``predict`` of a device's own part."""
  plans = tables_lib.row_plans(tables.placement.numbering(tables.plan), batch)
  rows, words = tables_lib.fetch(tables, plans)
  embeddings = tables_lib.embed(tables.plan, rows, plans, batch, words)
  logits: Any = model.apply(params, batch.dense, embeddings)
  return logits


def evaluate(
  model: nn.Module,
  current: state.TrainState,
  batches: Iterable[batch_lib.Batch],
  *,
  label: str | Sequence[str] = "click",
  group: str | None = None,
) -> dict[str, float]:
  """Exact metrics over ``batches``: auc, logloss, ne, calibration, examples, and gauc with
  ``group``.

  Of several labels the first has these names, another ``like`` has ``like/auc`` and so on. Two
  batches are in flight at a time, so the host ranks one while the device computes the next.
  """
  labels = (label,) if isinstance(label, str) else tuple(label)
  parts = (
    TaskMetrics.from_batch(logits, batch, labels, group)
    for logits, batch in scored(model, current, batches)
  )
  return (metrics.merge_stream(parts) or TaskMetrics.empty(labels)).compute()


@dataclasses.dataclass(frozen=True, eq=False)
class TaskMetrics:
  """The metrics of several labels: ``tasks`` holds those of each of ``labels``."""

  labels: tuple[str, ...]
  tasks: tuple[metrics.BinaryMetrics, ...]

  @classmethod
  def empty(cls, labels: tuple[str, ...]) -> TaskMetrics:
    return cls(labels, (metrics.BinaryMetrics.empty(),) * len(labels))

  @classmethod
  def from_batch(
    cls,
    logits: np.ndarray,
    batch: batch_lib.Batch,
    labels: tuple[str, ...],
    group: str | None = None,
  ) -> TaskMetrics:
    """Counts a batch by its logits, float[B] or float[B, T] in the order of ``labels``.

    Raises:
      ValueError: the model does not predict as many labels, or as ``ScoreCounts.from_batch``.
    """
    columns = logits[:, None] if logits.ndim == 1 else logits
    if columns.shape[1] != len(labels):
      raise ValueError(
        f"evaluate: the model yields {columns.shape[1]} logits an example for {len(labels)} labels "
        f"({', '.join(labels)}); end its top_mlp in {len(labels)}, or name other labels"
      )
    groups = None if group is None else np.asarray(batch.groups[group])
    weights = np.asarray(batch.weights)
    tasks = (
      metrics.BinaryMetrics.from_batch(
        column, np.asarray(batch_checks.label_of(batch, name)), weights, groups
      )
      for column, name in zip(columns.T, labels, strict=True)
    )
    return cls(labels, tuple(tasks))

  def merge(self, other: TaskMetrics) -> TaskMetrics:
    """The metrics of both together."""
    pairs = zip(self.tasks, other.tasks, strict=True)
    return TaskMetrics(self.labels, tuple(a.merge(b) for a, b in pairs))

  def compute(self) -> dict[str, float]:
    """As ``evaluate``."""
    return metrics.by_label(self.labels, [task.compute() for task in self.tasks])


def scored(
  model: nn.Module, current: state.TrainState, batches: Iterable[batch_lib.Batch]
) -> Iterator[tuple[np.ndarray, batch_lib.Batch]]:
  """The batches with their logits on the host, in order.

  Of tables on a mesh, whose batches come in parts, they are the whole batch's, and so are labels,
  weights and groups; of several processes each sees all of them.
  """
  pending: collections.deque[Any] = collections.deque()
  for batch in itertools.chain(batches, [None]):
    if batch is not None:
      pending.append((_scores(model, current, batch), batch))
    while pending and (batch is None or len(pending) == 2):
      (logits, seen), known = pending.popleft()
      whole = dataclasses.replace(known, **jax.tree.map(np.asarray, seen)) if seen else known
      yield np.asarray(logits), whole


def _scores(
  model: nn.Module, current: state.TrainState, batch: batch_lib.Batch
) -> tuple[jax.Array, dict[str, Any]]:
  """Logits, and what of the batch is to be seen in place of this process's own."""
  where = current.tables.placement
  if not isinstance(where, sharding.Sharded):
    return predict(model, current.params, current.tables, batch), {}
  parts = unpack(*put(batch, where.batches))
  logits, seen = _predict_and_show(model, current.params, current.tables, parts)
  return logits, {**seen, "ids": {}, "rows": None}


@functools.partial(jax.jit, static_argnums=0)
def _predict_and_show(
  model: nn.Module, params: Any, tables: tables_lib.DeviceTables, batch: batch_lib.Batch
) -> tuple[jax.Array, dict[str, Any]]:
  def on_device(params: Any, tables: tables_lib.DeviceTables, part: batch_lib.Batch) -> Any:
    seen = {name: getattr(part, name) for name in ("dense", "labels", "weights", "groups")}
    return logits_of(model, params, tables, part), seen

  found: Any = sharding.each_example(on_device)(params, tables, batch)
  return found
