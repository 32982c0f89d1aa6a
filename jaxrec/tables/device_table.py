"""Embedding tables in device memory.

Tables of one kind are stacked into one array (features/stacks.py). A step touches only the rows
that its batch names: they are gathered once, computed on, and set back in place, so a step costs
O(batch) whatever the vocabulary. How a stack lies in memory is a value, its ``Layout``: everything
else reads and writes rows through it.

Source: design section 4; fused tables as in TorchRec, donated in place as XLA allows.
Read next: jaxrec/tables/row_gradients.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp

from jaxrec import config
from jaxrec.features import batch as batch_lib
from jaxrec.features import id_bags, row_plan, stacks
from jaxrec.tables import fingerprints as fingerprints_lib
from jaxrec.tables import row_init, unique


class Layout(Protocol):
  """Where the rows of an array lie. The array is a table ``[V, D]`` or its moments ``[V, ...]``."""

  def read(self, array: jax.Array, rows: jax.Array) -> jax.Array:
    """``array[rows]`` as [U, ...]; rows past the end read as zeros."""

  def write(self, array: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    """``array`` with ``rows`` (unique) set to ``values``; rows past the end are not written."""


@dataclasses.dataclass(frozen=True)
class RowMajor:
  """Row r lies at ``array[r]``."""

  def read(self, array: jax.Array, rows: jax.Array) -> jax.Array:
    return array.at[rows].get(mode="fill", fill_value=0)

  def write(self, array: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    return array.at[rows].set(values.astype(array.dtype), mode="drop", unique_indices=True)


@flax.struct.dataclass
class DeviceTables:
  """All tables of a model.

  Attributes:
    values: one array a stack, ``[num_rows, embedding_dim]``. Two-byte floats are kept as their u16
      words: XLA:CPU would widen a whole bfloat16 table to scatter into it.
    plan: which table lies in which stack, and which feature reads it; static.
    layout: how a stack lies in memory; static.
    fingerprints: words beside the rows of some stacks (``with_fingerprints``), or None. Rows that
      are replaced otherwise than by ``write_rows`` leave them behind.
  """

  values: dict[str, jax.Array]
  plan: stacks.TablePlan = flax.struct.field(pytree_node=False)
  layout: Layout = flax.struct.field(pytree_node=False, default=RowMajor())
  fingerprints: fingerprints_lib.Fingerprints | None = None

  def table(self, name: str) -> jax.Array:
    """``[vocab_size, embedding_dim]``: one table, copied out of its stack."""
    place = self.plan.known_place(name)
    rows = slice(place.offset, place.offset + place.table.vocab_size)
    return decode(self.values[place.stack.name][rows], place.stack.dtype)


def create(plan: stacks.TablePlan, key: jax.Array) -> DeviceTables:
  """Tables with their initial rows, a function of (key, table name, id) alone."""
  return DeviceTables(values=jax.jit(_initial_values, static_argnums=0)(plan, key), plan=plan)


def _initial_values(plan: stacks.TablePlan, key: jax.Array) -> dict[str, jax.Array]:
  values = {}
  for stack in plan.stacks:
    shape = (stack.num_rows, stack.embedding_dim)
    array = _encode(jnp.zeros(shape, stack.dtype), stack.dtype)
    for table, offset in zip(stack.tables, stack.offsets, strict=True):
      words = row_init.table_words(key, table)
      encode = functools.partial(_encode, dtype=stack.dtype)
      array = row_init.fill_table(array, words, table, offset, encode=encode)
    values[stack.name] = array
  return values


def row_plans(plan: stacks.TablePlan, batch: batch_lib.Batch) -> dict[str, batch_lib.RowPlan]:
  """The batch's own plan, or one made here, in jit, when it brings none."""
  if batch.rows is not None:
    row_plan.check_plan(batch, plan)
    return batch.rows
  plans = {}
  for stack in plan.stacks:
    ids = [_stacked_ids(plan, feature, batch) for feature in plan.features_of(stack)]
    made = unique.unique_rows(jnp.concatenate(ids), stack.num_rows)
    plans[stack.name] = dataclasses.replace(made, stack=plan.signature(stack))
  return plans


def _stacked_ids(
  plan: stacks.TablePlan, feature: config.FeatureConfig, batch: batch_lib.Batch
) -> jax.Array:
  values = jnp.asarray(batch.ids[feature.name].values)
  if values.dtype != jnp.int32:
    raise TypeError(
      f"feature {feature.name!r}: expected int32 ids on the device, got {values.dtype}"
    )
  is_id = (values >= 0) & (values < feature.table.vocab_size)
  is_id &= batch_lib.is_real(batch, feature.name)
  return jnp.where(is_id, values + jnp.int32(plan.offset(feature)), jnp.int32(id_bags.PAD_ID))


def read_rows(tables: DeviceTables, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """f32[U, D] a stack, for row numbers i32[U]; narrow tables are widened for arithmetic."""
  return {
    stack.name: decode(
      tables.layout.read(tables.values[stack.name], rows[stack.name]), stack.dtype
    ).astype(jnp.float32)
    for stack in tables.plan.stacks
    if stack.name in rows
  }


def all_rows(tables: DeviceTables) -> dict[str, jax.Array]:
  """f32[V, D] a stack: whole tables, for initial moments; in ``jit``, copied only where used."""
  return {
    stack.name: decode(tables.values[stack.name], stack.dtype).astype(jnp.float32)
    for stack in tables.plan.stacks
  }


def read_words(tables: DeviceTables, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """u32[U, W] of each stack that has fingerprints, for row numbers i32[U]."""
  kept = tables.fingerprints
  return {
    name: tables.layout.read(words, rows[name])
    for name, words in (kept.words if kept else {}).items()
    if name in rows
  }


def write_rows(
  tables: DeviceTables, rows: Mapping[str, jax.Array], values: Mapping[str, jax.Array]
) -> DeviceTables:
  """``tables`` with unique ``rows: i32[U]`` set to ``values: f32[U, D]``, in the stack's dtype, and
  their fingerprints, where there are some, made anew.
  """
  new, kept = dict(tables.values), tables.fingerprints
  words = dict(kept.words) if kept else {}
  for stack in tables.plan.stacks:
    name = stack.name
    if name not in rows:
      continue
    stored = _encode(values[name], stack.dtype)
    new[name] = tables.layout.write(new[name], rows[name], stored)
    if kept and name in words:  # of what was stored: a rounded row may lie beyond a hyperplane
      read = decode(stored, stack.dtype).astype(jnp.float32)
      words[name] = tables.layout.write(words[name], rows[name], kept.of(name, read))
  if kept:
    kept = dataclasses.replace(kept, words=words)
  return dataclasses.replace(tables, values=new, fingerprints=kept)


def _encode(values: jax.Array, dtype: str) -> jax.Array:
  values = values.astype(dtype)
  return values if dtype == "float32" else jax.lax.bitcast_convert_type(values, jnp.uint16)


def decode(stored: jax.Array, dtype: str) -> jax.Array:
  """Rows in their stack's dtype, of how they are kept."""
  return stored if dtype == "float32" else jax.lax.bitcast_convert_type(stored, jnp.dtype(dtype))
