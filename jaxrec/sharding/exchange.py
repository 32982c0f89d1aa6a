"""Rows and gradients between devices: who needs a row asks who holds it.

Every device lists the rows that its part of the batch touches, each once, sorted by the shard that
holds them. It sends each shard the numbers it wants and receives the rows; later it sends each
shard its sums of gradients, and the shard adds up what came from all devices. Two ``all_to_all``
there, two back, of arrays with a fixed capacity a pair of devices. Rows and sums may be rounded to
bfloat16 for the way (``ShardedStack.wire_dtype``).

A batch that asks one shard for more than the capacity is served in further rounds of the same
program. A round carries, of each shard, the rows below a limit that all devices agree on: the
smallest row that does not fit into somebody's round any more. So a row's gradients all come in one
round, and the optimizer sees every row once, with its whole gradient, in memory that does not
depend on the batch.

Everything here runs inside ``jax.shard_map``.

*Source*: design, section 4; the padded exchange of TorchRec's and HugeCTR's model parallelism,
which size their buffers by the batch. jax-tpu-embedding drops ids that overflow.
*Read next*: jaxrec/sharding/sharded.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.sharding import plan as plan_lib
from jaxrec.tables import device_table, row_gradients
from jaxrec.tables.layouts import layout as layout_lib

_LAST = np.int32(np.iinfo(np.int32).max)


@flax.struct.dataclass
class Requests:
  """What one device wants of each shard, and how far it has come.

  Attributes:
    rows: i32[U] row numbers, unique, ascending, so shard by shard; past the end where padding.
    starts: i32[S + 1]: shard s holds rows[starts[s]:starts[s + 1]].
    begin: i32[S]: of these, the first that is still to be asked for.
  """

  rows: jax.Array
  starts: jax.Array
  begin: jax.Array


@flax.struct.dataclass
class Round:
  """What is asked for in one round.

  Attributes:
    slots: i32[S, C] places in ``Requests.rows``; U where a slot is empty.
    counts: i32[S] slots in use.
    begin: i32[S] where the round began.
    is_last: bool[]: whether nobody has more to ask; the same on all devices.
  """

  slots: jax.Array
  counts: jax.Array
  begin: jax.Array
  is_last: jax.Array


def requests(sharded: plan_lib.ShardedStack, rows: jax.Array) -> Requests:
  """Of sorted, unique row numbers i32[U]."""
  chex.assert_rank(rows, 1)
  chex.assert_type(rows, jnp.int32)
  bounds = np.arange(sharded.num_shards + 1, dtype=np.int32) * np.int32(sharded.rows_per_shard)
  starts = jnp.searchsorted(rows, bounds).astype(jnp.int32)
  return Requests(rows=rows, starts=starts, begin=starts[:-1])


def next_round(
  sharded: plan_lib.ShardedStack, wanted: Requests, axes: tuple[str, ...]
) -> tuple[Round, Requests]:
  """The next round, agreed on by the devices of all ``axes``, and what is wanted after it."""
  num_ids = wanted.rows.shape[0]
  capacity = sharded.capacity_for(num_ids)
  slots = wanted.begin[:, None] + jnp.arange(capacity, dtype=jnp.int32)
  inside = slots < wanted.starts[1:, None]
  if sharded.always_fits(num_ids):
    counts, is_last = wanted.starts[1:] - wanted.begin, jnp.array(True)
  else:
    after = wanted.begin + capacity
    first_left = jnp.where(
      after < wanted.starts[1:], wanted.rows[jnp.minimum(after, num_ids - 1)], _LAST
    )
    limit = jax.lax.pmin(first_left, axes)
    asked = wanted.rows.at[slots].get(mode="fill", fill_value=_LAST)
    inside &= asked < limit[:, None]
    counts, is_last = inside.sum(axis=1, dtype=jnp.int32), jnp.all(limit == _LAST)
  found = Round(jnp.where(inside, slots, num_ids), counts, wanted.begin, is_last)
  return found, dataclasses.replace(wanted, begin=wanted.begin + counts)


def ask(sharded: plan_lib.ShardedStack, wanted: Requests, now: Round) -> jax.Array:
  """i32[S * num_columns, C]: what each device asks of this one in the round, by place here.

  Empty slots hold ``rows_per_shard``, past the end.
  """
  shard = jnp.arange(sharded.num_shards, dtype=jnp.int32)[:, None]
  rows = wanted.rows.at[now.slots].get(mode="fill", fill_value=_LAST)
  local = jnp.where(
    now.slots < wanted.rows.shape[0], rows - shard * sharded.rows_per_shard, sharded.rows_per_shard
  )
  return _to_shards(sharded, jnp.repeat(local, sharded.num_columns, axis=0))


def answer(
  sharded: plan_lib.ShardedStack, wanted: Requests, now: Round, found: jax.Array
) -> jax.Array:
  """[U, ...]: the rows that this device asked for in the round, zeros for the others.

  ``found``: [S * num_columns, C, ...], what every device asked of this one.
  """
  chex.assert_shape(found, (sharded.num_shards * sharded.num_columns, now.slots.shape[1], ...))
  came = _to_shards(sharded, found)  # from each shard, what was asked of it
  came = _joined_columns(sharded, came)
  shard = jnp.minimum(wanted.rows // sharded.rows_per_shard, sharded.num_shards - 1)
  place = jnp.arange(wanted.rows.shape[0], dtype=jnp.int32) - now.begin[shard]
  asked = (place >= 0) & (place < now.counts[shard])
  num_slots = came.shape[0]
  place = jnp.where(asked, shard * now.slots.shape[1] + place, num_slots)
  return came.at[place].get(mode="fill", fill_value=0)


def fetch(
  sharded: plan_lib.ShardedStack,
  layout: layout_lib.Layout,
  arrays: Sequence[jax.Array],
  rows: jax.Array,
  axes: tuple[str, ...],
) -> list[jax.Array]:
  """Rows [U, ...] of arrays that are spread as the stack is.

  Args:
    sharded: the stack.
    layout: how rows lie on a device.
    arrays: this device's part of each; of the first, columns may be elsewhere too.
    rows: i32[U] sorted, unique row numbers.
    axes: all axes of the mesh.
  """
  if not sharded.is_exchanged:
    return [layout.read(array, rows) for array in arrays]

  def serve(wanted: Requests, now: Round) -> list[jax.Array]:
    asked = ask(sharded, wanted, now)
    found = [layout.read(array, asked.reshape(-1)) for array in arrays]
    return [
      answer(sharded, wanted, now, read.reshape(*asked.shape, *read.shape[1:])) for read in found
    ]

  wanted = requests(sharded, rows)
  now, wanted = next_round(sharded, wanted, axes)
  found = serve(wanted, now)
  if sharded.always_fits(rows.shape[0]):
    return found

  def body(carry: Any) -> Any:
    found, wanted, _ = carry
    now, wanted = next_round(sharded, wanted, axes)
    # Each row is asked for in one round and zero, all bits, in the others.
    more = serve(wanted, now)
    return [_either(a, b) for a, b in zip(found, more, strict=True)], wanted, now.is_last

  return jax.lax.while_loop(lambda carry: ~carry[2], body, (found, wanted, now.is_last))[0]


def _either(a: jax.Array, b: jax.Array) -> jax.Array:
  """Of two arrays, one of which has all bits zero wherever the other has not, the bits of both."""
  words = [jax.lax.bitcast_convert_type(x, jnp.dtype(f"u{x.dtype.itemsize}")) for x in (a, b)]
  return jax.lax.bitcast_convert_type(words[0] | words[1], a.dtype)


@flax.struct.dataclass
class Rounds:
  """Gradients that are still with the devices that computed them; a ``tables.Rounds``.

  Attributes:
    grads: f32[U, D] of ``wanted.rows``.
    wanted: what is left to send.
    is_left: bool[].
    sharded, axes: static.
  """

  grads: jax.Array
  wanted: Requests
  is_left: jax.Array
  sharded: plan_lib.ShardedStack = flax.struct.field(pytree_node=False)
  axes: tuple[str, ...] = flax.struct.field(pytree_node=False)

  def next(self, tables: Any = None) -> tuple[row_gradients.RowGradients, Rounds]:
    del tables  # the gradients do not depend on them
    now, wanted = next_round(self.sharded, self.wanted, self.axes)
    found = _gradients_of(self.sharded, self.wanted, now, self.grads)
    return found, dataclasses.replace(self, wanted=wanted, is_left=~now.is_last)


def collect(
  sharded: plan_lib.ShardedStack, mine: row_gradients.RowGradients, axes: tuple[str, ...]
) -> row_gradients.RowGradients:
  """Gradients of the rows that this device holds, summed over all devices.

  ``mine`` are those of its own batch, by sorted, unique row numbers.
  """
  if not sharded.is_exchanged:
    return _summed_over_copies(sharded, mine)
  sharded = sharded.for_gradients
  rounds = Rounds(mine.rows, requests(sharded, mine.ids), jnp.array(True), sharded, axes)
  found, rounds = rounds.next()
  fits = sharded.always_fits(mine.ids.shape[0])
  return found if fits else dataclasses.replace(found, more=rounds)


def _gradients_of(
  sharded: plan_lib.ShardedStack, wanted: Requests, now: Round, grads: jax.Array
) -> row_gradients.RowGradients:
  asked = ask(sharded, wanted, now)
  sent = grads.at[now.slots].get(mode="fill", fill_value=0)  # [S, C, D]
  came = _to_shards(sharded, _split_columns(sharded, sent))
  dim = came.shape[-1]
  found = row_gradients.coalesce(asked.reshape(-1), came.reshape(-1, dim), sharded.rows_per_shard)
  found = _summed_over_copies(sharded, found)
  return dataclasses.replace(found, axes=sharded.row_axes + sharded.column_axes)


def _summed_over_copies(
  sharded: plan_lib.ShardedStack, found: row_gradients.RowGradients
) -> row_gradients.RowGradients:
  """The same sum, bit for bit, on every device that has a copy of these rows."""
  if sharded.num_copies == 1:
    return found
  num_rows, slots = sharded.rows_per_shard, found.ids.shape[0]
  if num_rows < sharded.num_copies * slots / 2:  # a table's own size moves fewer bytes
    dense = jnp.zeros((num_rows, found.rows.shape[1]), found.rows.dtype)
    dense = dense.at[found.ids].set(found.rows, mode="drop", unique_indices=True)
    touched = jnp.zeros(num_rows, jnp.int32).at[found.ids].set(1, mode="drop", unique_indices=True)
    dense, touched = jax.lax.psum((dense, touched), sharded.copy_axes)
    ids = jnp.where(touched > 0, jnp.arange(num_rows, dtype=jnp.int32), num_rows)
    return row_gradients.coalesce(ids, dense, num_rows)
  ids, rows = jax.lax.all_gather((found.ids, found.rows), sharded.copy_axes, tiled=True)
  return row_gradients.coalesce(ids, rows, num_rows)


def _to_shards(sharded: plan_lib.ShardedStack, x: jax.Array) -> jax.Array:
  """x[s] to the s-th of the devices among which the stack is spread; from it, its x of this one."""
  axes = sharded.row_axes + sharded.column_axes
  if sharded.wire_dtype is None or x.dtype != jnp.float32:  # whole numbers, narrow rows
    return jax.lax.all_to_all(x, axes, 0, 0, tiled=True)
  # As words: XLA:CPU would widen bfloat16 again before it sends it.
  words = device_table.encode(x, sharded.wire_dtype)
  words = jax.lax.all_to_all(words, axes, 0, 0, tiled=True)
  return device_table.decode(words, sharded.wire_dtype).astype(jnp.float32)


def _split_columns(sharded: plan_lib.ShardedStack, rows: jax.Array) -> jax.Array:
  """[S, C, D] to [S * num_columns, C, D / num_columns]."""
  count = sharded.num_columns
  shards, slots, dim = rows.shape
  split = rows.reshape(shards, slots, count, dim // count).transpose(0, 2, 1, 3)
  return split.reshape(shards * count, slots, dim // count)


def _joined_columns(sharded: plan_lib.ShardedStack, came: jax.Array) -> jax.Array:
  """[S * num_columns, C, D / num_columns] to [S * C, D]."""
  count, slots = sharded.num_columns, came.shape[1]
  split = came.reshape(-1, count, slots, *came.shape[2:])
  return jnp.moveaxis(split, 1, 2).reshape(-1, count * came.shape[2])
