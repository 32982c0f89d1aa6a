"""An embedding table as an ordinary layer, for people who only want layers.

``EmbeddingBag`` owns its table as a Flax parameter and fits any Flax and optax loop. That has a
price: the gradient of a parameter is dense, f32[V, D], so a step costs O(V) in time and memory,
however few rows a batch touches. jaxrec.tables is the way past that: there a step costs O(batch).

*Source*: torch.nn.EmbeddingBag, whose name and forms of input these are; absent ids are -1 here,
so shapes stay fixed under ``jit``.
*Read next*: jaxrec/tables/device_table.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.layers import pooling


def embed_bags(
  table: jax.Array,
  ids: jax.Array,
  *,
  row_splits: jax.Array | None = None,
  weights: jax.Array | None = None,
  combiner: str = "sum",
  name: str = "table",
) -> jax.Array:
  """Looks up bags of ids and pools each into one vector.

  Args:
    table: f32[V, D].
    ids: i32[B], one id an example; i32[B, L], up to L each; or i32[N] with ``row_splits``. -1 is
      absent.
    row_splits: i32[B + 1] or None: example b holds ids[row_splits[b]:row_splits[b + 1]].
    weights: like ``ids``, one number an id, or None.
    combiner: ``sum``, ``mean`` or ``sqrtn``, as in ``pooling.pool``.
    name: of the table, for messages.

  Returns:
    f32[B, D], zeros for an example without ids.

  Raises:
    TypeError: ids are not integers.
    ValueError: a shape does not fit, or an id of a NumPy array is out of range. Where values cannot
      be checked, as inside ``jit``, an id past the table reads as NaN and a negative one is absent.

  >>> embed_bags(jnp.array([[1.0], [10.0]]), np.array([[0, 1], [1, -1]])).tolist()
  [[11.0], [10.0]]
  """
  _check(ids, row_splits, weights, table.shape[0], name)
  ids = jnp.asarray(ids)
  if row_splits is not None:
    batch_size = row_splits.shape[0] - 1
    ends = jnp.zeros(ids.size, jnp.int32).at[jnp.asarray(row_splits)[1:]].add(1, mode="drop")
    bag_ids = jnp.cumsum(ends)
  else:
    batch_size = ids.shape[0]
    bag_ids = jnp.arange(ids.size, dtype=jnp.int32) // (ids.shape[1] if ids.ndim == 2 else 1)
  ids = ids.reshape(-1)
  is_absent = ids < 0
  rows = jnp.take(table, jnp.where(is_absent, 0, ids), axis=0, mode="fill", fill_value=jnp.nan)
  return pooling.pool(
    rows,
    jnp.where(is_absent, batch_size, bag_ids),
    batch_size,
    combiner=combiner,
    weights=None if weights is None else jnp.asarray(weights).reshape(-1),
  )


def _check(
  ids: jax.Array,
  row_splits: jax.Array | None,
  weights: jax.Array | None,
  vocab_size: int,
  name: str,
) -> None:
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(f"{name}: expected integer ids, got {ids.dtype}")
  if ids.ndim > 2 or ids.ndim == 0 or (row_splits is not None and ids.ndim != 1):
    raise ValueError(
      f"{name}: expected ids [B], [B, L], or [N] with row_splits; got shape {ids.shape}"
      + ("" if row_splits is None else " with row_splits")
    )
  if weights is not None and weights.shape != ids.shape:
    raise ValueError(f"{name}: expected one weight an id, {ids.shape}, got shape {weights.shape}")
  if isinstance(ids, np.ndarray):
    bad = ids[(ids < -1) | (ids >= vocab_size)]
    if bad.size:
      raise ValueError(
        f"{name}: id {bad[0]} is out of range, the table has ids 0..{vocab_size - 1} and -1 is "
        "absent; hash ids into the table or raise vocab_size"
      )


class EmbeddingBag(nn.Module):
  """A table of ``vocab_size`` vectors, and ``embed_bags`` over it.

  Its gradient is dense: O(vocab_size) time and memory a step. For large tables use jaxrec.tables.

      bag = EmbeddingBag(vocab_size=1000, embedding_dim=16, combiner="mean")
      variables = bag.init(key, ids)                  # ids i32[B] or i32[B, L], -1 = absent
      vectors = bag.apply(variables, ids)             # f32[B, 16]
      vectors = bag.apply(variables, values, row_splits=row_splits)

  The parameter ``embedding`` f32[V, D] is annotated with the logical axes ``("vocab", "embed")``
  for Flax's sharding rules; ``flax.linen.unbox`` takes the annotation off.

  Attributes:
    vocab_size: V, the number of rows; ids lie in [0, V).
    embedding_dim: D, the width of a row.
    combiner: ``sum``, ``mean`` or ``sqrtn``.
    embedding_init: how the table begins; None is DLRM's U(±sqrt(1 / V)).
    dtype: of the result, which is pooled in float32; None keeps the table's float32.
  """

  vocab_size: int
  embedding_dim: int
  combiner: str = "sum"
  embedding_init: Callable[..., jax.Array] | None = None
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    ids: jax.Array,
    row_splits: jax.Array | None = None,
    weights: jax.Array | None = None,
  ) -> jax.Array:
    """Bags of ids, in any form that ``embed_bags`` takes -> f32[B, embedding_dim]."""
    table: Any = self.param(
      "embedding",
      nn.with_logical_partitioning(self.embedding_init or _init_uniform, ("vocab", "embed")),
      (self.vocab_size, self.embedding_dim),
      jnp.float32,
    )
    vectors = embed_bags(
      table,
      ids,
      row_splits=row_splits,
      weights=weights,
      combiner=self.combiner,
      name=f"EmbeddingBag {self.name!r}" if self.name else "EmbeddingBag",
    )
    return vectors if self.dtype is None else vectors.astype(self.dtype)


def _init_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  scale = shape[0] ** -0.5
  return jax.random.uniform(key, shape, dtype, -scale, scale)
