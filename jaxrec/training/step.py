"""One training step, as a pure function.

Read rows, pool, model, loss; gradients of the dense parameters *and of the rows*; an optimizer for
each; write rows; metrics. The README's hello world spells the same step out by hand.

Read next: jaxrec/models/dlrm.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec import tables as tables_lib
from jaxrec.features import batch as batch_lib
from jaxrec.training import losses, metrics, state

StepFn = Callable[
  [state.TrainState, batch_lib.Batch], tuple[state.TrainState, metrics.WindowMetrics]
]
RowTransform = Callable[[dict[str, tables_lib.RowGradients]], dict[str, tables_lib.RowGradients]]


def make_step(
  model: nn.Module,
  tx: state.Optimizers,
  *,
  label: str = "click",
  accumulate_steps: int = 1,
  row_transform: RowTransform = lambda row_grads: row_grads,
) -> StepFn:
  """The step ``(state, batch) -> (state, metrics)``; jit it and donate the state.

  Equivalent, with ``accumulate_steps=1``, to::

      loss, grads, row_grads = tables.value_and_row_grad(loss_fn)(state.params, state.tables, batch)
      state = training.apply_gradients(state, grads, row_transform(row_grads), tx=tx)

  Args:
    model: ``(dense, embeddings) -> logits f32[B]``.
    tx: the optimizers.
    label: which of the batch's labels to learn.
    accumulate_steps: k > 1 takes k micro-batches on a new leading axis (``features.stack_batches``)
      and updates once with the gradient of all of them.
    row_transform: composed between gradient and update, e.g. ``tables.clip_by_global_norm``.
  """

  def micro_step(current: state.TrainState, batch: batch_lib.Batch, total_weight: jax.Array) -> Any:
    def loss_fn(params: Any, embeddings: Any) -> tuple[jax.Array, jax.Array]:
      logits: Any = model.apply(params, batch.dense, embeddings)
      loss_sum = losses.binary_cross_entropy_sum(logits, batch.labels[label], batch.weights)
      return loss_sum / total_weight, logits

    grad_fn = tables_lib.value_and_row_grad(loss_fn, has_aux=True)
    (_, logits), grads, row_grads = grad_fn(current.params, current.tables, batch)
    seen = metrics.WindowMetrics.from_batch(logits, batch.labels[label], batch.weights)
    return grads, row_grads, seen

  def step(current: state.TrainState, batch: batch_lib.Batch) -> Any:
    total_weight = jnp.maximum(jnp.sum(batch.weights), 1e-12)
    if accumulate_steps == 1:
      grads, row_grads, seen = micro_step(current, batch, total_weight)
    else:

      def body(carry: Any, micro_batch: batch_lib.Batch) -> Any:
        grads, row_grads, seen = micro_step(current, micro_batch, total_weight)
        return jax.tree.map(jnp.add, carry, (grads, seen)), row_grads

      zeros = (jax.tree.map(jnp.zeros_like, current.params), metrics.WindowMetrics.zeros())
      (grads, seen), parts = jax.lax.scan(body, zeros, batch)
      row_grads = _join(parts, current.tables)
    new_state = state.apply_gradients(current, grads, row_transform(row_grads), tx=tx)
    return new_state, seen

  return step


def _join(
  parts: dict[str, tables_lib.RowGradients], tables: tables_lib.DeviceTables
) -> dict[str, tables_lib.RowGradients]:
  """Micro-batches' gradients [k, U, D] to one each stack: rows that meet are added, in order."""
  return {
    stack.name: tables_lib.coalesce(
      parts[stack.name].ids.reshape(-1),
      parts[stack.name].rows.reshape(-1, stack.embedding_dim),
      stack.num_rows,
    )
    for stack in tables.plan.stacks
  }
