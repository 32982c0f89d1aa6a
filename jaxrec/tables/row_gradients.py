"""Row gradients are values.

The gradient of a table is not a table: it is the list of rows that the batch touched, with one
summed gradient each.

Source: design section 4. TorchRec fuses the optimizer into the backward pass, where functions of
gradients cannot reach.
Read next: jaxrec/tables/gradients.py, which makes them; jaxrec/tables/row_gradient_transforms.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import chex
import flax.struct
import jax
import jax.numpy as jnp

from jaxrec.inputs import batch as batch_lib
from jaxrec.tables import unique


class Rounds(Protocol):
  """Gradients still to come: a batch may touch more rows of a device than one exchange carries."""

  @property
  def is_left(self) -> jax.Array:
    """bool[]: whether there is another round; the same on all devices."""

  def next(self, tables: Any = None) -> tuple[RowGradients, Rounds]:
    """The gradients of the next round, of rows that no other round holds, and those after it.

    ``tables`` as they are now: functions that read rows then read them there.
    """


@flax.struct.dataclass
class RowGradients:
  """The gradient of one stack.

  On several devices, each sees the gradients of the rows that it holds, summed over all devices.

  Attributes:
    ids: i32[U] row numbers, unique; padding slots hold distinct numbers past the end.
    rows: f32[U, D] gradients, duplicates summed in order of occurrence; zero in padding slots.
    num_valid: i32[]: how many slots are not padding; these come first.
    axes: the mesh axes that other rows, or columns, of the stack are spread over; static.
    more: rows that did not fit into these slots, or None. The functions of this module apply to all
      rounds; write your own with ``map_rows`` and ``fold_rounds``.
  """

  ids: jax.Array
  rows: jax.Array
  num_valid: jax.Array
  axes: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
  more: Rounds | None = None


@flax.struct.dataclass
class _Mapped:
  """Rounds that a function is still to be applied to, with the tables that it reads."""

  rounds: Any
  tables: Any
  fn: Callable[..., RowGradients] = flax.struct.field(pytree_node=False)

  @property
  def is_left(self) -> jax.Array:
    return self.rounds.is_left

  def next(self, tables: Any = None) -> tuple[RowGradients, _Mapped]:
    found, rounds = self.rounds.next(tables)
    read = self.tables if tables is None else tables
    return self.fn(found, read), dataclasses.replace(self, rounds=rounds)


def map_rows(
  row_grads: Mapping[str, RowGradients],
  fn: Callable[[str, RowGradients, Any], RowGradients],
  tables: Any = None,
) -> dict[str, RowGradients]:
  """``fn(stack, gradients, tables)`` of every stack and round.

  It sees a round without those after it. Where rounds are written to the tables one by one, it gets
  these as they are then, in which the rows of its own round are still the old ones.
  """
  mapped = {}
  for name, g in row_grads.items():
    of_stack = functools.partial(fn, name)
    more = None if g.more is None else _Mapped(g.more, tables, of_stack)
    first = of_stack(dataclasses.replace(g, more=None), tables)
    mapped[name] = dataclasses.replace(first, more=more)
  return mapped


def _without_tables(rounds: Any) -> Any:
  if not isinstance(rounds, _Mapped):
    return rounds
  return dataclasses.replace(rounds, rounds=_without_tables(rounds.rounds), tables=None)


def fold_rounds(
  row_grads: Mapping[str, RowGradients],
  carry: Any,
  fn: Callable[[Any, dict], Any],
  tables_of: Callable[[Any], Any] | None = None,
) -> Any:
  """``fn(carry, row_grads)`` over all rounds, in a loop that ends when no stack has another.

  On one device, and wherever everything fits, that is one call. A round of a stack that is done has
  no valid rows.

  Args:
    row_grads: by stack.
    carry: what the first call gets.
    fn: what each call returns the next one gets.
    tables_of: of a carry with tables that ``fn`` writes to: these. To read the old ones in the loop
      would make XLA keep a copy of them.
  """
  carry = fn(carry, {n: dataclasses.replace(g, more=None) for n, g in row_grads.items()})
  more = {name: g.more for name, g in row_grads.items() if g.more is not None}
  if not more:
    return carry
  if tables_of is not None:
    more = {name: _without_tables(rounds) for name, rounds in more.items()}

  def is_left(loop: Any) -> jax.Array:
    return functools.reduce(jnp.logical_or, [rounds.is_left for rounds in loop[1].values()])

  def body(loop: Any) -> Any:
    carry, more = loop
    now = None if tables_of is None else tables_of(carry)
    found = {name: rounds.next(now) for name, rounds in more.items()}
    carry = fn(carry, {name: g for name, (g, _) in found.items()})
    return carry, {name: rounds for name, (_, rounds) in found.items()}

  return jax.lax.while_loop(is_left, body, (carry, more))[0]


def coalesce(ids: jax.Array, rows: jax.Array, num_rows: int) -> RowGradients:
  """Sums gradients ``rows: f32[N, D]`` of equal ``ids: i32[N]``, in order of occurrence.

  Ids outside [0, num_rows) are padding and vanish.
  """
  return sum_rows(unique.unique_rows(ids, num_rows), rows)


def sum_rows(plan: batch_lib.RowPlan, rows: jax.Array) -> RowGradients:
  """Sums gradients ``rows: f32[N, D]`` by ``plan.inverse``, in order of occurrence."""
  chex.assert_equal_shape_prefix([plan.inverse, rows], 1)
  summed = jnp.zeros((len(plan.rows), *rows.shape[1:]), rows.dtype)
  summed = summed.at[plan.inverse].add(rows, mode="drop")
  return RowGradients(ids=plan.rows, rows=summed, num_valid=plan.num_rows)
