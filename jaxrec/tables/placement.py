"""Which devices hold a table's rows, and how a step gets at them.

A step asks for rows, computes, and gives gradients back. On one device that is a gather and nothing
more; on several the rows travel (jaxrec/sharding/). The step does not know: it speaks to the
tables' ``Placement``, and inside it each device sees its own part of the batch and of the tables.

*Source*: design, sections 2 and 4.
*Read next*: jaxrec/tables/device_table.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax

from jaxrec import config
from jaxrec.features import stacks

if TYPE_CHECKING:
  from jaxrec.tables import row_gradients


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


class Placement(Protocol):
  """Hashable: static in a jitted program. Its methods run inside one, on each device's own part."""

  @property
  def axes(self) -> tuple[str, ...]:
    """The mesh axes that a batch is split over; (): one device has all of it."""

  def layout(self, stack: str) -> Layout:
    """How this device's rows of a stack lie in its memory."""

  def num_rows(self, stack: stacks.Stack) -> int:
    """How many rows of a stack this device holds: ids from there on are padding."""

  def column_axes(self, stack: str) -> tuple[str, ...]:
    """The mesh axes along which devices share a stack's columns."""

  def is_of(self, stack: stacks.Stack, table: config.TableConfig, ids: jax.Array) -> jax.Array:
    """bool[U]: which of the rows ``ids`` that this device holds are of ``table``."""

  def numbering(self, plan: stacks.TablePlan) -> stacks.Numbering:
    """Which row numbers the row plans of batches speak of, for the tables of ``plan``."""

  def fetch(
    self, stored: Mapping[str, Sequence[jax.Array]], rows: Mapping[str, jax.Array]
  ) -> dict[str, list[jax.Array]]:
    """Rows ``i32[U]`` of a row plan, out of arrays that lie as the stack's rows do: [U, ...] each.

    Both by stack; a stack that ``stored`` does not name is not read.
    """

  def on_each_device(self, fn: Callable[[Any], Any], given: Any) -> Any:
    """``fn(given)``, tables or moments of tables, run on every device for what it has of them."""

  def collect(
    self, row_grads: Mapping[str, row_gradients.RowGradients]
  ) -> dict[str, row_gradients.RowGradients]:
    """Brings gradients of this device's batch, by the rows of its row plan, to who holds the rows.

    Returns those of rows that this device holds, each summed over all devices.
    """


@dataclasses.dataclass(frozen=True)
class OneDevice:
  """All rows on one device: a row plan's rows are the arrays' own.

  Attributes:
    axes: none.
    layouts: by stack, of those that do not lie row by row (``tables.one_device``).
  """

  axes: tuple[str, ...] = ()
  layouts: tuple[tuple[str, Layout], ...] = ()

  def layout(self, stack: str) -> Layout:
    return dict(self.layouts).get(stack, RowMajor())

  def num_rows(self, stack: stacks.Stack) -> int:
    return stack.num_rows

  def column_axes(self, stack: str) -> tuple[str, ...]:
    del stack
    return ()

  def is_of(self, stack: stacks.Stack, table: config.TableConfig, ids: jax.Array) -> jax.Array:
    offset = stack.offsets[stack.tables.index(table)]
    return (ids >= offset) & (ids < offset + table.vocab_size)

  def numbering(self, plan: stacks.TablePlan) -> stacks.Numbering:
    return plan

  def fetch(
    self, stored: Mapping[str, Sequence[jax.Array]], rows: Mapping[str, jax.Array]
  ) -> dict[str, list[jax.Array]]:
    return {
      name: [self.layout(name).read(array, rows[name]) for array in arrays]
      for name, arrays in stored.items()
    }

  def on_each_device(self, fn: Callable[[Any], Any], given: Any) -> Any:
    return fn(given)

  def collect(
    self, row_grads: Mapping[str, row_gradients.RowGradients]
  ) -> dict[str, row_gradients.RowGradients]:
    return dict(row_grads)


def total(x: Any, axes: tuple[str, ...]) -> Any:
  """The sum of ``x``, or of each array of a pytree, over the devices of ``axes``."""
  return jax.lax.psum(x, axes) if axes else x


def own_key(key: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """A key for what each device of ``axes`` draws for its own part of a batch."""
  return jax.random.fold_in(key, jax.lax.axis_index(axes)) if axes else key


def check_on_one_device(placement: Placement, what: str) -> None:
  """Raises ValueError for tables over several devices, where an id is no row of an array."""
  if placement.axes:
    raise ValueError(
      f"{what}: the tables are spread over the devices of a mesh; read a checkpoint of them on one "
      "device (jaxrec.training.reopen), which may have any layout"
    )
