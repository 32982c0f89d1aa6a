"""Values to rows, by a list of the values seen.

A vocabulary is the values of a column that training saw often enough, the most frequent first. Row
0 is for a value that is missing; the next rows are shared, by hash, by all values outside the
vocabulary, so a value never seen has a row; then each value has its own.

The list is a function of (value, count) pairs alone, whatever the order and the chunks in which the
data was read.

Read next: jaxrec/features/transforms.py.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from jaxrec.features import hashing

MISSING = 0  # the row of a value that is not there


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
  """Values that have a row of their own.

  Attributes:
    values: string[V], distinct; value k has row ``1 + oov_buckets + k``.
    oov_buckets: shared rows, 1 .. oov_buckets.
  """

  values: pa.Array
  oov_buckets: int = 1

  @property
  def num_rows(self) -> int:
    return 1 + self.oov_buckets + len(self.values)

  @functools.cached_property
  def _rows(self) -> dict[str, int]:
    first = 1 + self.oov_buckets
    return {value: first + k for k, value in enumerate(self.values.to_pylist())}

  def rows(self, values: pa.Array) -> np.ndarray:
    """i32[N]: the row of each value; null is MISSING.

    Each distinct value is looked up once, so a chunk costs its distinct values in Python and the
    rest in C++.

    >>> Vocabulary(pa.array(["b", "a"])).rows(pa.array(["a", None, "b", "zzz"]))
    array([3, 0, 2, 1], dtype=int32)
    """
    encoded = encode(values)
    known = self._rows
    rows = np.array([known.get(value, -1) for value in encoded.dictionary.to_pylist()], np.int32)
    outside = np.flatnonzero(rows < 0)
    if outside.size:
      keys = value_keys(encoded.dictionary.take(pa.array(outside)))
      rows[outside] = 1 + hashing.hash_ids(keys, self.oov_buckets)
    return spread(encoded, rows)

  def names(self) -> list[str]:
    """What each row stands for, for people."""
    shared = [
      f"(other {k})" if self.oov_buckets > 1 else "(other)" for k in range(self.oov_buckets)
    ]
    return ["(missing)", *shared, *self.values.to_pylist()]


def fit(
  counts: Iterable[tuple[pa.Array, np.ndarray]],
  *,
  min_count: int = 1,
  max_size: int | None = None,
  oov_buckets: int = 1,
) -> Vocabulary:
  """The vocabulary of a column.

  Args:
    counts: distinct values and how often each occurs, in chunks, in any order.
    min_count: a value seen less often is out of the vocabulary.
    max_size: only so many values, the most frequent; of equals the first in order of value.
    oov_buckets: rows for the values outside.
  """
  chunks = [(values, number) for values, number in counts]
  kept = [(v.filter(pa.array(n >= min_count)), n[n >= min_count]) for v, n in chunks]
  if not kept:
    return Vocabulary(pa.array([], pa.string()), oov_buckets)
  table = pa.table(
    {
      "value": pa.chunked_array([values for values, _ in kept]),
      "count": pa.chunked_array([pa.array(number, pa.int64()) for _, number in kept]),
    }
  )
  ordered = table.sort_by([("count", "descending"), ("value", "ascending")])
  values = ordered.column("value").slice(0, max_size).combine_chunks()
  return Vocabulary(values, oov_buckets)


@dataclasses.dataclass(frozen=True)
class HashedRows:
  """The hashing trick with a row for what is missing: nothing to fit, values may share a row.

  Attributes:
    num_buckets: rows for values, 1 .. num_buckets.
    salt: another salt, another function.
  """

  num_buckets: int
  salt: int = 0

  @property
  def num_rows(self) -> int:
    return 1 + self.num_buckets

  def rows(self, values: pa.Array) -> np.ndarray:
    """i32[N]: the row of each value; null is MISSING."""
    encoded = encode(values)
    rows = 1 + hashing.hash_ids(value_keys(encoded.dictionary), self.num_buckets, salt=self.salt)
    return spread(encoded, rows.astype(np.int32))


def encode(values: pa.Array) -> pa.DictionaryArray:
  """``values`` as places in a list of its distinct values; null stays null."""
  if isinstance(values, pa.ChunkedArray):
    values = values.combine_chunks()
  return values if isinstance(values, pa.DictionaryArray) else values.dictionary_encode()


def spread(encoded: pa.DictionaryArray, rows: np.ndarray) -> np.ndarray:
  """``rows`` of the distinct values, one for each value; MISSING for null."""
  places = encoded.indices.fill_null(len(rows)).to_numpy(zero_copy_only=False)
  return np.append(rows, np.int32(MISSING))[places].astype(np.int32)


def value_keys(values: pa.Array) -> np.ndarray:
  """u64[N]: the blake2b of each text: the same everywhere and in every version, as tables depend
  on it.
  """
  digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in values.to_pylist())
  return np.frombuffer(b"".join(digests), "<u8")
