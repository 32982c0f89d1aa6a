"""Predictions and exact metrics of a model over any iterator of batches.

Read next: jaxrec/training/metrics.py.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxrec import tables as tables_lib
from jaxrec.features import batch as batch_lib
from jaxrec.training import metrics, state


@functools.partial(jax.jit, static_argnums=0)
def predict(
  model: nn.Module, params: Any, tables: tables_lib.DeviceTables, batch: batch_lib.Batch
) -> jax.Array:
  """Logits f32[B] of a batch; compiled once a model and batch shape."""
  plans = tables_lib.row_plans(tables.plan, batch)
  rows = tables_lib.read_rows(tables, {name: plan.rows for name, plan in plans.items()})
  logits: Any = model.apply(params, batch.dense, tables_lib.embed(tables.plan, rows, plans, batch))
  return logits


def evaluate(
  model: nn.Module,
  current: state.TrainState,
  batches: Iterable[batch_lib.Batch],
  *,
  label: str = "click",
  group: str | None = None,
) -> dict[str, float]:
  """Exact metrics over ``batches``: auc, logloss, ne, calibration, examples, and gauc with
  ``group``.

  Two batches are in flight at a time, so the host ranks one while the device computes the next.
  """
  return metrics.merge_all(_parts(model, current, batches, label, group)).compute()


def _parts(
  model: nn.Module,
  current: state.TrainState,
  batches: Iterable[batch_lib.Batch],
  label: str,
  group: str | None,
) -> Iterator[metrics.BinaryMetrics]:
  pending: collections.deque[tuple[jax.Array, batch_lib.Batch]] = collections.deque()
  for batch in itertools.chain(batches, [None]):
    if batch is not None:
      pending.append((predict(model, current.params, current.tables, batch), batch))
    while pending and (batch is None or len(pending) == 2):
      logits, seen = pending.popleft()
      yield metrics.BinaryMetrics.from_batch(
        np.asarray(logits),
        np.asarray(seen.labels[label]),
        np.asarray(seen.weights),
        None if group is None else np.asarray(seen.groups[group]),
      )
