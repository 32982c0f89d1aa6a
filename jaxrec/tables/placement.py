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
from typing import Any, Protocol

import jax

from jaxrec import config
from jaxrec.inputs import table_plan
from jaxrec.tables import row_gradients
from jaxrec.tables.layouts import layout as layout_lib
from jaxrec.tables.layouts import packed_rows


class Placement(Protocol):
  """Hashable: static in a jitted program. Its methods run inside one, on each device's own part."""

  @property
  def axes(self) -> tuple[str, ...]:
    """The mesh axes that a batch is split over; (): one device has all of it."""

  def layout(self, stack: str) -> layout_lib.Layout:
    """How this device's rows of a stack lie in its memory."""

  def num_rows(self, stack: table_plan.Stack) -> int:
    """How many rows of a stack this device holds: ids from there on are padding."""

  def column_axes(self, stack: str) -> tuple[str, ...]:
    """The mesh axes along which devices share a stack's columns."""

  def is_of(self, stack: table_plan.Stack, table: config.TableConfig, ids: jax.Array) -> jax.Array:
    """bool[U]: which of the rows ``ids`` that this device holds are of ``table``."""

  def numbering(self, plan: table_plan.TablePlan) -> table_plan.Numbering:
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
  layouts: tuple[tuple[str, layout_lib.Layout], ...] = ()

  def layout(self, stack: str) -> layout_lib.Layout:
    return dict(self.layouts).get(stack, layout_lib.RowMajor())

  def num_rows(self, stack: table_plan.Stack) -> int:
    return stack.num_rows

  def column_axes(self, stack: str) -> tuple[str, ...]:
    del stack
    return ()

  def is_of(self, stack: table_plan.Stack, table: config.TableConfig, ids: jax.Array) -> jax.Array:
    offset = stack.offsets[stack.tables.index(table)]
    return (ids >= offset) & (ids < offset + table.vocab_size)

  def numbering(self, plan: table_plan.TablePlan) -> table_plan.Numbering:
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


def one_device(plan: table_plan.TablePlan, platform: str = "tpu") -> OneDevice:
  """All tables on one device, those that are too narrow for its platform in lines.

  >>> from jaxrec.config import FeatureConfig, TableConfig
  >>> plan = table_plan.plan_tables([FeatureConfig("user", TableConfig("user", 1000, 16))])
  >>> one_device(plan).layout("d16_float32").shape(16)
  (128, 128)
  """
  chosen = tuple(
    (stack.name, packed_rows.Lines(stack.num_rows, stack.embedding_dim))
    for stack in plan.stacks
    if packed_rows.are_worth_it(platform, stack.embedding_dim)
  )
  return OneDevice(layouts=chosen)


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
      "device (jaxrec.runs.open_run), which may have any layout"
    )
