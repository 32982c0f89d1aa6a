"""From raw ids to rows of a table: one contiguous numbering over all days.

Ids are numbered in the order of first occurrence. To sort 40 million ids by where they occurred
first would take them all in memory; but no two ids of a column occur first in the same row. So the
first rows are marked in a bitmap, one bit a row of the data set, and an id's number is how many
bits are set before its own: a sum of popcounts, kept every 512 bits, and one more of the words in
between. The bitmap is a file; what is in memory is one range of ids at a time.

Source: the order is that of facebookresearch/dlrm's and torchrec's dictionaries; rank by popcount
is Jacobson's (FOCS 1989).
Read next: jaxrec/data/criteo/stages.py.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxrec.data.criteo import sorted_runs

_WORDS = 8  # 64-bit words that share one kept sum
_RANGE_ENTRIES = 1 << 21


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The numbering of one column.

  Attributes:
    values: u32[k] known raw ids, ascending.
    rows: i32[k] their numbers.
    rare_id: the number of all others; None: there are no others.
  """

  values: np.ndarray
  rows: np.ndarray
  rare_id: int | None

  def look_up(self, raw: np.ndarray) -> np.ndarray:
    """i32[n] rows of ``raw: u32[n]``.

    Raises:
      KeyError: an id that is not known, where all should be.
    """
    found, rows = np.zeros(len(raw), bool), np.zeros(len(raw), np.int32)
    if len(self.values):
      by_id = np.argsort(raw)  # neighbours then search the same lines of the processor's cache
      ordered = raw[by_id]
      where = np.minimum(np.searchsorted(self.values, ordered), len(self.values) - 1)
      found[by_id], rows[by_id] = self.values[where] == ordered, self.rows[where]
    if self.rare_id is not None:
      return np.where(found, rows, np.int32(self.rare_id))
    if not found.all():
      raise KeyError(int(raw[np.argmin(found)]))
    return rows


def build(
  days: Sequence[sorted_runs.Run],
  rows_per_day: Sequence[int],
  folder: pathlib.Path,
  *,
  first_id: int,
  threshold: int,
  max_entries: int = _RANGE_ENTRIES,
) -> int:
  """Numbers a column over all days; writes the vocabulary to ``folder``.

  Args:
    days: the column's run of each day, on disk.
    rows_per_day: rows that those counted.
    folder: gets ``values``, ``rows`` and ``size.npy``; it is whole when this has returned.
    first_id: the first number.
    threshold: an id seen less often gets no number.
    max_entries: entries in memory at a time.

  Returns:
    Rows of the table: one more than the largest number given.
  """
  folder.mkdir(parents=True, exist_ok=True)
  offsets = [0, *np.cumsum(rows_per_day).tolist()]
  num_groups = offsets[-1] // (64 * _WORDS) + 1
  bitmap = np.memmap(folder / "bitmap.tmp", np.uint64, "w+", shape=(num_groups * _WORDS,))
  num_kept = 0
  with open(folder / "values", "wb") as values, open(folder / "firsts.tmp", "wb") as firsts:
    for piece in sorted_runs.merge_ranges(days, max_entries=max_entries, first_rows=offsets[:-1]):
      is_kept = piece.counts >= threshold
      kept = piece.firsts[is_kept]
      # In order, so that bits of one word can be joined first: |= with repeated indices would not.
      positions = np.sort(kept)
      words = (positions >> np.uint64(6)).astype(np.int64)
      begins = np.flatnonzero(np.diff(words, prepend=-1))
      bits = np.uint64(1) << (positions & np.uint64(63))
      if len(kept):
        bitmap[words[begins]] |= np.bitwise_or.reduceat(bits, begins)
      values.write(piece.values[is_kept].data)
      firsts.write(kept.data)
      num_kept += len(kept)
  sums = _kept_sums(bitmap)
  with open(folder / "rows", "wb") as rows:
    for start in range(0, num_kept, max_entries):
      size = min(max_entries, num_kept - start)
      kept = np.fromfile(folder / "firsts.tmp", np.uint64, size, offset=8 * start)
      rows.write((_ranks(bitmap, sums, kept) + first_id).astype(np.int32).data)
  del bitmap
  (folder / "bitmap.tmp").unlink()
  (folder / "firsts.tmp").unlink()
  np.save(folder / "size.npy", np.array([num_kept, num_kept + first_id]))
  return num_kept + first_id


def load(folder: pathlib.Path, rare_id: int | None) -> Vocabulary:
  """What ``build`` wrote, as arrays on disk."""
  num_kept, _ = np.load(folder / "size.npy")
  if not num_kept:
    return Vocabulary(np.empty(0, np.uint32), np.empty(0, np.int32), rare_id)
  values = np.memmap(folder / "values", np.uint32, "r")
  return Vocabulary(
    np.asarray(values), np.asarray(np.memmap(folder / "rows", np.int32, "r")), rare_id
  )


def num_rows(folder: pathlib.Path) -> int:
  """Rows of the table of the vocabulary in ``folder``."""
  return int(np.load(folder / "size.npy")[1])


def _kept_sums(bitmap: np.ndarray) -> np.ndarray:
  """i64[...]: bits set before each group of words."""
  step = _WORDS << 16
  totals = [
    np.bitwise_count(bitmap[start : start + step]).reshape(-1, _WORDS).sum(axis=1, dtype=np.int64)
    for start in range(0, len(bitmap), step)
  ]
  return np.concatenate([[0], np.cumsum(np.concatenate(totals))[:-1]])


def _ranks(bitmap: np.ndarray, sums: np.ndarray, positions: np.ndarray) -> np.ndarray:
  """i64[n]: bits set before each of ``positions: u64[n]``."""
  words = (positions >> np.uint64(6)).astype(np.int64)
  groups = words // _WORDS
  ranks = sums[groups]
  below = (np.uint64(1) << (positions & np.uint64(63))) - np.uint64(1)
  ranks += np.bitwise_count(bitmap[words] & below)
  for place in range(_WORDS - 1):  # whole words of the group before the position's own
    word = groups * _WORDS + place
    ranks += np.where(word < words, np.bitwise_count(bitmap[word]), 0)
  return ranks
