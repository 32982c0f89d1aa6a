"""Rows of a checkpoint, brought to where they lie now.

A checkpoint holds the arrays of tables and moments as they lay when it was saved. Under the same
layout Orbax restores them. Under another, this module reads them in pieces of bounded size and
writes each row to the device that holds it now: no process ever has a whole table, and a device has
its own rows and one piece.

*Source*: Orbax keeps arrays as zarr in OCDBT, which TensorStore reads by range.
*Read next*: jaxrec/runs/checkpoints/checkpoint.py.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from jaxrec import tables as tables_lib
from jaxrec.sharding import row_map
from jaxrec.tables.layouts import packed_rows

PIECE_BYTES = 1 << 26
_LEAST_ROWS = 1 << 10  # that are written at once

Arrays = dict[str, dict[str, Any]]  # by kind (values, words, moment_0, ...) and stack


class _Part(NamedTuple):
  """Of an array, what one device holds, being filled: a shard's rows, some of their columns."""

  device: jax.Device
  shard: int
  columns: slice
  array: jax.Array


def read(
  folder: pathlib.Path,
  before: row_map.RowMap,
  like: Arrays,
  now: row_map.RowMap,
  placement: tables_lib.Placement,
) -> Arrays:
  """The arrays ``like``, filled with the rows that ``folder`` has.

  Args:
    folder: of the checkpoint's item that holds the arrays.
    before: where rows lie in these.
    like: shapes, dtypes and shardings of the arrays wanted.
    now: where rows lie in those.
    placement: of the tables now.

  Raises:
    ValueError: a table is missing, or has another number of rows or columns; it is named.
  """
  _check_tables(before, now)
  moves = [_Move(before.tables[name], table) for name, table in now.tables.items()]
  return _filled(folder, like, moves, placement)


def follow(
  folder: pathlib.Path,
  before: row_map.RowMap,
  current: Arrays,
  now: row_map.RowMap,
  placement: tables_lib.Placement,
  old_ids: Mapping[str, np.ndarray],
) -> Arrays:
  """The arrays ``current`` with those rows that continue one of ``folder``; others stay.

  Args:
    folder: of the checkpoint's item that holds the arrays.
    before: where rows lie in these.
    current: arrays, which are given up.
    now: where rows lie in those.
    placement: of the tables now.
    old_ids: by name of a table there and here, i32[V]: the id that each id was there; -1: none.

  Raises:
    ValueError: a table has another number of columns there; it is named.
  """
  moves = [
    _Move(before.tables[name], now.tables[name], _Followers(old)) for name, old in old_ids.items()
  ]
  return _filled(folder, current, moves, placement)


class _Followers:
  """Which ids of a table continue those of another."""

  def __init__(self, old_ids: np.ndarray):
    self._ids = np.argsort(old_ids, kind="stable")
    self._old = old_ids[self._ids]

  def of(self, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids i64[M] that continue one of ``old: i64[N]``, ascending, and of each its place there.

    An id there may go on in several, or in none.
    """
    first, end = np.searchsorted(self._old, old), np.searchsorted(self._old, old, side="right")
    places = np.repeat(np.arange(len(old)), end - first)
    begins = np.cumsum(end - first) - (end - first)
    return self._ids[np.arange(len(places)) + (first - begins)[places]], places


class _Move(NamedTuple):
  """A table's rows before and now; ``followers`` None: the same ids."""

  before: row_map.MappedTable
  now: row_map.MappedTable
  followers: _Followers | None = None

  def rows_now(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | slice]:
    """Of ids there, the row numbers here that they have, and which of ``ids`` each was."""
    if self.followers is None:
      return self.now.rows_of(ids), slice(None)
    found, places = self.followers.of(ids)
    return self.now.rows_of(found), places


def _filled(
  folder: pathlib.Path, arrays: Arrays, moves: list[_Move], placement: tables_lib.Placement
) -> Arrays:
  return {
    kind: {
      stack: _array(
        folder, kind, leaf, [m for m in moves if m.now.stack == stack], placement.layout(stack)
      )
      for stack, leaf in stacks.items()
    }
    for kind, stacks in arrays.items()
  }


def _check_tables(before: row_map.RowMap, now: row_map.RowMap) -> None:
  if before.tables.keys() != now.tables.keys():
    different = sorted(before.tables.keys() ^ now.tables.keys())
    raise ValueError(f"tables {', '.join(different)} are in one of checkpoint and model only")
  for name, table in now.tables.items():
    was = before.tables[name].vocab_size
    if was != table.vocab_size:
      raise ValueError(f"table {name!r} has {was} rows there and {table.vocab_size} here")


def _array(
  folder: pathlib.Path,
  kind: str,
  like: Any,
  moves: Sequence[_Move],
  layout: tables_lib.Layout,
) -> jax.Array:
  if not moves:
    return like
  parts: list[_Part] = []
  for move in moves:
    stored = _Stored(_open(folder, f"{kind}.{move.before.stack}"), move.before)
    wanted = _Stored(like, move.now)
    if (stored.columns, stored.dtype) != (wanted.columns, wanted.dtype):
      raise ValueError(
        f"{kind} of stack {move.before.stack!r} are {stored.columns} {stored.dtype} a row there, "
        f"and {wanted.columns} {wanted.dtype} here"
      )
    parts = parts or _parts_of(wanted)
    row_bytes = np.dtype(like.dtype).itemsize * (stored.columns or 1)
    for first, ids in move.before.pieces(max(1, PIECE_BYTES // row_bytes)):
      rows, places = move.rows_now(ids)
      if np.isin(rows // move.now.rows_per_shard, [part.shard for part in parts]).any():
        found = stored.read(first, len(ids))[places]
        parts = [_written(part, rows, move.now.rows_per_shard, found, layout) for part in parts]
  arrays = [part.array for part in parts]
  return jax.make_array_from_single_device_arrays(like.shape, like.sharding, arrays)


class _Stored:
  """An array of a stack's rows, in lines or not: here a shape, or on disk."""

  def __init__(self, array: Any, table: row_map.MappedTable):
    self.array, self._table = array, table
    self.dtype = np.dtype(getattr(array.dtype, "numpy_dtype", array.dtype))
    self._own: int | None = None  # columns of a device, if they are in lines
    if table.in_lines and len(array.shape) == 2 and array.shape[1] % packed_rows.LANES == 0:
      self._lines = array.shape[0] // table.num_shards
      layout = packed_rows.Lines(table.rows_per_shard, table.columns)
      self._own = layout.columns_in((self._lines, packed_rows.LANES))

  @property
  def columns(self) -> int | None:
    """Of a whole row; None: one number a row."""
    if len(self.array.shape) == 1:
      return None
    return (
      self.array.shape[1]
      if self._own is None
      else self.array.shape[1] // packed_rows.LANES * self._own
    )

  def columns_at(self, index: slice) -> slice:
    """Which of a row's columns a device has that has these of the array."""
    if self._own is None or index.start is None:
      return index
    block = index.start // packed_rows.LANES
    return slice(block * self._own, (block + 1) * self._own)

  def read(self, first: int, count: int) -> np.ndarray:
    """Rows [count, ...] from the one numbered ``first`` on, all of one shard."""
    if self._own is None:
      return self.array[first : first + count].read().result()
    shard, start = divmod(first, self._table.rows_per_shard)
    width = packed_rows.width_of(self._own)
    line = start * width // packed_rows.LANES
    last = -(-(start + count) * width // packed_rows.LANES)
    offset = shard * self._lines
    found = self.array[offset + line : offset + last].read().result()
    skipped = start - line * packed_rows.LANES // width
    blocks = np.split(found, found.shape[1] // packed_rows.LANES, axis=1)
    rows = [block.reshape(-1, width)[skipped : skipped + count] for block in blocks]
    return np.concatenate([block[:, : self._own] for block in rows], axis=1)


def _open(folder: pathlib.Path, name: str) -> Any:
  base = {"driver": "file", "path": f"{folder.absolute()}/"}
  kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
  return ts.open({"driver": "zarr", "kvstore": kvstore}, read=True, open=True).result()


def _parts_of(wanted: _Stored) -> list[_Part]:
  """Of an array, each device's part of it; of a shape, zeros."""
  parts, like = [], wanted.array
  shape = like.sharding.shard_shape(like.shape)
  if isinstance(like, jax.Array):
    found = [(one.device, one.index, one.data) for one in like.addressable_shards]
  else:
    where = like.sharding.addressable_devices_indices_map(like.shape)
    zeros = np.zeros(shape, like.dtype)
    found = [(device, index, jax.device_put(zeros, device)) for device, index in where.items()]
  for device, index, array in found:
    rows, columns = (*index, slice(None))[:2]
    shard = (rows.start or 0) // shape[0]
    parts.append(_Part(device, shard, wanted.columns_at(columns), array))
  return parts


def _written(
  part: _Part,
  rows: np.ndarray,
  rows_per_shard: int,
  found: np.ndarray,
  layout: tables_lib.Layout,
) -> _Part:
  """``part`` with those of ``rows`` that it holds."""
  chosen = np.flatnonzero(rows // rows_per_shard == part.shard)
  if not len(chosen):
    return part
  size = max(_LEAST_ROWS, 1 << (len(chosen) - 1).bit_length())  # few shapes, so few programs
  own = rows_per_shard + np.arange(size, dtype=np.int32)  # past the end
  own[: len(chosen)] = rows[chosen] % rows_per_shard
  taken = found[chosen] if found.ndim == 1 else found[chosen][:, part.columns]
  values = np.zeros((size, *taken.shape[1:]), taken.dtype)
  values[: len(chosen)] = taken
  array = _write(layout, part.array, *jax.device_put((own, values), part.device))
  return part._replace(array=array)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _write(
  layout: tables_lib.Layout, array: jax.Array, rows: jax.Array, values: jax.Array
) -> jax.Array:
  return layout.write(array, rows, jnp.asarray(values))
