"""A shuffle that needs no memory.

``permuted`` says which example stands at a given place of a shuffled epoch without ever writing the
shuffled list down: it is a keyed bijection of [0, n), so the order is a function of (seed, epoch, index)
and any process computes its own part. A Feistel network makes the bijection: split x into two digits
(left, right) of bases a, b with a * b just above n, and add to each digit in turn a hash of the other.
Whatever the hash, each round can be undone, hence a bijection of [0, a * b); the few results that fall
outside [0, n) are sent through again until they land inside (cycle walking).

Source: Luby and Rackoff (1988), four rounds; Black and Rogaway, "Ciphers with arbitrary finite domains"
(2002), for mixed bases and cycle walking. Not a cipher here: the round hash is 32 bits of murmur3.
Read next: jaxrec/data/pipeline.py, which shuffles with it.
"""

from __future__ import annotations

import math

import numpy as np

from jaxrec.data import counter_rng
from jaxrec.features import hashing

_ROUNDS = 4
_BLOCK = 1 << 15  # places a pass: its temporaries stay in the processor's cache


def permuted(
    indices: np.ndarray, *, num_examples: int, seed: int = 0, epoch: int = 0
) -> np.ndarray:
  """Where the shuffle of an epoch sends ``indices``.

  Args:
    indices: i64[n], places in the epoch, in [0, num_examples).
    num_examples: size of the set that is shuffled, at most 2^62.
    seed: of the run.
    epoch: number of the epoch; each has an order of its own.

  Returns:
    i64[n] in [0, num_examples): over all places, each value once.

  Raises:
    ValueError: an index lies outside [0, num_examples).

  >>> sorted(permuted(np.arange(5), num_examples=5, seed=7).tolist())
  [0, 1, 2, 3, 4]
  """
  if not 0 < num_examples <= 2**62:
    raise ValueError(f"permuted: num_examples must lie in [1, 2^62], got {num_examples}")
  flat = np.asarray(indices, np.int64).reshape(-1)
  if flat.size and not (0 <= flat.min() and flat.max() < num_examples):
    raise ValueError(
        f"permuted: indices must lie in [0, {num_examples}), got {flat.min()}..{flat.max()}; take the "
        "position modulo num_examples and pass the quotient as epoch"
    )
  keys = counter_rng.bits(counter_rng.stream_key("order", seed, epoch), np.arange(_ROUNDS))
  keys = keys.astype(np.uint32)
  result = np.empty_like(flat)
  for start in range(0, len(flat), _BLOCK):
    block = slice(start, start + _BLOCK)
    result[block] = _walk(flat[block], num_examples, keys)
  return result.reshape(np.shape(indices))


def _walk(indices: np.ndarray, num_examples: int, keys: np.ndarray) -> np.ndarray:
  left_base = math.isqrt(num_examples - 1) + 1
  right_base = -(-num_examples // left_base)
  result = _feistel(indices, left_base, right_base, keys)
  outside = np.flatnonzero(result >= num_examples)
  while outside.size:
    result[outside] = _feistel(result[outside], left_base, right_base, keys)
    outside = outside[result[outside] >= num_examples]
  return result


def _feistel(x: np.ndarray, left_base: int, right_base: int, keys: np.ndarray) -> np.ndarray:
  """A bijection of [0, left_base * right_base): i64[n] -> i64[n]."""
  quotient = x // right_base
  left = quotient.astype(np.uint32)
  right = (x - quotient * right_base).astype(np.uint32)
  for i in range(0, _ROUNDS, 2):
    left = _add(left, hashing.mix32(right ^ keys[i]), left_base)
    right = _add(right, hashing.mix32(left ^ keys[i + 1]), right_base)
  return left.astype(np.int64) * right_base + right


def _add(digit: np.ndarray, noise: np.ndarray, base: int) -> np.ndarray:
  """(digit + noise) mod base in u32, base <= 2^31; a difference below zero wraps to a large number."""
  total = digit + noise % np.uint32(base)
  return np.minimum(total, total - np.uint32(base))
