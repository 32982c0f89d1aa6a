"""Initial rows: functions of (seed, table, id) alone.

A row is the same wherever and whenever it is first touched: at start-up, on eviction from a cache,
on another mesh. So the random bits come from a counter, threefry(key of the table, (id, column
pair)), and the arithmetic after it rounds once, so that no fusion can change a bit.

Source: design; counter-based generators after Salmon et al. (SC 2011), as in JAX's own threefry.
Read next: jaxrec/tables/device_table.py.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import config, jax_internals
from jaxrec.tables.layouts import layout as layout_lib

_CHUNK_ROWS = 1 << 16


def table_words(key: jax.Array, table: config.TableConfig) -> jax.Array:
  """u32[2]: the table's own random key, from the run's ``key`` of any implementation."""
  folded = jax.random.fold_in(key, zlib.crc32(table.name.encode()))
  return jax.random.bits(folded, (2,), jnp.uint32)


def initial_rows(words: jax.Array, table: config.TableConfig, ids: jax.Array) -> jax.Array:
  """The first value of rows ``ids: i32[U]`` as ``[U, D]`` in the table's dtype.

  ``words`` is the table's key, u32[2], from ``table_words``.
  """
  dim = table.embedding_dim
  kind, scale = table.initializer.kind, table.initializer.scale
  scale = 1.0 / math.sqrt(table.vocab_size) if scale is None else scale
  if kind == "constant":
    return jnp.full((ids.shape[0], dim), scale, table.dtype)
  pairs = (dim + 1) // 2
  counts = jnp.stack(
    [
      jnp.broadcast_to(ids.astype(jnp.uint32)[:, None], (ids.shape[0], pairs)),
      jnp.broadcast_to(jnp.arange(pairs, dtype=jnp.uint32)[None, :], (ids.shape[0], pairs)),
    ]
  )
  bits = jax_internals.threefry_2x32(words, counts)
  bits = jnp.concatenate([bits[0], bits[1]], axis=1)[:, :dim]
  # 23 random bits below the exponent of 1.0; subtracting 1.5 is exact, so one rounding remains.
  unit = jax.lax.bitcast_convert_type((bits >> 9) | jnp.uint32(0x3F800000), jnp.float32)
  centred = unit - np.float32(1.5)
  if kind == "uniform":
    values = centred * np.float32(2 * scale)
  else:
    inner = centred * np.float32(2 * (1 - 2.0**-23))
    values = jax.scipy.special.erfinv(inner) * np.float32(math.sqrt(2) * scale)
  return values.astype(table.dtype)


class IdRange(NamedTuple):
  """Ids ``first, first + step, ...``: ``count`` of them, traced or not, and at most ``most``."""

  first: Any
  step: int
  count: Any
  most: int


def fill_table(
  values: jax.Array,
  words: jax.Array,
  table: config.TableConfig,
  offset: int,
  *,
  encode: Callable[[jax.Array], jax.Array],
  layout: layout_lib.Layout,
  ids: IdRange | None = None,
) -> jax.Array:
  """Writes initial rows of ``table`` from row ``offset`` on, in chunks: no table-sized temporary.

  ``encode`` turns rows into what ``values`` stores, as ``layout`` has it. ``ids`` are whose rows;
  None: all of them.
  """
  ids = IdRange(0, 1, table.vocab_size, table.vocab_size) if ids is None else ids
  chunk = min(_CHUNK_ROWS, ids.most)

  def body(step: jax.Array, values: jax.Array) -> jax.Array:
    start = jnp.minimum(step * chunk, ids.most - chunk)
    own = ids.first + (start + jnp.arange(chunk, dtype=jnp.int32)) * ids.step
    rows = encode(initial_rows(words, table, own))
    return layout.write_range(values, offset + start, rows)

  return jax.lax.fori_loop(0, -(-ids.count // chunk), body, values)
