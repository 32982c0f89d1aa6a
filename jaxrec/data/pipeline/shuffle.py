"""A shuffle that needs no memory.

``permuted`` says which example stands at a given place of a shuffled epoch without writing the
shuffled list down: it is a keyed bijection of [0, n), so the order is a function of (seed, epoch,
index) alone and every process computes its own part. A Feistel network makes the bijection: split
x into two digits of bases a and b, with a * b just above n, and add to each digit in turn a hash
of the other. Whatever the hash, a round can be undone, so the whole is a bijection of [0, a * b);
the few results outside [0, n) go through again until they fall inside (cycle walking). Four rounds
mix large sets well and tiny ones badly, but a tiny set can simply be sorted by random keys.

Source: Luby and Rackoff (1988) for the four rounds; Black and Rogaway, "Ciphers with arbitrary
finite domains" (2002), for the mixed bases and cycle walking. This one shuffles, it does not
encrypt.
Read next: jaxrec/data/pipeline/input_batches.py, which shuffles with it.
"""

from __future__ import annotations

import math

import numpy as np

from jaxrec.data.pipeline import counter_rng
from jaxrec.features import hashing

_ROUNDS = 4
_SORTED_EXAMPLES = 1024  # up to here, sorting all of them costs less than hashing a batch
_WINDOW_BLOCKS = 16  # of a source that is read in blocks: rows are shuffled among so many
_BLOCK = 1 << 14  # indices a pass: its temporaries stay in the processor's cache


def permuted(
  indices: np.ndarray, *, num_examples: int, seed: int = 0, epoch: int = 0
) -> np.ndarray:
  """The examples at places ``indices`` of a shuffled epoch.

  Args:
    indices: i64[n], places in the epoch, in [0, num_examples).
    num_examples: how many are shuffled, at most 2^62.
    seed: of the run.
    epoch: each epoch has an order of its own.

  Returns:
    i64[n] in [0, num_examples): over all places, each value once.

  Raises:
    ValueError: an index lies outside [0, num_examples).

  >>> sorted(permuted(np.arange(5), num_examples=5, seed=7).tolist())
  [0, 1, 2, 3, 4]
  """
  if not 0 < num_examples <= 2**62:
    raise ValueError(f"permuted: num_examples must lie in [1, 2^62], got {num_examples}")
  indices = np.asarray(indices, np.int64)
  if indices.size and (indices.min() < 0 or indices.max() >= num_examples):
    raise ValueError(
      f"permuted: indices must lie in [0, {num_examples}), got {indices.min()}..{indices.max()}; "
      "pass the position modulo num_examples, and the quotient as epoch"
    )
  key = counter_rng.stream_key("order", seed, epoch)
  if num_examples <= _SORTED_EXAMPLES:
    return np.argsort(counter_rng.bits(key, np.arange(num_examples)), kind="stable")[indices]
  round_keys = counter_rng.bits(key, np.arange(_ROUNDS)).astype(np.uint32)
  result = np.empty(indices.size, np.int64)
  for start in range(0, indices.size, _BLOCK):
    block = indices.reshape(-1)[start : start + _BLOCK]
    result[start : start + _BLOCK] = _walk(block, num_examples, round_keys)
  return result.reshape(indices.shape)


def permuted_by_block(
  indices: np.ndarray, *, num_examples: int, block_rows: int, seed: int = 0, epoch: int = 0
) -> np.ndarray:
  """``permuted``, for examples that lie on disk in blocks of ``block_rows``, the last one shorter.

  Rows in any order would read a whole block each. Here the blocks are shuffled, and then the rows
  of every 16 blocks in a row among each other: a batch's rows come from few blocks, which the next
  batches read too. The short block stands anywhere among the others.

  Args:
    indices: i64[n], places in the epoch, in [0, num_examples).
    num_examples: how many are shuffled.
    block_rows: rows of a block.
    seed: of the run.
    epoch: each epoch has an order of its own.

  Returns:
    i64[n] in [0, num_examples): over all places, each value once.

  >>> order = permuted_by_block(np.arange(10), num_examples=10, block_rows=4)
  >>> sorted(order.tolist()) == list(range(10))
  True
  """
  indices = np.asarray(indices, np.int64)
  window_rows = _WINDOW_BLOCKS * block_rows
  windows, within = np.divmod(indices, window_rows)
  places = np.empty_like(indices)
  for window in np.unique(windows).tolist():
    chosen = windows == window
    start = window * window_rows
    places[chosen] = start + permuted(
      within[chosen],
      num_examples=min(window_rows, num_examples - start),
      seed=int(counter_rng.stream_key("window", seed, epoch, window)),
    )
  num_full, short_rows = divmod(num_examples, block_rows)
  draw = counter_rng.bits(counter_rng.stream_key("short block", seed, epoch), np.arange(1))
  short_start = int(draw[0] % np.uint64(num_full + 1)) * block_rows
  is_short = (places >= short_start) & (places < short_start + short_rows)
  examples = places - short_start + num_full * block_rows  # right for the short block alone
  if num_full:
    others = places[~is_short]
    others -= short_rows * (others >= short_start)
    blocks, rows = np.divmod(others, block_rows)
    blocks = permuted(blocks, num_examples=num_full, seed=seed, epoch=epoch)
    examples[~is_short] = blocks * block_rows + rows
  return examples


def _walk(indices: np.ndarray, num_examples: int, round_keys: np.ndarray) -> np.ndarray:
  """A bijection of [0, num_examples): i64[n] -> i64[n]."""
  left_base = math.isqrt(num_examples - 1) + 1
  right_base = -(-num_examples // left_base)
  result = _feistel(indices, left_base, right_base, round_keys)
  outside = np.flatnonzero(result >= num_examples)
  while outside.size:
    result[outside] = _feistel(result[outside], left_base, right_base, round_keys)
    outside = outside[result[outside] >= num_examples]
  return result


def _feistel(
  places: np.ndarray, left_base: int, right_base: int, round_keys: np.ndarray
) -> np.ndarray:
  """A bijection of [0, left_base * right_base): i64[n] -> i64[n]."""
  quotients = places // right_base
  left = quotients.astype(np.uint32)
  right = (places - quotients * right_base).astype(np.uint32)
  for left_key, right_key in round_keys.reshape(-1, 2):
    left = _add(left, hashing.mix32(right ^ left_key), left_base)
    right = _add(right, hashing.mix32(left ^ right_key), right_base)
  return left.astype(np.int64) * right_base + right


def _add(digits: np.ndarray, noise: np.ndarray, base: int) -> np.ndarray:
  """(digits + noise) mod base, all u32, base <= 2^31; below zero wraps round to a large number."""
  total = digits + noise % np.uint32(base)
  return np.minimum(total, total - np.uint32(base))
