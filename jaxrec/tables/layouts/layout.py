"""Says where the rows of an array lie in memory, and reads and writes them there.

Read next: jaxrec/tables/layouts/packed_rows.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax


class Layout(Protocol):
  """Where the rows of an array lie: of a table ``[V, D]``, or of its moments ``[V, ...]``."""

  def read(self, array: jax.Array, rows: jax.Array) -> jax.Array:
    """``array[rows]`` as [U, ...]; rows past the end read as zeros."""

  def write(self, array: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    """``array`` with ``rows`` (unique) set to ``values``; rows past the end are not written."""

  def read_range(self, array: jax.Array, start: int, count: int) -> jax.Array:
    """The rows from ``start`` on, in order: [count, ...]."""

  def write_range(self, array: jax.Array, start: Any, values: jax.Array) -> jax.Array:
    """``array`` with the rows from ``start`` on, which may be traced, set to ``values``."""

  def pack(self, rows: jax.Array) -> jax.Array:
    """The array that holds all rows, of ``rows: [V, ...]`` in order."""


@dataclasses.dataclass(frozen=True)
class RowMajor:
  """Row r lies at ``array[r]``."""

  def read(self, array: jax.Array, rows: jax.Array) -> jax.Array:
    return array.at[rows].get(mode="fill", fill_value=0)

  def write(self, array: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    return array.at[rows].set(values.astype(array.dtype), mode="drop", unique_indices=True)

  def read_range(self, array: jax.Array, start: int, count: int) -> jax.Array:
    return array[start : start + count]

  def write_range(self, array: jax.Array, start: Any, values: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, values.astype(array.dtype), start, axis=0)

  def pack(self, rows: jax.Array) -> jax.Array:
    return rows
