"""Clips, scales, freezes, accumulates and adds to row gradients, before any optimizer sees them.

Ordinary functions from row gradients to row gradients, to be composed; each applies to all rounds.

Read next: jaxrec/tables/optimizers/row_optimizer.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import config
from jaxrec.inputs import id_bags
from jaxrec.tables import device_table, placement, row_gradients, unique


def global_norm(row_grads: Mapping[str, row_gradients.RowGradients]) -> jax.Array:
  """f32[]: the Euclidean norm over all rows of all stacks, as if the gradient were dense."""

  def add(total: jax.Array, found: Mapping[str, row_gradients.RowGradients]) -> jax.Array:
    for g in found.values():
      total += placement.total(jnp.sum(jnp.square(g.rows)), g.axes)
    return total

  return jnp.sqrt(row_gradients.fold_rounds(row_grads, jnp.zeros((), jnp.float32), add))


def clip_by_global_norm(
  row_grads: Mapping[str, row_gradients.RowGradients], max_norm: float
) -> dict[str, row_gradients.RowGradients]:
  """Scales all rows by ``min(1, max_norm / global_norm)``, as the optax function does."""
  norm = global_norm(row_grads)
  factor = jnp.where(norm < max_norm, 1.0, max_norm / jnp.maximum(norm, 1e-38))
  return scale(row_grads, factor)


def scale(
  row_grads: Mapping[str, row_gradients.RowGradients], factor: float | jax.Array
) -> dict[str, row_gradients.RowGradients]:
  """Multiplies every row by ``factor``."""
  return row_gradients.map_rows(
    row_grads, lambda _, g, tables: dataclasses.replace(g, rows=g.rows * factor)
  )


def add_l2(
  row_grads: Mapping[str, row_gradients.RowGradients],
  tables: device_table.DeviceTables,
  l2: float | jax.Array,
) -> dict[str, row_gradients.RowGradients]:
  """Adds ``l2 * row`` to each gradient: of a penalty l2 / 2 times the touched rows' squares.

  Padding slots read rows of zeros and stay zero. XLA keeps one gather of this read and that of the
  forward pass.
  """

  def add(
    name: str, g: row_gradients.RowGradients, now: device_table.DeviceTables
  ) -> row_gradients.RowGradients:
    rows = device_table.read_rows(now, {name: g.ids})[name]
    return dataclasses.replace(g, rows=g.rows + l2 * rows)

  return row_gradients.map_rows(row_grads, add, tables)


def add_noise(
  row_grads: Mapping[str, row_gradients.RowGradients], key: jax.Array, *, stddev: float
) -> dict[str, row_gradients.RowGradients]:
  """Adds Gaussian noise to touched rows; to noise untouched ones would cost O(vocabulary)."""
  keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(sorted(row_grads))}

  def add(name: str, g: row_gradients.RowGradients, tables: Any) -> row_gradients.RowGradients:
    del tables
    own = keys[name]
    if g.axes:  # devices, and rounds, draw for rows of their own
      own = jax.random.fold_in(jax.random.fold_in(own, jax.lax.axis_index(g.axes)), g.ids[0])
    noise = stddev * jax.random.normal(own, g.rows.shape, g.rows.dtype)
    is_valid = jnp.arange(g.ids.shape[0]) < g.num_valid
    return dataclasses.replace(g, rows=g.rows + jnp.where(is_valid[:, None], noise, 0))

  return row_gradients.map_rows(row_grads, add)


def freeze(
  row_grads: Mapping[str, row_gradients.RowGradients],
  tables: device_table.DeviceTables,
  frozen: Collection[str],
) -> dict[str, row_gradients.RowGradients]:
  """Takes the rows of the tables named in ``frozen`` out, so no optimizer moves them or their
  moments.

  Raises:
    KeyError: no such table.
  """
  known = {t.name for s in tables.plan.stacks for t in s.tables}
  for name in frozen:
    if name not in known:
      raise KeyError(f"freeze: no table {name!r}; {config.did_you_mean(name, known)}")
  by_name = {stack.name: stack for stack in tables.plan.stacks}

  def take_out(name: str, g: row_gradients.RowGradients, now: Any) -> row_gradients.RowGradients:
    del now  # which rows are of a table does not depend on them
    stack = by_name[name]
    is_frozen = jnp.zeros(g.ids.shape, bool)
    for table in stack.tables:
      if table.name in frozen:
        is_frozen |= tables.placement.is_of(stack, table, g.ids)
    # Coalescing an all-padding copy moves the rows left to the front: num_valid stays a prefix.
    kept = jnp.where(is_frozen, jnp.int32(id_bags.PAD_ID), g.ids)
    left = row_gradients.coalesce(kept, g.rows, tables.placement.num_rows(stack))
    return dataclasses.replace(left, axes=g.axes)

  return row_gradients.map_rows(row_grads, take_out)


def accumulate(
  parts: Sequence[Mapping[str, row_gradients.RowGradients]], tables: device_table.DeviceTables
) -> dict[str, row_gradients.RowGradients]:
  """The sum of several gradients: rows that meet are added, in the order of ``parts``.

  On several devices, of gradients that ``local_value_and_row_grad`` computed.
  """
  joined, plan = {}, tables.placement.numbering(tables.plan)
  for stack in tables.plan.stacks:
    ids = jnp.concatenate([part[stack.name].ids for part in parts])
    rows = jnp.concatenate([part[stack.name].rows for part in parts])
    joined[stack.name] = row_gradients.sum_rows(unique.rows_once(plan, stack, ids), rows)
  return joined
