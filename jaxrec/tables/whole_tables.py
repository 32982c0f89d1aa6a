"""What is done to a table as a whole, outside of steps: rows from elsewhere, words of all rows.

Read next: jaxrec/tables/fingerprints.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxrec.tables import device_table
from jaxrec.tables import fingerprints as fingerprints_lib

_HASHED_AT_ONCE = 1 << 14  # rows


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
    by_stack[place.stack.name] = jnp.array(found)  # a copy, so that both states can be donated
  empty = fingerprints_lib.Fingerprints({}, by_stack, variant)
  words = jax.jit(_all_words)(tables, empty)
  return dataclasses.replace(tables, fingerprints=dataclasses.replace(empty, words=words))


def _all_words(
  tables: device_table.DeviceTables, made_with: fingerprints_lib.Fingerprints
) -> dict[str, jax.Array]:
  dtypes = {stack.name: stack.dtype for stack in tables.plan.stacks}

  def of_row(name: str, stored: jax.Array) -> jax.Array:
    return made_with.of(name, device_table.decode(stored, dtypes[name]).astype(jnp.float32))

  return {
    name: jax.lax.map(
      functools.partial(of_row, name), tables.values[name], batch_size=_HASHED_AT_ONCE
    )
    for name in made_with.planes
  }
