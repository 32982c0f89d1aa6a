"""Rows narrower than 128 lanes: several to a line, so that a TPU neither pads nor copies a table.

A TPU stores arrays in tiles of 128 lanes. To ``[V, D]`` with D < 128 its compiler gives another
order for what a step reads and writes than for what it is handed, and copies the whole table from
one to the other. ``[lines, 128]`` has one order only. Row r lies on line ``r // rows_per_line``, in
the lanes from ``(r % rows_per_line) * width``, where ``width`` is D rounded up to a power of two.

A read gathers whole lines and picks lanes. A write must leave a line's other rows alone, which may
be written in the same step: it scatters, to whole lines again, the *bits that change*, and an
exclusive or puts them in. Bits of different rows never meet, so the order does not matter and no
arithmetic touches a float. (Windows of one row inside a line would say the same with
``lax.scatter``; the TPU's compiler makes of them a loop over the rows, five kernels for each.)

*Source*: design, section 4.
*Read next*: jaxrec/tables/placement.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import jax_internals
from jaxrec.tables.layouts import layout

LANES = 128

_TO_LINES = jax.lax.ScatterDimensionNumbers(
  update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)
)


def are_worth_it(platform: str, columns: int) -> bool:
  """Whether rows of so many columns should lie in lines on devices of a JAX platform."""
  return platform == "tpu" and columns < LANES


@dataclasses.dataclass(frozen=True)
class Lines:
  """A ``Layout`` of rows that are narrower than a line.

  Arrays beside the rows are told by their shape. Those with another number of columns lie in lines
  as well if it is a power of two, as fingerprints have; everything else, such as one number a row,
  lies by row.

  Attributes:
    num_rows: V.
    columns: D of the rows, below 128.
  """

  num_rows: int
  columns: int

  def shape(self, columns: int) -> tuple[int, int]:
    """Of lines for all rows, if each has so many columns: 128 rows take as many lines as lanes."""
    return -(-self.num_rows // LANES) * width_of(columns), LANES

  def read(self, array: jax.Array, rows: jax.Array) -> jax.Array:
    columns = self.columns_in(array.shape)
    if columns is None:
      return layout.RowMajor().read(array, rows)
    line, first_lane = self._places(rows, columns)
    found = array.at[line].get(mode="fill", fill_value=0)
    while found.shape[1] > width_of(columns):
      half = found.shape[1] // 2
      is_upper = (first_lane & half)[:, None] != 0
      found = jnp.where(is_upper, found[:, half:], found[:, :half])
    return found[:, :columns]

  def write(self, array: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    columns = self.columns_in(array.shape)
    if columns is None:
      return layout.RowMajor().write(array, rows, values)
    width = width_of(columns)
    line, first_lane = self._places(rows, columns)
    change = _words(values.astype(array.dtype)) ^ _words(self.read(array, rows))
    change = jnp.tile(jnp.pad(change, ((0, 0), (0, width - columns))), (1, LANES // width))
    is_own = jnp.arange(LANES, dtype=jnp.int32) // width * width == first_lane[:, None]
    return _flip(array, line, jnp.where(is_own, change, 0))

  def read_range(self, array: jax.Array, start: int, count: int) -> jax.Array:
    columns = self.columns_in(array.shape)
    if columns is None:
      return layout.RowMajor().read_range(array, start, count)
    width = width_of(columns)
    first = start * width // LANES
    lines = array[first : -(-(start + count) * width // LANES)]
    skipped = start - first * LANES // width
    return lines.reshape(-1, width)[skipped : skipped + count, :columns]

  def write_range(self, array: jax.Array, start: Any, values: jax.Array) -> jax.Array:
    rows = start + jnp.arange(values.shape[0], dtype=jnp.int32)
    return self.write(array, rows, values)

  def pack(self, rows: jax.Array) -> jax.Array:
    if rows.ndim != 2 or not self._fits(rows.shape[1]):
      return rows
    num_lines, _ = self.shape(rows.shape[1])
    width = width_of(rows.shape[1])
    room = ((0, num_lines * LANES // width - rows.shape[0]), (0, width - rows.shape[1]))
    return jnp.pad(rows, room).reshape(num_lines, LANES)

  def _fits(self, columns: int) -> bool:
    """Whether an array with so many columns lies in lines, where its shape tells how many."""
    if columns == self.columns:
      return True
    is_own_width = columns == width_of(self.columns)
    return columns == width_of(columns) < LANES and not is_own_width

  def columns_in(self, shape: tuple[int, ...]) -> int | None:
    """How many columns the rows have that an array holds in lines; None: it lies by row."""
    widths = (1, 2, 4, 8, 16, 32, 64)
    known: dict[tuple[int, ...], int] = {self.shape(n): n for n in (*widths, self.columns)}
    return known.get(shape)

  def _places(self, rows: jax.Array, columns: int) -> tuple[jax.Array, jax.Array]:
    """i32[U] lines and first lanes; the line is past the end for rows that are."""
    width = width_of(columns)
    rows_per_line = LANES // width
    num_lines, _ = self.shape(columns)
    # The last line may have room for rows past the end: they are padding, and must not be there.
    line = jnp.where(rows < self.num_rows, rows // rows_per_line, num_lines)
    return line, rows % rows_per_line * width


def width_of(columns: int) -> int:
  """Lanes that a row of so many columns takes."""
  return 1 << (columns - 1).bit_length()


def _words(x: jax.Array) -> jax.Array:
  return jax.lax.bitcast_convert_type(x, jnp.dtype(f"u{x.dtype.itemsize}"))


def _flip(array: jax.Array, lines: jax.Array, change: jax.Array) -> jax.Array:
  """``array`` with the bits of unsigned ``change: [U, 128]`` flipped in ``lines: i32[U]``.

  Lines may repeat. For integers ``lax.scatter_add`` would do; of floats, turning a table into words
  copies it, so the words are made inside the scatter, number by number, which ``jax.lax`` has no
  function for.
  """
  updates = jax.lax.bitcast_convert_type(change, array.dtype)
  return jax_internals.scatter(array, lines[:, None], updates, _TO_LINES, _exclusive_or)


def _exclusive_or(a: jax.Array, b: jax.Array) -> jax.Array:
  return jax.lax.bitcast_convert_type(_words(a) ^ _words(b), a.dtype)
