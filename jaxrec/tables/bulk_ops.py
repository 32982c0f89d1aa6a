"""What is done to a table as a whole, outside of steps: rows from elsewhere, words of all rows.

Read next: jaxrec/tables/fingerprints.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import config
from jaxrec.inputs import table_plan
from jaxrec.tables import device_table
from jaxrec.tables import fingerprints as fingerprints_lib
from jaxrec.tables import placement as placement_lib

_HASHED_AT_ONCE = 1 << 14  # rows


def all_rows(tables: device_table.DeviceTables) -> dict[str, jax.Array]:
  """f32[V, D] a stack: whatever this device holds, for initial moments; in ``jit``, copied only
  where used.
  """
  rows = {}
  for stack in tables.plan.stacks:
    layout, count = tables.placement.layout(stack.name), tables.placement.num_rows(stack)
    stored = layout.read_range(tables.values[stack.name], 0, count)
    rows[stack.name] = device_table.decode(stored, stack.dtype).astype(jnp.float32)
  return rows


def laid_out(
  tables: device_table.DeviceTables, row_state: Any, placement: placement_lib.Placement
) -> tuple[device_table.DeviceTables, Any]:
  """The same rows and moments, where they are, but as the layouts of ``placement`` have them.

  So that a checkpoint need not depend on them: with ``OneDevice()``, or a plan for ``"cpu"``, every
  array is ``[num_rows, ...]`` in the order of its rows.

  Args:
    tables: all of them.
    row_state: their RowOptState.
    placement: one that has the same rows on the same devices.
  """

  def own_part(given: Any) -> Any:
    tables, row_state = given
    values, moments, words = dict(tables.values), dict(row_state.rows), {}
    kept = tables.fingerprints
    for stack in tables.plan.stacks:
      name, count = stack.name, placement.num_rows(stack)
      old, new = tables.placement.layout(name), placement.layout(name)
      values[name] = new.pack(old.read_range(values[name], 0, count))
      moments[name] = tuple(new.pack(old.read_range(leaf, 0, count)) for leaf in moments[name])
      if kept and name in kept.words:
        words[name] = new.pack(old.read_range(kept.words[name], 0, count))
    kept = dataclasses.replace(kept, words=words) if kept else None
    tables = dataclasses.replace(tables, values=values, fingerprints=kept, placement=placement)
    return tables, dataclasses.replace(row_state, rows=moments)

  on_devices = functools.partial(tables.placement.on_each_device, own_part)
  return jax.jit(on_devices)((tables, row_state))


def with_table(
  tables: device_table.DeviceTables, name: str, rows: jax.Array
) -> device_table.DeviceTables:
  """``tables`` with the rows of one table replaced: vectors trained, or made of content, elsewhere.

  Args:
    tables: all of them; moments that an optimizer keeps are not touched.
    name: of the table.
    rows: f32[vocab_size, D], in the order of its ids.

  Raises:
    KeyError: no such table.
    ValueError: ``rows`` have another shape.
  """
  place = tables.plan.known_place(name)
  placement_lib.check_on_one_device(tables.placement, f"table {name!r}")
  expected = (place.table.vocab_size, place.table.embedding_dim)
  if rows.shape != expected:
    raise ValueError(f"table {name!r}: expected rows {list(expected)}, got {list(rows.shape)}")
  ids = place.offset + jnp.arange(len(rows), dtype=jnp.int32)
  return device_table.write_rows(
    tables, {place.stack.name: ids}, {place.stack.name: jnp.asarray(rows)}
  )


def with_fingerprints(
  tables: device_table.DeviceTables,
  planes: Mapping[str, jax.Array],
  *,
  variant: str = "inner_product",
) -> device_table.DeviceTables:
  """``tables`` with the fingerprints of every row of the stacks that ``planes`` name.

  From then on whatever writes a row renews its words, and ``embed`` hands those of a batch's rows
  to the model in ``RowSequence.words``.

  Args:
    tables: with fingerprints or without; old ones are forgotten.
    planes: by table f32[D, m], the hyperplanes that the model searches with. The other tables of
      its stack have words too.
    variant: of ``layers.fingerprints``.

  Raises:
    KeyError: no such table.
    ConfigError: a table whose columns devices share.
    ValueError: two tables of one stack with hyperplanes of their own.
  """
  by_stack: dict[str, jax.Array] = {}
  for table, found in planes.items():
    place = tables.plan.known_place(table)
    if place.stack.name in by_stack:
      raise ValueError(
        f"fingerprints: table {table!r} lies in one stack with another table of `planes`, and a "
        "stack has one set of hyperplanes; name one of the two"
      )
    axes = tables.placement.column_axes(place.stack.name)
    config.require(
      not axes,
      f"fingerprints: table {table!r} lies column_wise, devices along {', '.join(axes)} share its "
      "columns, and a fingerprint is of a whole row; give the table a layout with whole rows, such "
      "as row_wise",
    )
    by_stack[place.stack.name] = jnp.array(found)  # a copy, so that both states can be donated
  made_with = fingerprints_lib.Fingerprints({}, by_stack, variant)
  tables = dataclasses.replace(tables, fingerprints=made_with)
  made = jax.jit(functools.partial(tables.placement.on_each_device, _of_all_rows))(tables)
  return dataclasses.replace(tables, fingerprints=made)


def _of_all_rows(tables: device_table.DeviceTables) -> fingerprints_lib.Fingerprints:
  """The fingerprints of ``tables``, with words for all rows that this device holds."""
  kept, words = tables.fingerprints, {}
  assert kept is not None
  for stack in tables.plan.stacks:
    if stack.name in kept.planes:
      layout = tables.placement.layout(stack.name)
      of_row = functools.partial(_words_of_row, tables, kept, stack)
      ids = jnp.arange(tables.placement.num_rows(stack), dtype=jnp.int32)
      words[stack.name] = layout.pack(jax.lax.map(of_row, ids, batch_size=_HASHED_AT_ONCE))
  return dataclasses.replace(kept, words=words)


def _words_of_row(
  tables: device_table.DeviceTables,
  kept: fingerprints_lib.Fingerprints,
  stack: table_plan.Stack,
  row: jax.Array,
) -> jax.Array:
  layout = tables.placement.layout(stack.name)
  (stored,) = layout.read(tables.values[stack.name], row[None])
  return kept.of(stack.name, device_table.decode(stored, stack.dtype).astype(jnp.float32))
