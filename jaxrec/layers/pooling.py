"""From bags of rows to one vector, or one padded sequence, an example.

Rows of all bags lie end to end; ``bag_ids`` says whose each is. Padding carries the bag id B,
past the last bag, and so adds to none. Empty bags give zeros, in gradients too.

*Source*: the combiners of TensorFlow's ``embedding_lookup_sparse``, with its definition of the
weighted ones. Unlike it, a bag whose weights sum to zero gives zeros and not NaN or infinity.
*Read next*: jaxrec/layers/embedding_bag.py.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp

COMBINERS = ("sum", "mean", "sqrtn")


def pool(
  rows: jax.Array,
  bag_ids: jax.Array,
  batch_size: int,
  *,
  combiner: str = "sum",
  weights: jax.Array | None = None,
) -> jax.Array:
  """One vector a bag.

      sum:   sum(w * row)
      mean:  sum(w * row) / sum(w)
      sqrtn: sum(w * row) / sqrt(sum(w^2))

  with w = 1 where no weights are given. Sums are float32 (or wider), whatever the rows are: in
  bfloat16 a sum of ones ends at 256.

  Args:
    rows: f32[N, D], or narrower.
    bag_ids: i32[N], in any order; B or more for padding.
    batch_size: B, the number of bags.
    combiner: ``sum``, ``mean`` or ``sqrtn``.
    weights: f32[N] or None.

  Returns:
    [B, D] in the rows' dtype; zeros for a bag that is empty or whose denominator is zero.

  >>> pool(jnp.array([[1.0], [3.0], [9.0]]), jnp.array([1, 1, 2]), 2, combiner="mean").tolist()
  [[0.0], [2.0]]
  """
  if combiner not in COMBINERS:
    raise ValueError(
      f"pool: combiner must be one of {COMBINERS}, got {combiner!r}; "
      "to keep the sequence of rows use to_sequence"
    )
  # A row too many or too few would be broadcast, or fall into no bag, without a word.
  chex.assert_rank(rows, 2)
  chex.assert_type(bag_ids, int)
  chex.assert_equal_shape_prefix([rows, bag_ids, rows if weights is None else weights], 1)
  sum_bags = functools.partial(jax.ops.segment_sum, segment_ids=bag_ids, num_segments=batch_size)
  dtype = rows.dtype
  if dtype.itemsize < 4:
    rows = rows.astype(jnp.float32)
  if weights is None:
    weights = jnp.ones(rows.shape[:1], rows.dtype)
  else:
    weights = weights.astype(rows.dtype)
    rows = rows * weights[:, None]
  total = sum_bags(rows)
  if combiner == "sum":
    return total.astype(dtype)
  squared = combiner == "sqrtn"
  denominator = sum_bags(weights**2 if squared else weights)
  is_zero = denominator == 0
  # Guarded before the square root and the division: where() alone would let NaN into the gradient.
  denominator = jnp.where(is_zero, 1, denominator)
  denominator = jnp.sqrt(denominator) if squared else denominator
  return jnp.where(is_zero[:, None], 0, total / denominator[:, None]).astype(dtype)


def to_sequence(
  rows: jax.Array, bag_ids: jax.Array, row_splits: jax.Array, max_length: int
) -> tuple[jax.Array, jax.Array]:
  """Bags as padded sequences, for attention and recurrent layers.

  Args:
    rows: f32[N, D], bags end to end.
    bag_ids: i32[N]; B for padding.
    row_splits: i32[B + 1]: bag b is rows[row_splits[b]:row_splits[b + 1]].
    max_length: L, at least the longest bag (the feature's ``ids_per_bag``); of a longer bag only
      the first L rows fit the result.

  Returns:
    f32[B, L, D], zeros where there is no row, and bool[B, L], true where there is one.

  >>> rows, bag_ids, row_splits = jnp.array([[1.0], [2.0]]), jnp.array([1, 1]), jnp.array([0, 0, 2])
  >>> sequence, mask = to_sequence(rows, bag_ids, row_splits, 3)
  >>> sequence[..., 0].tolist(), mask.tolist()
  ([[0.0, 0.0, 0.0], [1.0, 2.0, 0.0]], [[False, False, False], [True, True, False]])
  """
  chex.assert_rank([rows, bag_ids, row_splits], [2, 1, 1])
  chex.assert_equal_shape_prefix([rows, bag_ids], 1)
  batch_size, (num_ids, embedding_dim) = row_splits.shape[0] - 1, rows.shape
  # Rows are scattered to their places, so that the gradient is a gather.
  steps = jnp.arange(num_ids, dtype=row_splits.dtype) - row_splits[bag_ids]
  sequence = jnp.zeros((batch_size, max_length, embedding_dim), rows.dtype)
  sequence = sequence.at[bag_ids, steps].set(rows, mode="drop", unique_indices=True)
  lengths = row_splits[1:] - row_splits[:-1]
  return sequence, jnp.arange(max_length, dtype=lengths.dtype) < lengths[:, None]
