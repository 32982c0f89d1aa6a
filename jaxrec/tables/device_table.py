"""Embedding tables in device memory.

Tables of one kind are stacked into one array (inputs/table_plan.py). A step touches only the rows
that its batch names: they are gathered once, computed on, and set back in place, so a step costs
O(batch) whatever the vocabulary. Which device holds a row, and how rows lie in its memory, is a
value, the tables' ``placement``: everything else reads and writes rows through it.

Source: design section 4; fused tables as in TorchRec, donated in place as XLA allows.
Read next: jaxrec/tables/row_gradients.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import chex
import flax.struct
import jax
import jax.numpy as jnp

from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import table_plan
from jaxrec.tables import fingerprints as fingerprints_lib
from jaxrec.tables import placement as placement_lib
from jaxrec.tables import row_init


@flax.struct.dataclass
class DeviceTables:
  """All tables of a model.

  Attributes:
    values: one array a stack, its rows as the placement's layout has them. Two-byte floats are kept
      as their u16 words: XLA:CPU would widen a whole bfloat16 table to scatter into it.
    plan: which table lies in which stack, and which feature reads it; static.
    placement: which devices hold which rows, and how they lie there; static.
    fingerprints: words beside the rows of some stacks (``with_fingerprints``), or None. Rows that
      are replaced otherwise than by ``write_rows`` leave them behind.
  """

  values: dict[str, jax.Array]
  plan: table_plan.TablePlan = flax.struct.field(pytree_node=False)
  placement: placement_lib.Placement = flax.struct.field(
    pytree_node=False, default=placement_lib.OneDevice()
  )
  fingerprints: fingerprints_lib.Fingerprints | None = None

  def table(self, name: str) -> jax.Array:
    """``[vocab_size, embedding_dim]``: one table, copied out of its stack; on one device."""
    place = self.plan.known_place(name)
    placement_lib.check_on_one_device(self.placement, f"table {name!r}")
    layout, stored = self.placement.layout(place.stack.name), self.values[place.stack.name]
    rows = layout.read_range(stored, place.offset, place.table.vocab_size)
    return decode(rows, place.stack.dtype)


def create(
  plan: table_plan.TablePlan, key: jax.Array, placement: placement_lib.OneDevice | None = None
) -> DeviceTables:
  """Tables with their initial rows, a function of (key, table name, id) alone."""
  placement = placement_lib.OneDevice() if placement is None else placement
  values = jax.jit(_initial_values, static_argnums=(0, 2))(plan, key, placement)
  return DeviceTables(values=values, plan=plan, placement=placement)


def _initial_values(
  plan: table_plan.TablePlan, key: jax.Array, placement: placement_lib.OneDevice
) -> dict[str, jax.Array]:
  values = {}
  for stack in plan.stacks:
    layout, shape = placement.layout(stack.name), (stack.num_rows, stack.embedding_dim)
    array = layout.pack(encode(jnp.zeros(shape, stack.dtype), stack.dtype))
    for table, offset in zip(stack.tables, stack.offsets, strict=True):
      words = row_init.table_words(key, table)
      stored_as = functools.partial(encode, dtype=stack.dtype)
      array = row_init.fill_table(array, words, table, offset, encode=stored_as, layout=layout)
    values[stack.name] = array
  return values


def fetch(
  tables: DeviceTables, plans: Mapping[str, batch_lib.RowPlan]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """What a batch reads, from wherever it lies: by stack the rows f32[U, D] of its row plan, and
  the words u32[U, W] of those that have fingerprints.
  """
  kept = tables.fingerprints.words if tables.fingerprints else {}
  stored = {
    name: [array, *([kept[name]] if name in kept else [])] for name, array in tables.values.items()
  }
  found = tables.placement.fetch(stored, {name: plan.rows for name, plan in plans.items()})
  rows = {s.name: _widened(found[s.name][0], s.dtype) for s in tables.plan.stacks}
  return rows, {name: found[name][1] for name in kept}


def read_rows(tables: DeviceTables, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """f32[U, D] a stack, of this device's rows i32[U]; narrow tables are widened for arithmetic."""
  return {
    stack.name: _widened(
      tables.placement.layout(stack.name).read(tables.values[stack.name], rows[stack.name]),
      stack.dtype,
    )
    for stack in tables.plan.stacks
    if stack.name in rows
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
    chex.assert_equal_shape_prefix([rows[name], values[name]], 1)
    chex.assert_rank([rows[name], values[name]], [1, 2])
    layout, stored = tables.placement.layout(name), encode(values[name], stack.dtype)
    new[name] = layout.write(new[name], rows[name], stored)
    if kept and name in words:  # of what was stored: a rounded row may lie beyond a hyperplane
      made = kept.of(name, _widened(stored, stack.dtype))
      words[name] = layout.write(words[name], rows[name], made)
  if kept:
    kept = dataclasses.replace(kept, words=words)
  return dataclasses.replace(tables, values=new, fingerprints=kept)


def encode(values: jax.Array, dtype: str) -> jax.Array:
  """How rows are kept, of rows of any float dtype."""
  values = values.astype(dtype)
  return values if dtype == "float32" else jax.lax.bitcast_convert_type(values, jnp.uint16)


def decode(stored: jax.Array, dtype: str) -> jax.Array:
  """Rows in their stack's dtype, of how they are kept."""
  return stored if dtype == "float32" else jax.lax.bitcast_convert_type(stored, jnp.dtype(dtype))


def _widened(stored: jax.Array, dtype: str) -> jax.Array:
  return decode(stored, dtype).astype(jnp.float32)
