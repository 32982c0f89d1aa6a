"""Predictions and exact metrics of a model over any iterator of batches.

Read next: jaxrec/training/metrics.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
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
  return model.apply(params, batch.dense, tables_lib.embed(tables.plan, rows, plans, batch))


def evaluate(
    model: nn.Module,
    current: state.TrainState,
    batches: Iterable[batch_lib.Batch],
    *,
    label: str = "click",
    group: str | None = None,
) -> dict[str, float]:
  """Exact metrics over ``batches``: auc, logloss, ne, calibration, examples, and gauc with ``group``.

  Two batches are in flight at a time, so the host ranks one while the device computes the next.
  """
  total = metrics.BinaryMetrics.empty()
  pending: list[tuple[jax.Array, batch_lib.Batch]] = []
  for batch in batches:
    pending.append((predict(model, current.params, current.tables, batch), batch))
    if len(pending) == 2:
      total = _add(total, *pending.pop(0), label=label, group=group)
  for logits, batch in pending:
    total = _add(total, logits, batch, label=label, group=group)
  return total.compute()


def _add(
    total: metrics.BinaryMetrics,
    logits: jax.Array,
    batch: batch_lib.Batch,
    *,
    label: str,
    group: str | None,
) -> metrics.BinaryMetrics:
  return total.update(
      np.asarray(logits),
      np.asarray(batch.labels[label]),
      np.asarray(batch.weights),
      groups=None if group is None else np.asarray(batch.groups[group]),
  )
