"""What became of each table: rows touched, dead rows, rows of zeros, norms.

A row's first value is a function of (seed, table, id), so whether training has ever moved it can be
read off the row itself: recompute, compare bits. That takes a chunk of rows at a time and never a
second table. A weight that L1 holds at zero has its first value too, but its moments have moved, so
these are compared as well where they are given.

A row that was looked up and whose gradients were all zero still has its first bits: it counts as
dead, as it has learned nothing.

Read next: jaxrec/tables/row_init.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import config
from jaxrec.inputs import table_plan
from jaxrec.tables import device_table, placement, row_init
from jaxrec.tables.layouts import layout as layout_lib
from jaxrec.tables.optimizers import row_optimizer

_CHUNK_ROWS = 1 << 16


@dataclasses.dataclass(frozen=True)
class TableStatistics:
  """One table.

  Attributes:
    rows: V.
    embedding_dim: D.
    num_bytes: of the rows, without moments.
    touched_rows: rows of which the value's bits, or a moment, are not the initial ones.
    zero_rows: touched rows in which every number is zero.
    mean_norm: mean Euclidean norm of all rows, summed in float64.
    max_norm: the largest of them.
  """

  rows: int
  embedding_dim: int
  num_bytes: int
  touched_rows: int
  zero_rows: int
  mean_norm: float
  max_norm: float

  @property
  def dead_rows(self) -> int:
    return self.rows - self.touched_rows


def table_statistics(
  tables: device_table.DeviceTables,
  key: jax.Array,
  *,
  row_state: row_optimizer.RowOptState | None = None,
  optimizer: row_optimizer.RowOptimizer | None = None,
  chunk_rows: int = _CHUNK_ROWS,
) -> dict[str, TableStatistics]:
  """Statistics by table name, in the order of the stacks.

  Args:
    tables: to look at.
    key: the one they were created with (``tables.create``).
    row_state: the moments of these tables, to be compared as well.
    optimizer: whose state that is (``by_label``).
    chunk_rows: rows looked at together; memory is a few such chunks.
  """
  placement.check_on_one_device(tables.placement, "table_statistics")
  moments: dict[str, list[_Moment]] = {}
  if row_state is not None and optimizer is not None:
    moments = _moments(tables.plan, row_state, optimizer)
  return {
    table.name: _statistics(
      tables, key, table, stack.name, offset, moments.get(stack.name, []), chunk_rows
    )
    for stack in tables.plan.stacks
    for table, offset in zip(stack.tables, stack.offsets, strict=True)
  }


class _Moment(NamedTuple):
  """A row leaf [V, ...] of a stack, and what it is for a row that was never touched, [1, ...]."""

  leaf: jax.Array
  first: np.ndarray


def _moments(
  plan: table_plan.TablePlan,
  row_state: row_optimizer.RowOptState,
  optimizer: row_optimizer.RowOptimizer,
) -> dict[str, list[_Moment]]:
  """The row leaves of each stack, but for those that begin as a function of their row's value."""
  zeros, ones = (
    optimizer.init(
      {stack.name: jnp.full((1, stack.embedding_dim), value) for stack in plan.stacks}
    ).rows
    for value in (0.0, 1.0)
  )
  return {
    name: [
      _Moment(leaf, np.asarray(zero))
      for leaf, zero, one in zip(leaves, zeros[name], ones[name], strict=True)
      if np.array_equal(zero, one)
    ]
    for name, leaves in row_state.rows.items()
  }


def _statistics(
  tables: device_table.DeviceTables,
  key: jax.Array,
  table: config.TableConfig,
  stack: str,
  offset: int,
  moments: Sequence[_Moment],
  chunk_rows: int,
) -> TableStatistics:
  words = row_init.table_words(key, table)
  chunk = min(chunk_rows, table.vocab_size)
  num_touched, num_zero, norm_sum, max_norm = 0, 0, 0.0, 0.0
  for start in range(0, table.vocab_size, chunk):
    count = min(chunk, table.vocab_size - start)
    ids = jnp.arange(start, start + chunk, dtype=jnp.int32)  # the last few may lie past the end
    found = _rows(tables, stack, ids + offset)[:count]
    first = np.asarray(_initial_rows(words, table, ids))[:count]
    is_touched = (_bits(found) != _bits(first)).any(axis=1)
    for moment in moments:
      now = np.asarray(_read(tables.placement.layout(stack), moment.leaf, ids + offset))[:count]
      is_touched |= (now != moment.first).reshape(count, -1).any(axis=1)
    num_touched += int(is_touched.sum())
    num_zero += int((is_touched & (found == 0).all(axis=1)).sum())
    norms = np.sqrt(np.square(found.astype(np.float64)).sum(axis=1))
    norm_sum += float(norms.sum())
    max_norm = float(np.maximum(max_norm, norms.max()))  # NaN stays NaN
  return TableStatistics(
    rows=table.vocab_size,
    embedding_dim=table.embedding_dim,
    num_bytes=table.num_bytes,
    touched_rows=num_touched,
    zero_rows=num_zero,
    mean_norm=norm_sum / table.vocab_size,
    max_norm=max_norm,
  )


def _rows(tables: device_table.DeviceTables, stack: str, rows: jax.Array) -> np.ndarray:
  """``[U, D]`` in the table's own dtype."""
  (dtype,) = {s.dtype for s in tables.plan.stacks if s.name == stack}
  stored = np.asarray(_read(tables.placement.layout(stack), tables.values[stack], rows))
  return stored if dtype == "float32" else stored.view(jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnums=0)
def _read(layout: layout_lib.Layout, array: jax.Array, rows: jax.Array) -> jax.Array:
  return layout.read(array, rows)


_initial_rows = jax.jit(row_init.initial_rows, static_argnums=1)


def _bits(rows: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(rows).view(f"u{rows.dtype.itemsize}")
