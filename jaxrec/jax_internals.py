"""Gathers the names of JAX that are not public, so that a new version can break one file alone.

Everything here has no public counterpart, or not one that does the same. ``VERSIONS`` are those of
JAX that the whole suite was run with; ``tests/jax_internals_test.py`` says which name is missing.

Source: JAX 0.10 and 0.12.
Read next: jaxrec/tables/layouts/packed_rows.py, jaxrec/runs/process/supervisor.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax._src import distributed
from jax.extend import random as extend_random
from jax.extend.core import primitives

VERSIONS = ("0.10.2", "0.12.0.1")

Combine = Callable[[jax.Array, jax.Array], jax.Array]


def scatter(
  operand: jax.Array,
  indices: jax.Array,
  updates: jax.Array,
  dimension_numbers: jax.lax.ScatterDimensionNumbers,
  combine: Combine,
) -> jax.Array:
  """Scatters by any function of two numbers: ``x = combine(x, update)`` for each update.

  ``jax.lax`` has the functions add, mul, min and max, and nothing that sees old and new.

  Args:
    operand: An array of any dtype.
    indices: i32[N, K], out of range for updates that are dropped; they may repeat.
    updates: The updates, of the operand's dtype and of the shape that ``jax.lax.scatter`` asks for.
    dimension_numbers: The meaning of the axes, as for ``jax.lax.scatter``.
    combine: A function of two scalars of the operand's dtype, associative and commutative where
      indices repeat. One function of a module, not a new one a call: its program is kept by it.
  """
  return primitives.scatter_p.bind(
    operand,
    indices,
    updates,
    dimension_numbers=dimension_numbers,
    update_jaxpr=_jaxpr_of(combine, operand.dtype).jaxpr,
    update_consts=(),
    indices_are_sorted=False,
    unique_indices=False,
    mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
  )


@functools.cache
def _jaxpr_of(combine: Combine, dtype: Any) -> Any:
  number = jax.ShapeDtypeStruct((), dtype)
  return jax.make_jaxpr(combine)(number, number)


def threefry_2x32(key: jax.Array, counts: jax.Array) -> jax.Array:
  """Hashes pairs of counts u32[2, ...] with a key u32[2], as ``jax.random`` does; u32[2, ...]."""
  return extend_random.threefry_2x32(key, counts)


class ProcessGroup(NamedTuple):
  """The processes that ``jax.distributed`` has joined.

  Attributes:
    client: The coordinator's store of keys and barriers; None for a process by itself.
    process_id: The number of this process, from 0.
    num_processes: The number of processes.
  """

  client: Any
  process_id: int
  num_processes: int


def process_group() -> ProcessGroup:
  """Returns the group of this process, without starting JAX's backend."""
  joined = distributed.global_state
  return ProcessGroup(joined.client, joined.process_id, joined.num_processes)
