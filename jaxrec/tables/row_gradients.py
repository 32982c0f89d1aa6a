"""Row gradients are values.

The gradient of a table is not a table: it is the list of rows that the batch touched, with one
summed gradient each. ``value_and_row_grad`` returns it; clipping, accumulation, noise and freezing
are ordinary functions over it, to be composed before any optimizer sees it.

Source: design section 4. TorchRec fuses the optimizer into the backward pass, where such functions
cannot reach.
Read next: jaxrec/tables/row_optimizer.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxrec import config
from jaxrec.features import batch as batch_lib
from jaxrec.features import id_bags
from jaxrec.tables import device_table, lookup, unique


@flax.struct.dataclass
class RowGradients:
  """The gradient of one stack.

  Attributes:
    ids: i32[U] stacked row numbers, unique; padding slots hold distinct numbers past the end.
    rows: f32[U, D] gradients, duplicates summed in order of occurrence; zero in padding slots.
    num_valid: i32[]: how many slots are not padding.
  """

  ids: jax.Array
  rows: jax.Array
  num_valid: jax.Array


def value_and_row_grad(
  loss_fn: Callable[..., Any], *, has_aux: bool = False
) -> Callable[[Any, device_table.DeviceTables, batch_lib.Batch], tuple[Any, Any, dict]]:
  """Like ``jax.value_and_grad``, for a loss over ``(params, embeddings)``.

  Args:
    loss_fn: ``(params, embeddings) -> loss f32[]`` (with ``has_aux``: ``(loss, aux)``), where
      ``embeddings`` maps each feature to f32[B, D].
    has_aux: as in JAX.

  Returns:
    A function ``(params, tables, batch) -> (loss, grads, row_grads)``: ``row_grads`` holds one
    RowGradients a stack. Cost and memory are O(batch), never O(vocabulary).
  """

  def fn(
    params: Any, tables: device_table.DeviceTables, batch: batch_lib.Batch
  ) -> tuple[Any, Any, dict]:
    plans = device_table.row_plans(tables.plan, batch)
    ids = {name: plan.rows for name, plan in plans.items()}
    rows, words = device_table.read_rows(tables, ids), device_table.read_words(tables, ids)

    def loss_of_rows(params: Any, rows: Mapping[str, jax.Array]) -> Any:
      return loss_fn(params, lookup.embed(tables.plan, rows, plans, batch, words))

    grad_fn = jax.value_and_grad(loss_of_rows, argnums=(0, 1), has_aux=has_aux)
    value, (grads, rows_grads) = grad_fn(params, rows)
    row_grads = {
      name: RowGradients(ids=plans[name].rows, rows=grad, num_valid=plans[name].num_rows)
      for name, grad in rows_grads.items()
    }
    return value, grads, row_grads

  return fn


def global_norm(row_grads: Mapping[str, RowGradients]) -> jax.Array:
  """f32[]: the Euclidean norm over all rows of all stacks, as if the gradient were dense."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(g.rows)) for g in row_grads.values()))


def clip_by_global_norm(
  row_grads: Mapping[str, RowGradients], max_norm: float
) -> dict[str, RowGradients]:
  """Scales all rows by ``min(1, max_norm / global_norm)``, as the optax function does."""
  norm = global_norm(row_grads)
  factor = jnp.where(norm < max_norm, 1.0, max_norm / jnp.maximum(norm, 1e-38))
  return scale(row_grads, factor)


def scale(
  row_grads: Mapping[str, RowGradients], factor: float | jax.Array
) -> dict[str, RowGradients]:
  """Multiplies every row by ``factor``."""
  return {name: dataclasses.replace(g, rows=g.rows * factor) for name, g in row_grads.items()}


def add_l2(
  row_grads: Mapping[str, RowGradients], tables: device_table.DeviceTables, l2: float | jax.Array
) -> dict[str, RowGradients]:
  """Adds ``l2 * row`` to each gradient: of a penalty l2 / 2 times the touched rows' squares.

  Padding slots read rows of zeros and stay zero. XLA keeps one gather of this read and that of the
  forward pass.
  """
  rows = device_table.read_rows(tables, {name: g.ids for name, g in row_grads.items()})
  return {
    name: dataclasses.replace(g, rows=g.rows + l2 * rows[name]) for name, g in row_grads.items()
  }


def add_noise(
  row_grads: Mapping[str, RowGradients], key: jax.Array, *, stddev: float
) -> dict[str, RowGradients]:
  """Adds Gaussian noise to touched rows; to noise untouched ones would cost O(vocabulary)."""
  noisy = {}
  for index, (name, g) in enumerate(sorted(row_grads.items())):
    noise = stddev * jax.random.normal(jax.random.fold_in(key, index), g.rows.shape, g.rows.dtype)
    is_valid = jnp.arange(g.ids.shape[0]) < g.num_valid
    noisy[name] = dataclasses.replace(g, rows=g.rows + jnp.where(is_valid[:, None], noise, 0))
  return noisy


def freeze(
  row_grads: Mapping[str, RowGradients],
  tables: device_table.DeviceTables,
  frozen: Collection[str],
) -> dict[str, RowGradients]:
  """Takes the rows of the tables named in ``frozen`` out, so no optimizer moves them or their
  moments.

  Raises:
    KeyError: no such table.
  """
  known = {t.name for s in tables.plan.stacks for t in s.tables}
  for name in frozen:
    if name not in known:
      raise KeyError(f"freeze: no table {name!r}; {config.did_you_mean(name, known)}")
  result = {}
  for stack in tables.plan.stacks:
    g = row_grads[stack.name]
    is_frozen = jnp.zeros(g.ids.shape, bool)
    for table, offset in zip(stack.tables, stack.offsets, strict=True):
      if table.name in frozen:
        is_frozen |= (g.ids >= offset) & (g.ids < offset + table.vocab_size)
    # Coalescing an all-padding copy moves the rows left to the front: num_valid stays a prefix.
    kept = jnp.where(is_frozen, jnp.int32(id_bags.PAD_ID), g.ids)
    result[stack.name] = coalesce(kept, g.rows, stack.num_rows)
  return result


def coalesce(ids: jax.Array, rows: jax.Array, num_rows: int) -> RowGradients:
  """Sums gradients ``rows: f32[N, D]`` of equal ``ids: i32[N]``, in order of occurrence.

  Ids outside [0, num_rows) are padding and vanish.
  """
  plan = unique.unique_rows(ids, num_rows)
  summed = jnp.zeros((len(plan.rows), *rows.shape[1:]), rows.dtype)
  summed = summed.at[plan.inverse].add(rows, mode="drop")
  return RowGradients(ids=plan.rows, rows=summed, num_valid=plan.num_rows)


def accumulate(
  parts: Sequence[Mapping[str, RowGradients]], tables: device_table.DeviceTables
) -> dict[str, RowGradients]:
  """The sum of several gradients: rows that meet are added, in the order of ``parts``."""
  return {
    stack.name: coalesce(
      jnp.concatenate([p[stack.name].ids for p in parts]),
      jnp.concatenate([p[stack.name].rows for p in parts]),
      stack.num_rows,
    )
    for stack in tables.plan.stacks
  }
