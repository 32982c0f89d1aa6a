"""Duplicate removal inside ``jit``, for batches that come without a plan.

One stable sort groups equal ids; the first of each group in batch order numbers it, so rows come
out in order of first occurrence, bit for bit as the host's plan (inputs/row_plan.py) lists them.
The host's hash is faster on CPU; this is the path for ids born on the device.

Read next: jaxrec/tables/row_gradients.py.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import config
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import id_bags, row_plan, table_plan


def unique_rows(ids: jax.Array, num_rows: int) -> batch_lib.RowPlan:
  """Lists each row of ``ids`` once, in order of first occurrence.

  Args:
    ids: i32[N] stacked row numbers; negative entries, and those past the end, are padding.
    num_rows: V, rows of the stack; padding slots get V, V + 1, ...

  Returns:
    A RowPlan with capacity U = min(N, V): there cannot be more.
  """
  _, positions, is_head, is_valid = _sorted(ids, num_rows)
  num_ids, capacity = ids.shape[0], min(ids.shape[0], num_rows)
  slots = jnp.arange(num_ids, dtype=jnp.int32)
  is_first = jnp.zeros(num_ids, bool).at[positions].set(is_head, unique_indices=True)
  rank = jnp.cumsum(is_first, dtype=jnp.int32) - 1
  head = jax.lax.cummax(jnp.where(is_head, slots, 0))
  inverse = jnp.zeros(num_ids, jnp.int32)
  inverse = inverse.at[positions].set(rank[positions[head]], unique_indices=True)
  rows = num_rows + slots[:capacity]
  rows = rows.at[jnp.where(is_first, rank, capacity)].set(ids, mode="drop")
  return batch_lib.RowPlan(
    rows=rows,
    inverse=jnp.where(is_valid, inverse, capacity),
    num_rows=jnp.sum(is_first, dtype=jnp.int32),
  )


def sorted_rows(ids: jax.Array, num_rows: int) -> batch_lib.RowPlan:
  """``unique_rows`` in ascending order of row numbers."""
  sorted_ids, positions, is_head, is_valid = _sorted(ids, num_rows)
  num_ids, capacity = ids.shape[0], min(ids.shape[0], num_rows)
  slots = jnp.arange(num_ids, dtype=jnp.int32)
  rank = jnp.cumsum(is_head, dtype=jnp.int32) - 1
  inverse = jnp.zeros(num_ids, jnp.int32).at[positions].set(rank, unique_indices=True)
  rows = num_rows + slots[:capacity]
  rows = rows.at[jnp.where(is_head, rank, capacity)].set(sorted_ids, mode="drop")
  return batch_lib.RowPlan(
    rows=rows,
    inverse=jnp.where(is_valid, inverse, capacity),
    num_rows=jnp.sum(is_head, dtype=jnp.int32),
  )


def _sorted(ids: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """``ids: i32[N]`` in stable ascending order, padding last; where each was; which of them begins
  a group of equal ones; and, in the order of ``ids``, which are rows at all.
  """
  chex.assert_rank(ids, 1)
  if ids.dtype != jnp.int32:
    raise TypeError(f"unique_rows: expected int32 ids, got {ids.dtype}")
  is_valid = (ids >= 0) & (ids < num_rows)
  keys = jnp.where(is_valid, ids, np.int32(np.iinfo(np.int32).max))
  slots = jnp.arange(ids.shape[0], dtype=jnp.int32)
  sorted_ids, positions = jax.lax.sort((keys, slots), num_keys=1, is_stable=True)
  is_head = jnp.concatenate([jnp.ones(1, bool), sorted_ids[1:] != sorted_ids[:-1]])
  return sorted_ids, positions, is_head & (sorted_ids < num_rows), is_valid


def row_plans(plan: table_plan.Numbering, batch: batch_lib.Batch) -> dict[str, batch_lib.RowPlan]:
  """The batch's own plan, or one made here, in jit, when it brings none."""
  if batch.rows is not None:
    row_plan.check_plan(batch, plan)
    return batch.rows
  plans = {}
  for stack in plan.stacks:
    ids = [_row_numbers(plan, feature, batch) for feature in plan.features_of(stack)]
    made = rows_once(plan, stack, jnp.concatenate(ids))
    plans[stack.name] = dataclasses.replace(made, stack=plan.signature(stack))
  return plans


def rows_once(
  plan: table_plan.Numbering, stack: table_plan.Stack, ids: jax.Array
) -> batch_lib.RowPlan:
  """Each row number of ``ids`` once, in the order that the plan lists rows in."""
  find = sorted_rows if plan.is_sorted else unique_rows
  return find(ids, plan.num_rows(stack))


def _row_numbers(
  plan: table_plan.Numbering, feature: config.FeatureConfig, batch: batch_lib.Batch
) -> jax.Array:
  values = jnp.asarray(batch.ids[feature.name].values)
  if values.dtype != jnp.int32:
    raise TypeError(
      f"feature {feature.name!r}: expected int32 ids on the device, got {values.dtype}"
    )
  is_id = (values >= 0) & (values < feature.table.vocab_size)
  is_id &= batch_lib.is_real(batch, feature.name)
  return jnp.where(is_id, plan.rows_of(feature, values), jnp.int32(id_bags.PAD_ID))
