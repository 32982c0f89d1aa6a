"""SimHash: vectors as short words of bits, near to each other where the vectors are.

Fixed random hyperplanes cut the space; a vector's bit says on which side of one it lies. Two
vectors at an angle of theta agree in a bit with probability 1 - theta / pi, so the number of bits
in which their words differ (Hamming distance: XOR, then count) estimates the angle, at a 32nd of
the memory of a float and without a multiplication. Nothing here has a gradient.

*Source*: Charikar, "Similarity estimation techniques from rounding algorithms" (STOC 2002); its use
in ETA (Chen et al. 2021, arXiv 2108.04468, section 3), whose printed Algorithm 1 sums signs instead
of taking the sign of the sum: that form is ``variant="paper_alg1"``.
*Read next*: jaxrec/layers/lsh_attention.py.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

VARIANTS = ("inner_product", "paper_alg1")
_WORD = 32  # bits
_FLOAT_EXACT = 1 << 24  # whole numbers below it are exact in float32


def hyperplanes(key: jax.Array, dim: int, num_bits: int) -> jax.Array:
  """f32[D, m]: the normals of m random hyperplanes through 0, drawn once and then kept.

  There is no bias: with one, 1 - theta / pi would not hold.
  """
  return jax.random.normal(key, (dim, num_bits), jnp.float32)


def fingerprints(x: jax.Array, planes: jax.Array, *, variant: str = "inner_product") -> jax.Array:
  """The bits of vectors, 32 to a word.

  Args:
    x: [..., D]; computed in float32 whatever its dtype.
    planes: f32[D, m] of ``hyperplanes``.
    variant: ``inner_product``: bit i is [x . H_i > 0]; ``paper_alg1``: [sum_j sgn(x_j H_ji) > 0].

  Returns:
    u32[..., ceil(m / 32)]; bits past m are 0. No gradient flows to ``x``.

  >>> fingerprints(jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.array([[1.0, -1.0, 2.0], [0, 0, 0]]))
  Array([[5],
         [2]], dtype=uint32)
  """
  if variant not in VARIANTS:
    raise ValueError(f"simhash: variant must be one of {VARIANTS}, got {variant!r}")
  dim, num_bits = planes.shape
  if x.shape[-1] != dim:
    raise ValueError(f"simhash: vectors of width {x.shape[-1]}, hyperplanes of width {dim}")
  x = x.astype(jnp.float32)
  if variant == "paper_alg1":  # sgn(x_j H_ji) = sgn(x_j) sgn(H_ji): whole numbers, exact
    x, planes = jnp.sign(x), jnp.sign(planes)
  bits = jnp.matmul(x, planes, precision=jax.lax.Precision.HIGHEST) > 0
  bits = jnp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -num_bits % _WORD)])
  words = bits.reshape(*bits.shape[:-1], num_words(num_bits), _WORD).astype(jnp.uint32)
  return jnp.sum(words << jnp.arange(_WORD, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)


def num_words(num_bits: int) -> int:
  """W: 32-bit words of a fingerprint of m bits."""
  return -(-num_bits // _WORD)


def hamming(a: jax.Array, b: jax.Array) -> jax.Array:
  """i32[...]: in how many bits words ``a`` and ``b``, u32[..., W], differ.

  >>> hamming(jnp.array([5, 0], jnp.uint32), jnp.array([2, 1], jnp.uint32)).tolist()
  4
  """
  chex.assert_type([a, b], jnp.uint32)
  chex.assert_equal(a.shape[-1], b.shape[-1])
  return jnp.sum(jax.lax.population_count(a ^ b), axis=-1, dtype=jnp.int32)


def nearest(
  distances: jax.Array, mask: jax.Array, k: int, *, num_bits: int
) -> tuple[jax.Array, jax.Array]:
  """The k nearest of each row; of equally near ones the later.

  With 32 bits and a thousand candidates most of the last places are ties, so an order among them
  must be chosen: position, as sequences end with what is most recent.

  Args:
    distances: i32[B, L] in [0, num_bits].
    mask: bool[B, L]; False where there is nothing.
    k: how many; more than L gives L.
    num_bits: the largest distance.

  Returns:
    i32[B, k] places in 0..L-1, the nearest first, and bool[B, k]: False where fewer than k were
    there; such a place is one that ``mask`` leaves out.
  """
  chex.assert_equal_shape([distances, mask])
  length = distances.shape[-1]
  if k < 1:
    raise ValueError(f"simhash: k must be at least 1, got {k}")
  k = min(k, length)
  if (num_bits + 2) * length >= 2**31:
    raise ValueError(f"simhash: {num_bits} bits and {length} places exceed a 32-bit key")
  recency = jnp.arange(length - 1, -1, -1, dtype=jnp.int32)
  keys = jnp.where(mask, distances, num_bits + 1) * length + recency  # all different
  # XLA:CPU picks the largest of floats without sorting them all, and of nothing else.
  is_exact = (num_bits + 2) * length <= _FLOAT_EXACT
  _, places = jax.lax.top_k(-keys.astype(jnp.float32) if is_exact else -keys, k)
  return places, jnp.take_along_axis(mask, places, axis=-1)
