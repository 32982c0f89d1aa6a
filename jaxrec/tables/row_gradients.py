"""Row gradients are values.

The gradient of a table is not a table: it is the list of rows that the batch touched, with one
summed gradient each. ``value_and_row_grad`` returns it; clipping, accumulation, noise and freezing
are ordinary functions over it, to be composed before any optimizer sees it.

Source: design section 4. TorchRec fuses the optimizer into the backward pass, where such functions
cannot reach.
Read next: jaxrec/tables/row_optimizer.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import chex
import flax.struct
import jax
import jax.numpy as jnp

from jaxrec import config
from jaxrec.features import batch as batch_lib
from jaxrec.features import id_bags
from jaxrec.tables import device_table, lookup, placement, unique


class Rounds(Protocol):
  """Gradients still to come: a batch may touch more rows of a device than one exchange carries."""

  @property
  def is_left(self) -> jax.Array:
    """bool[]: whether there is another round; the same on all devices."""

  def next(self, tables: device_table.DeviceTables | None = None) -> tuple[RowGradients, Rounds]:
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
  tables: device_table.DeviceTables | None
  fn: Callable[..., RowGradients] = flax.struct.field(pytree_node=False)

  @property
  def is_left(self) -> jax.Array:
    return self.rounds.is_left

  def next(self, tables: device_table.DeviceTables | None = None) -> tuple[RowGradients, _Mapped]:
    found, rounds = self.rounds.next(tables)
    read = self.tables if tables is None else tables
    return self.fn(found, read), dataclasses.replace(self, rounds=rounds)


def map_rows(
  row_grads: Mapping[str, RowGradients],
  fn: Callable[[str, RowGradients, Any], RowGradients],
  tables: device_table.DeviceTables | None = None,
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
  tables_of: Callable[[Any], device_table.DeviceTables] | None = None,
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


def value_and_row_grad(
  loss_fn: Callable[..., Any], *, has_aux: bool = False
) -> Callable[[Any, device_table.DeviceTables, batch_lib.Batch], tuple[Any, Any, dict]]:
  """Like ``jax.value_and_grad``, for a loss over ``(params, embeddings)``.

  On several devices each computes the loss of its part of the batch; the whole batch's, and its
  gradients, are the means of these by the parts' weights. So ``loss_fn`` must be a mean over
  ``batch.weights``, as ``training.binary_cross_entropy`` is, and may add what does not depend on
  the batch.

  Args:
    loss_fn: ``(params, embeddings) -> loss f32[]`` (with ``has_aux``: ``(loss, aux)``), where
      ``embeddings`` maps each feature to f32[B, D].
    has_aux: as in JAX; on several devices each keeps its own ``aux``.

  Returns:
    A function ``(params, tables, batch) -> (loss, grads, row_grads)``: ``row_grads`` holds one
    RowGradients a stack. Cost and memory are O(batch), never O(vocabulary).
  """
  local = local_value_and_row_grad(loss_fn, has_aux=has_aux)

  def fn(
    params: Any, tables: device_table.DeviceTables, batch: batch_lib.Batch
  ) -> tuple[Any, Any, dict]:
    value, grads, row_grads = local(params, tables, batch)
    return value, grads, tables.placement.collect(row_grads)

  return fn


def local_value_and_row_grad(
  loss_fn: Callable[..., Any], *, has_aux: bool = False, share: float | None = None
) -> Callable[[Any, device_table.DeviceTables, batch_lib.Batch], tuple[Any, Any, dict]]:
  """``value_and_row_grad`` whose row gradients stay with the device that computed them.

  They are of this device's part of the batch, by the rows of its row plan: ``accumulate`` joins
  those of several batches, and ``tables.placement.collect`` brings them to who holds the rows.
  ``share`` is the part of the whole loss that a device's loss is; None: its part of the weights.
  """

  def fn(
    params: Any, tables: device_table.DeviceTables, batch: batch_lib.Batch
  ) -> tuple[Any, Any, dict]:
    axes = tables.placement.axes
    plans = unique.row_plans(tables.placement.numbering(tables.plan), batch)
    rows, words = device_table.fetch(tables, plans)
    part = _share(batch.weights, axes) if share is None else share

    def loss_of_rows(params: Any, rows: Mapping[str, jax.Array]) -> Any:
      found = loss_fn(params, lookup.embed(tables.plan, rows, plans, batch, words))
      return (found[0] * part, found[1]) if has_aux else found * part

    grad_fn = jax.value_and_grad(loss_of_rows, argnums=(0, 1), has_aux=has_aux)
    value, (grads, rows_grads) = grad_fn(params, rows)
    row_grads = {
      name: RowGradients(ids=plans[name].rows, rows=grad, num_valid=plans[name].num_rows)
      for name, grad in rows_grads.items()
    }
    loss, grads = placement.total((value[0] if has_aux else value, grads), axes)
    return (loss, value[1]) if has_aux else loss, grads, row_grads

  return fn


def _share(weights: jax.Array, axes: tuple[str, ...]) -> jax.Array | float:
  """The part of a batch's weight that is this device's."""
  if not axes:
    return 1.0
  own = jnp.sum(weights)
  return own / jnp.maximum(placement.total(own, axes), 1e-12)


def global_norm(row_grads: Mapping[str, RowGradients]) -> jax.Array:
  """f32[]: the Euclidean norm over all rows of all stacks, as if the gradient were dense."""

  def add(total: jax.Array, found: Mapping[str, RowGradients]) -> jax.Array:
    for g in found.values():
      total += placement.total(jnp.sum(jnp.square(g.rows)), g.axes)
    return total

  return jnp.sqrt(fold_rounds(row_grads, jnp.zeros((), jnp.float32), add))


def clip_by_global_norm(
  row_grads: Mapping[str, RowGradients], max_norm: float
) -> dict[str, RowGradients]:
  """Scales all rows by ``min(1, max_norm / global_norm)``, as the optax function does."""
  norm = global_norm(row_grads)
  factor = jnp.where(norm < max_norm, 1.0, max_norm / jnp.maximum(norm, 1e-38))
  return scale(row_grads, factor)


def scale(
  row_grads: Mapping[str, RowGradients], factor: float | jax.Array
) -> dict[str, RowGradients]:
  """Multiplies every row by ``factor``."""
  return map_rows(row_grads, lambda _, g, tables: dataclasses.replace(g, rows=g.rows * factor))


def add_l2(
  row_grads: Mapping[str, RowGradients], tables: device_table.DeviceTables, l2: float | jax.Array
) -> dict[str, RowGradients]:
  """Adds ``l2 * row`` to each gradient: of a penalty l2 / 2 times the touched rows' squares.

  Padding slots read rows of zeros and stay zero. XLA keeps one gather of this read and that of the
  forward pass.
  """

  def add(name: str, g: RowGradients, now: device_table.DeviceTables) -> RowGradients:
    rows = device_table.read_rows(now, {name: g.ids})[name]
    return dataclasses.replace(g, rows=g.rows + l2 * rows)

  return map_rows(row_grads, add, tables)


def add_noise(
  row_grads: Mapping[str, RowGradients], key: jax.Array, *, stddev: float
) -> dict[str, RowGradients]:
  """Adds Gaussian noise to touched rows; to noise untouched ones would cost O(vocabulary)."""
  keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(sorted(row_grads))}

  def add(name: str, g: RowGradients, tables: Any) -> RowGradients:
    del tables
    own = keys[name]
    if g.axes:  # devices, and rounds, draw for rows of their own
      own = jax.random.fold_in(jax.random.fold_in(own, jax.lax.axis_index(g.axes)), g.ids[0])
    noise = stddev * jax.random.normal(own, g.rows.shape, g.rows.dtype)
    is_valid = jnp.arange(g.ids.shape[0]) < g.num_valid
    return dataclasses.replace(g, rows=g.rows + jnp.where(is_valid[:, None], noise, 0))

  return map_rows(row_grads, add)


def freeze(
  row_grads: Mapping[str, RowGradients],
  tables: device_table.DeviceTables,
  frozen: Collection[str],
) -> dict[str, RowGradients]:
  """Takes the rows of the tables named in ``frozen`` out, so no optimizer moves them or their
  moments.

  Raises:
    KeyError: no such table.
  """
  known = {t.name for s in tables.plan.stacks for t in s.tables}
  for name in frozen:
    if name not in known:
      raise KeyError(f"freeze: no table {name!r}; {config.did_you_mean(name, known)}")
  by_name = {stack.name: stack for stack in tables.plan.stacks}

  def take_out(name: str, g: RowGradients, now: Any) -> RowGradients:
    del now  # which rows are of a table does not depend on them
    stack = by_name[name]
    is_frozen = jnp.zeros(g.ids.shape, bool)
    for table in stack.tables:
      if table.name in frozen:
        is_frozen |= tables.placement.is_of(stack, table, g.ids)
    # Coalescing an all-padding copy moves the rows left to the front: num_valid stays a prefix.
    kept = jnp.where(is_frozen, jnp.int32(id_bags.PAD_ID), g.ids)
    left = coalesce(kept, g.rows, tables.placement.num_rows(stack))
    return dataclasses.replace(left, axes=g.axes)

  return map_rows(row_grads, take_out)


def coalesce(ids: jax.Array, rows: jax.Array, num_rows: int) -> RowGradients:
  """Sums gradients ``rows: f32[N, D]`` of equal ``ids: i32[N]``, in order of occurrence.

  Ids outside [0, num_rows) are padding and vanish.
  """
  return _summed(unique.unique_rows(ids, num_rows), rows)


def _summed(plan: batch_lib.RowPlan, rows: jax.Array) -> RowGradients:
  chex.assert_equal_shape_prefix([plan.inverse, rows], 1)
  summed = jnp.zeros((len(plan.rows), *rows.shape[1:]), rows.dtype)
  summed = summed.at[plan.inverse].add(rows, mode="drop")
  return RowGradients(ids=plan.rows, rows=summed, num_valid=plan.num_rows)


def accumulate(
  parts: Sequence[Mapping[str, RowGradients]], tables: device_table.DeviceTables
) -> dict[str, RowGradients]:
  """The sum of several gradients: rows that meet are added, in the order of ``parts``.

  On several devices, of gradients that ``local_value_and_row_grad`` computed.
  """
  joined, plan = {}, tables.placement.numbering(tables.plan)
  for stack in tables.plan.stacks:
    ids = jnp.concatenate([part[stack.name].ids for part in parts])
    rows = jnp.concatenate([part[stack.name].rows for part in parts])
    joined[stack.name] = _summed(unique.rows_once(plan, stack, ids), rows)
  return joined
