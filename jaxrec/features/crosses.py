"""Crossed features: what is true of an example when several things are.

A cross of columns has an id for each combination of their ids: the AND of one-hot features, of
which a linear model learns a weight by heart. Columns of several ids give every combination. The
ids of a combination make one 64-bit key, exactly, in mixed radix; keys have rows of their own, by a
*vocabulary* of those seen often enough in training, or share rows by *hash*, where n keys in V rows
collide at a rate that is known beforehand.

Source: Cheng et al., "Wide & deep learning for recommender systems" (DLRS 2016), section 3.1.
Read next: jaxrec/features/transforms.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxrec.features import hashing

SEPARATOR = "*"  # between the columns, in a cross's name


class Bags(NamedTuple):
  """Ids of N examples: ``values`` end to end, ``lengths: i32[N]``, or one each where it is None."""

  values: np.ndarray
  lengths: np.ndarray | None = None


def cross(parts: Sequence[Bags], num_rows: Sequence[int]) -> Bags:
  """Keys u64 of all combinations of the parts' ids, the last part's ids changing fastest.

  Args:
    parts: of two columns or more; an example without ids in one of them has no combination.
    num_rows: of the parts' tables. While their product is at most 2^64 a key is one combination's
      alone; beyond, keys are hashes of 64 bits.

  >>> cross([Bags(np.array([1, 0])), Bags(np.array([2, 5, 7]), np.array([2, 1]))], [3, 10])
  Bags(values=array([12, 15,  7], dtype=uint64), lengths=array([2, 1], dtype=int32))
  """
  keys, lengths = parts[0].values.astype(np.uint64), parts[0].lengths
  span = num_rows[0]
  for part, size in zip(parts[1:], num_rows[1:], strict=True):
    span *= size
    keys, values, lengths = _pairs(keys, lengths, part)
    values = values.astype(np.uint64)
    if span <= 2**64:
      keys = keys * np.uint64(size) + values
    else:
      keys = _mixed(keys) ^ (values * np.uint64(0x9E3779B97F4A7C15))
  return Bags(keys, lengths)


def _pairs(
  keys: np.ndarray, lengths: np.ndarray | None, part: Bags
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """Every key beside every value of its example."""
  if lengths is None and part.lengths is None:
    return keys, part.values, None
  ours = np.ones(len(keys), np.int32) if lengths is None else lengths
  theirs = np.ones(len(ours), np.int32) if part.lengths is None else part.lengths
  of_key = np.repeat(np.arange(len(ours)), ours)  # each key's example
  times = theirs[of_key]
  starts = (np.cumsum(theirs) - theirs)[of_key]
  within = np.arange(int(times.sum())) - np.repeat(np.cumsum(times) - times, times)
  places = np.repeat(starts, times) + within
  return np.repeat(keys, times), part.values[places], (ours * theirs).astype(np.int32)


def _mixed(keys: np.ndarray) -> np.ndarray:
  """A bijection of u64 that mixes all bits: the finalizer of SplitMix64."""
  keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return keys ^ (keys >> np.uint64(31))


@dataclasses.dataclass(frozen=True, eq=False)
class CrossVocabulary:
  """Combinations that have a row of their own.

  Attributes:
    keys: u64[V], the most frequent first; key k has row ``oov_buckets + k``.
    oov_buckets: rows 0 .. oov_buckets - 1, shared by hash by the combinations outside.
  """

  keys: np.ndarray
  oov_buckets: int = 1

  @functools.cached_property
  def _ascending(self) -> tuple[np.ndarray, np.ndarray]:
    """The keys in order, and their rows."""
    order = np.argsort(self.keys)
    return self.keys[order], (self.oov_buckets + order).astype(np.int32)

  @property
  def num_rows(self) -> int:
    return self.oov_buckets + len(self.keys)

  def rows(self, keys: np.ndarray) -> np.ndarray:
    """i32[N]: the row of each key u64[N].

    >>> CrossVocabulary(np.array([70, 30], np.uint64)).rows(np.array([30, 31, 70], np.uint64))
    array([2, 0, 1], dtype=int32)
    """
    outside = hashing.hash_ids(keys, self.oov_buckets)
    if not len(self.keys):
      return outside
    known, rows = self._ascending
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[places] == keys, rows[places], outside)


@dataclasses.dataclass(frozen=True)
class HashedCross:
  """The hashing trick: nothing to fit; combinations may share a row.

  Attributes:
    num_buckets: rows.
    salt: another salt, another function.
  """

  num_buckets: int
  salt: int = 0

  @property
  def num_rows(self) -> int:
    return self.num_buckets

  def rows(self, keys: np.ndarray) -> np.ndarray:
    """i32[N]: the row of each key u64[N]."""
    return hashing.hash_ids(keys, self.num_buckets, salt=self.salt)


CrossRows = CrossVocabulary | HashedCross


def fit(
  counts: Iterable[tuple[np.ndarray, np.ndarray]],
  *,
  min_count: int = 1,
  max_size: int | None = None,
  oov_buckets: int = 1,
) -> CrossVocabulary:
  """The vocabulary of a cross, from distinct keys u64[K] and how often each occurs, in chunks.

  The most frequent come first, and of equals the smaller key.
  """
  chunks = [(keys[number >= min_count], number[number >= min_count]) for keys, number in counts]
  keys = np.concatenate([np.zeros(0, np.uint64), *(keys for keys, _ in chunks)])
  number = np.concatenate([np.zeros(0, np.int64), *(number for _, number in chunks)])
  order = np.lexsort([keys, -number])[:max_size]
  return CrossVocabulary(keys[order], oov_buckets)


def parts_of(key: int, num_rows: Sequence[int]) -> tuple[int, ...]:
  """The ids that ``cross`` made ``key`` of, where the product of ``num_rows`` is below 2^64.

  >>> parts_of(12, [3, 10])
  (1, 2)
  """
  found = []
  for size in reversed(num_rows[1:]):
    key, row = divmod(key, size)
    found.append(row)
  return (key, *reversed(found))


def expected_collision_rate(num_keys: int, num_buckets: int) -> float:
  """Of n keys hashed evenly into V rows, the share that has company: 1 - (1 - 1/V)^(n - 1).

  >>> round(expected_collision_rate(1000, 10_000), 4)
  0.0951
  """
  return 1.0 - (1.0 - 1.0 / num_buckets) ** (num_keys - 1)


def collision_rate(rows: np.ndarray) -> float:
  """The same counted: ``rows: i32[n]`` are those of n different keys."""
  found, number = np.unique(rows, return_counts=True)
  return float(number[number > 1].sum() / max(1, len(rows))) if len(found) else 0.0


class Sharing(NamedTuple):
  """How the combinations of a training set share the rows of their cross.

  Attributes:
    num_keys: different combinations.
    shared_keys: those of them without a row of their own: hashed to where another one is, or
      outside the vocabulary.
    lookups: combinations of all examples.
    shared_lookups: those of them without a row of their own.
  """

  num_keys: int = 0
  shared_keys: int = 0
  lookups: int = 0
  shared_lookups: int = 0

  def describe(self, name: str, rows: CrossRows, most: int = 1) -> str:
    """In a line; of a hash, beside the rate that is expected. ``most`` combinations an example.

    >>> Sharing(1000, 97, 5000, 450).describe("a*b", HashedCross(10_000))
    'a*b: 1,000 combinations by hash in 10,000 rows; 9.7 % have company (9.5 % expected), 9.0 % of
    look-ups'
    """
    of_lookups = f"{100 * self.shared_lookups / max(1, self.lookups):.1f} % of look-ups"
    of_lookups += f"; up to {most:,} an example" if most > 1 else ""
    if isinstance(rows, CrossVocabulary):
      own = self.num_keys - self.shared_keys
      return (
        f"{name}: {own:,} of {self.num_keys:,} combinations have a row of their own; the others "
        f"are {of_lookups}"
      )
    counted = 100 * self.shared_keys / max(1, self.num_keys)
    expected = 100 * expected_collision_rate(max(1, self.num_keys), rows.num_rows)
    return (
      f"{name}: {self.num_keys:,} combinations by hash in {rows.num_rows:,} rows; {counted:.1f} % "
      f"have company ({expected:.1f} % expected), {of_lookups}"
    )


def sharing(
  counts: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]], rows: CrossRows
) -> Sharing:
  """How the distinct keys u64[K], seen i64[K] times each, share ``rows``.

  ``counts()`` gives them in chunks, and is called twice; memory is a byte a row and a chunk.
  """
  num_seen = np.zeros(rows.num_rows, np.uint8)  # different keys of each row: 0, 1, or 2 for more
  if isinstance(rows, CrossVocabulary):
    num_seen[: rows.oov_buckets] = 2  # with all that training has not seen
  else:
    for keys, _ in counts():
      found, times = np.unique(rows.rows(keys), return_counts=True)
      num_seen[found] = np.minimum(num_seen[found] + times, 2)
  total = np.zeros(4, np.int64)
  for keys, number in counts():
    is_shared = num_seen[rows.rows(keys)] > 1
    total += [len(keys), is_shared.sum(), number.sum(), number[is_shared].sum()]
  return Sharing(*total.tolist())
