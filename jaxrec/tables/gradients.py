"""Differentiates a loss with respect to parameters and to the rows that a batch touched.

Read next: jaxrec/tables/row_gradients.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.inputs import batch as batch_lib
from jaxrec.tables import device_table, lookup, placement, row_gradients, unique


def value_and_row_grad(
  loss_fn: Callable[..., Any], *, has_aux: bool = False
) -> Callable[[Any, device_table.DeviceTables, batch_lib.Batch], tuple[Any, Any, dict]]:
  """Like ``jax.value_and_grad``, for a loss over ``(params, embeddings)``.

  On several devices each computes the loss of its part of the batch; the whole batch's, and its
  gradients, are the means of these by the parts' weights. So ``loss_fn`` must be a mean over
  ``batch.weights``, as ``training.binary_cross_entropy`` is, and may add what does not depend on
  the batch.

  Args:
    loss_fn: ``(params, embeddings) -> loss f32[]`` (with ``has_aux``: ``(loss, aux)``), where
      ``embeddings`` maps each feature to f32[B, D].
    has_aux: as in JAX; on several devices each keeps its own ``aux``.

  Returns:
    A function ``(params, tables, batch) -> (loss, grads, row_grads)``: ``row_grads`` holds one
    RowGradients a stack. Cost and memory are O(batch), never O(vocabulary).
  """
  local = local_value_and_row_grad(loss_fn, has_aux=has_aux)

  def fn(
    params: Any, tables: device_table.DeviceTables, batch: batch_lib.Batch
  ) -> tuple[Any, Any, dict]:
    value, grads, row_grads = local(params, tables, batch)
    return value, grads, tables.placement.collect(row_grads)

  return fn


def local_value_and_row_grad(
  loss_fn: Callable[..., Any], *, has_aux: bool = False, share: float | None = None
) -> Callable[[Any, device_table.DeviceTables, batch_lib.Batch], tuple[Any, Any, dict]]:
  """``value_and_row_grad`` whose row gradients stay with the device that computed them.

  They are of this device's part of the batch, by the rows of its row plan: ``accumulate`` joins
  those of several batches, and ``tables.placement.collect`` brings them to who holds the rows.
  ``share`` is the part of the whole loss that a device's loss is; None: its part of the weights.
  """

  def fn(
    params: Any, tables: device_table.DeviceTables, batch: batch_lib.Batch
  ) -> tuple[Any, Any, dict]:
    axes = tables.placement.axes
    plans = unique.row_plans(tables.placement.numbering(tables.plan), batch)
    rows, words = device_table.fetch(tables, plans)
    part = _share(batch.weights, axes) if share is None else share

    def loss_of_rows(params: Any, rows: Mapping[str, jax.Array]) -> Any:
      found = loss_fn(params, lookup.embed(tables.plan, rows, plans, batch, words))
      return (found[0] * part, found[1]) if has_aux else found * part

    grad_fn = jax.value_and_grad(loss_of_rows, argnums=(0, 1), has_aux=has_aux)
    value, (grads, rows_grads) = grad_fn(params, rows)
    row_grads = {
      name: row_gradients.RowGradients(
        ids=plans[name].rows, rows=grad, num_valid=plans[name].num_rows
      )
      for name, grad in rows_grads.items()
    }
    loss, grads = placement.total((value[0] if has_aux else value, grads), axes)
    return (loss, value[1]) if has_aux else loss, grads, row_grads

  return fn


def _share(weights: jax.Array, axes: tuple[str, ...]) -> jax.Array | float:
  """The part of a batch's weight that is this device's."""
  if not axes:
    return 1.0
  own = jnp.sum(weights)
  return own / jnp.maximum(placement.total(own, axes), 1e-12)
