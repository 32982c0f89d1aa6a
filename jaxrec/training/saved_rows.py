"""Rows of a checkpoint, brought to where they lie now.

A checkpoint holds the arrays of tables and moments as they lay when it was saved. Under the same
layout Orbax restores them. Under another, this module reads them in pieces of bounded size and
writes each row to the device that holds it now: no process ever has a whole table, and a device has
its own rows and one piece.

*Source*: Orbax keeps arrays as zarr in OCDBT, which TensorStore reads by range.
*Read next*: jaxrec/training/checkpoint.py.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from jaxrec import tables as tables_lib
from jaxrec.sharding import row_map

PIECE_BYTES = 1 << 26

Arrays = dict[str, dict[str, Any]]  # by kind (values, words, moment_0, ...) and stack


class _Part(NamedTuple):
  """The rows and columns of an array that one device holds, and that array being filled."""

  device: jax.Device
  rows: slice
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
  return {
    kind: {
      stack: _array(folder, kind, leaf, _moves(before, now, stack), placement.layout(stack))
      for stack, leaf in stacks.items()
    }
    for kind, stacks in like.items()
  }


class _Move(NamedTuple):
  """A table's rows before and now."""

  before: row_map.MappedTable
  now: row_map.MappedTable


def _moves(before: row_map.RowMap, now: row_map.RowMap, stack: str) -> list[_Move]:
  tables = {name: table for name, table in now.tables.items() if table.stack == stack}
  return [_Move(before.tables[name], table) for name, table in tables.items()]


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
  like: jax.ShapeDtypeStruct,
  moves: Iterable[_Move],
  layout: tables_lib.Layout,
) -> jax.Array:
  parts = _empty_parts(like)
  for move in moves:
    stored = _open(folder, f"{kind}.{move.before.stack}")
    if stored.shape[1:] != like.shape[1:] or stored.dtype.numpy_dtype != like.dtype:
      raise ValueError(
        f"{kind} of stack {move.before.stack!r} are {stored.dtype.name}{list(stored.shape[1:])} a "
        f"row there and {like.dtype}{list(like.shape[1:])} here"
      )
    row_bytes = max(1, np.dtype(like.dtype).itemsize * int(np.prod(like.shape[1:])))
    for first, ids in move.before.pieces(max(1, PIECE_BYTES // row_bytes)):
      rows = move.now.rows_of(ids)
      if not any(((rows >= part.rows.start) & (rows < part.rows.stop)).any() for part in parts):
        continue
      found = stored[first : first + len(ids)].read().result()
      parts = [_written(part, rows, found, layout) for part in parts]
  arrays = [part.array for part in parts]
  return jax.make_array_from_single_device_arrays(like.shape, like.sharding, arrays)


def _open(folder: pathlib.Path, name: str) -> Any:
  kvstore = {"driver": "ocdbt", "base": f"file://{folder.absolute()}/", "path": f"{name}/"}
  return ts.open({"driver": "zarr", "kvstore": kvstore}, read=True, open=True).result()


def _empty_parts(like: jax.ShapeDtypeStruct) -> list[_Part]:
  parts = []
  where = like.sharding.addressable_devices_indices_map(like.shape)
  shape = like.sharding.shard_shape(like.shape)
  for device, index in where.items():
    rows, columns = (*index, slice(None))[:2]
    rows = slice(rows.start or 0, (rows.start or 0) + shape[0])
    zeros = jax.device_put(np.zeros(shape, like.dtype), device)
    parts.append(_Part(device, rows, columns, zeros))
  return parts


def _written(part: _Part, rows: np.ndarray, found: np.ndarray, layout: tables_lib.Layout) -> _Part:
  """``part`` with those of ``rows`` that it holds."""
  chosen = np.flatnonzero((rows >= part.rows.start) & (rows < part.rows.stop))
  if not len(chosen):
    return part
  size = 1 << (len(chosen) - 1).bit_length()  # few shapes, so few programs
  own = (part.rows.stop - part.rows.start) + np.arange(size, dtype=np.int32)  # past the end
  own[: len(chosen)] = rows[chosen] - part.rows.start
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
