"""One training step, as a pure function.

Read rows, pool, model, loss; gradients of the dense parameters *and of the rows*; an optimizer for
each; write rows; metrics. The README's hello world spells the same step out by hand. The model is
applied with a ``dropout`` key, a function of the state's own key, the step and the micro-batch.

Read next: jaxrec/models/dlrm.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec import sharding
from jaxrec import tables as tables_lib
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import batch_checks
from jaxrec.training import losses, metrics, state

StepFn = Callable[
  [state.TrainState, batch_lib.Batch], tuple[state.TrainState, metrics.WindowMetrics]
]
RowGrads = dict[str, tables_lib.RowGradients]
RowTransform = Callable[[RowGrads, tables_lib.DeviceTables], RowGrads]


def make_step(
  model: nn.Module,
  tx: state.Optimizers,
  *,
  label: str | Sequence[str] = "click",
  loss: losses.ClickLoss = losses.ClickLoss(),
  accumulate_steps: int = 1,
  row_transform: RowTransform = lambda row_grads, tables: row_grads,
) -> StepFn:
  """The step ``(state, batch) -> (state, metrics)``; jit it and donate the state.

  It runs wherever the state's tables lie, on one device or on those of a mesh. Equivalent, with
  ``accumulate_steps=1``, to::

      loss, grads, row_grads = tables.value_and_row_grad(loss_fn)(state.params, state.tables, batch)
      row_grads = row_transform(row_grads, state.tables)
      state = training.apply_gradients(state, grads, row_grads, tx=tx)

  Args:
    model: ``(dense, embeddings) -> logits f32[B]``, or f32[B, T] for T labels.
    tx: the optimizers.
    label: which of the batch's labels to learn; several, each from a logit of its own.
    loss: what is summed over a batch: weights of labels and positives, a correction of the logits.
    accumulate_steps: k > 1 takes k micro-batches on a new leading axis (``features.stack_batches``)
      and updates once with the gradient of all of them.
    row_transform: composed between gradient and update, ``(row_grads, tables) -> row_grads``, e.g.
      ``lambda row_grads, _: tables.clip_by_global_norm(row_grads, 1.0)``.
  """
  labels = (label,) if isinstance(label, str) else tuple(label)

  def micro_step(
    current: state.TrainState, batch: batch_lib.Batch, key: jax.Array, total_weight: jax.Array
  ) -> Any:
    targets = _targets(batch, labels)

    def loss_fn(params: Any, embeddings: Any) -> tuple[jax.Array, jax.Array]:
      logits: Any = model.apply(params, batch.dense, embeddings, rngs={"dropout": key})
      return loss(logits, targets, batch.weights) / total_weight, loss.trained_logits(logits)

    grad_fn = tables_lib.local_value_and_row_grad(loss_fn, has_aux=True, share=1.0)
    (_, logits), grads, row_grads = grad_fn(current.params, current.tables, batch)
    weights = loss.trained_weights(targets, batch.weights)
    return grads, row_grads, metrics.WindowMetrics.from_batch(logits, targets, weights)

  def step(current: state.TrainState, batch: batch_lib.Batch) -> Any:
    axes = current.tables.placement.axes
    total_weight = jnp.maximum(tables_lib.total(jnp.sum(batch.weights), axes), 1e-12)
    key = tables_lib.own_key(jax.random.fold_in(current.rng, current.step), axes)
    if accumulate_steps == 1:
      grads, row_grads, seen = micro_step(current, batch, key, total_weight)
    else:

      def body(carry: Any, part: tuple[batch_lib.Batch, jax.Array]) -> Any:
        grads, row_grads, seen = micro_step(current, part[0], part[1], total_weight)
        return jax.tree.map(jnp.add, carry, (grads, seen)), row_grads

      no_window = metrics.WindowMetrics.zeros(len(labels))
      zeros = jax.tree.map(jnp.zeros_like, current.params), no_window
      keys = jax.random.split(key, accumulate_steps)
      (grads, seen), parts = jax.lax.scan(body, zeros, (batch, keys))
      row_grads = tables_lib.accumulate(_unstacked(parts, accumulate_steps), current.tables)
    row_grads = row_transform(current.tables.placement.collect(row_grads), current.tables)
    new_state, counts = state.apply_and_count(current, grads, row_grads, tx=tx)
    return new_state, tables_lib.total(seen, axes).replace(**counts._asdict())

  return sharding.over_devices(step)


def _unstacked(parts: Any, count: int) -> list[Any]:
  return [jax.tree.map(lambda leaf, i=i: leaf[i], parts) for i in range(count)]


def _targets(batch: batch_lib.Batch, labels: tuple[str, ...]) -> jax.Array:
  """f32[B], or f32[B, T] for T > 1 labels."""
  columns = [batch_checks.label_of(batch, name) for name in labels]
  return columns[0] if len(columns) == 1 else jnp.stack(columns, axis=1)
