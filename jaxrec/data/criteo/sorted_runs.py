"""Distinct values with their counts, sorted, in memory or on disk, merged without ever fitting.

A run holds distinct uint32 values in ascending order, how often each occurred, and where first.
Runs of blocks are merged into larger ones, too large ones are spilled to disk, and runs on disk are
merged range by range: since all are sorted, a range of values is a slice of each, and as many
values are in memory as one range holds. A value and its counts take 16 bytes, whatever the file.

Source: external merge sort; the ranges are sample sort's.
Read next: jaxrec/data/criteo/vocabulary.py.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

_DTYPES = {"values": np.uint32, "counts": np.uint32, "firsts": np.uint64}
_SAMPLES = 4096  # of each run, to cut ranges by


@dataclasses.dataclass(frozen=True)
class Run:
  """Distinct values of one column, ascending.

  Attributes:
    values: u32[k].
    counts: u32[k] occurrences in a day, which has fewer than 2^32 rows; u64[k] in all days.
    firsts: u64[k] row of the first occurrence, distinct.
  """

  values: np.ndarray
  counts: np.ndarray
  firsts: np.ndarray

  def __len__(self) -> int:
    return len(self.values)

  def __getitem__(self, part: slice) -> Run:
    return Run(self.values[part], self.counts[part], self.firsts[part])


def count(values: np.ndarray, first_row: int) -> Run:
  """The run of a block ``values: u32[n]`` whose first row has the number ``first_row``; n < 2^32.

  >>> run = count(np.array([7, 3, 7], np.uint32), 10)
  >>> run.values.tolist(), run.counts.tolist(), run.firsts.tolist()
  ([3, 7], [1, 2], [11, 10])
  """
  # One sort of (value, row) as one word: groups, and in each the first row in front.
  keys = (values.astype(np.uint64) << np.uint64(32)) | np.arange(len(values), dtype=np.uint64)
  keys.sort()
  ordered = (keys >> np.uint64(32)).astype(np.uint32)
  begins = _begins(ordered)
  counts = np.diff(begins, append=len(ordered)).astype(np.uint32)
  rows = (keys[begins] & np.uint64(0xFFFFFFFF)) + np.uint64(first_row)
  return Run(ordered[begins], counts, rows)


def merge(runs: Sequence[Run]) -> Run:
  """One run of all; ``runs`` in the order of their rows."""
  if len(runs) == 1:
    return runs[0]
  values = np.concatenate([run.values for run in runs])
  by_value = np.argsort(
    values, kind="stable"
  )  # linear in sorted runs; and the earliest comes first
  values = values[by_value]
  begins = _begins(values)
  counts = np.concatenate([run.counts for run in runs])[by_value]
  firsts = np.concatenate([run.firsts for run in runs])[by_value]
  if not len(begins):
    return Run(values, counts, firsts)
  return Run(values[begins], np.add.reduceat(counts, begins, dtype=counts.dtype), firsts[begins])


def merge_ranges(
  runs: Sequence[Run], *, max_entries: int, first_rows: Sequence[int] | None = None
) -> Iterator[Run]:
  """``merge``, as consecutive pieces made of about ``max_entries`` entries each.

  A piece can be larger where the samples it is cut by are unlucky: by 1 / 4096 of each run.

  Args:
    runs: runs in memory or on disk, in the order of their rows.
    max_entries: how many to load at a time.
    first_rows: what to add to the rows of each; None: nothing.
  """
  total = sum(map(len, runs))
  num_ranges = -(-total // max_entries)
  offsets = [0] * len(runs) if first_rows is None else first_rows
  if num_ranges <= 1:
    if total:
      yield merge([_loaded(*pair) for pair in zip(runs, offsets, strict=True)])
    return
  samples, weights = zip(*map(_samples, runs), strict=True)
  sampled = np.concatenate(samples)
  by_value = np.argsort(sampled, kind="stable")
  reached = np.cumsum(np.concatenate(weights)[by_value])
  marks = np.searchsorted(reached, np.arange(1, num_ranges) * (total / num_ranges))
  pivots = np.unique(sampled[by_value][np.minimum(marks, len(sampled) - 1)])
  cuts = [[0, *np.searchsorted(run.values, pivots).tolist(), len(run)] for run in runs]
  for piece in range(len(pivots) + 1):
    slices = [
      _loaded(run[cut[piece] : cut[piece + 1]], offset)
      for run, cut, offset in zip(runs, cuts, offsets, strict=True)
    ]
    if any(map(len, slices)):
      yield merge(slices)


def _samples(run: Run) -> tuple[np.ndarray, np.ndarray]:
  """Evenly spaced values of a run, and how many entries each stands for."""
  step = max(1, len(run) // _SAMPLES)
  values = np.asarray(run.values[::step])
  return values, np.full(len(values), step, np.float64)


def _loaded(run: Run, first_row: int) -> Run:
  # 64-bit counts: all days together have more than 2^32 rows.
  return Run(np.array(run.values), run.counts.astype(np.uint64), run.firsts + np.uint64(first_row))


def _begins(ordered: np.ndarray) -> np.ndarray:
  """i64[k]: where each distinct value of ``ordered`` begins."""
  is_new = np.empty(len(ordered), bool)
  is_new[:1] = True
  np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
  return np.flatnonzero(is_new)


class RunFiles:
  """Runs of several columns in three files of a folder, written column after column.

  The folder is whole when ``close`` has returned.
  """

  def __init__(self, folder: pathlib.Path):
    folder.mkdir(parents=True, exist_ok=True)
    self._folder = folder
    self._files = {name: open(folder / name, "wb") for name in _DTYPES}  # noqa: SIM115
    self._lengths: list[int] = []

  def begin_column(self) -> None:
    self._lengths.append(0)

  def append(self, piece: Run) -> None:
    """Adds to the column begun last; its values follow those that are there."""
    for name, file in self._files.items():
      file.write(np.ascontiguousarray(getattr(piece, name), _DTYPES[name]).data)
    self._lengths[-1] += len(piece)

  def close(self) -> None:
    for file in self._files.values():
      file.close()
    np.save(self._folder / "splits.npy", np.concatenate([[0], np.cumsum(self._lengths)]))


def open_runs(folder: pathlib.Path) -> list[Run]:
  """The runs in a folder, one a column, as arrays on disk."""
  splits = np.load(folder / "splits.npy").astype(np.int64)
  arrays = {
    name: np.memmap(folder / name, dtype, "r") if splits[-1] else np.empty(0, dtype)
    for name, dtype in _DTYPES.items()
  }
  whole = Run(**arrays)
  return [whole[start:stop] for start, stop in zip(splits[:-1], splits[1:], strict=True)]


class Counter:
  """Counts the columns of a day in bounded memory: add blocks, then ``write``.

  Args:
    num_columns: how many.
    scratch: a folder of its own, for what does not fit.
    block_rows: rows counted at once.
    max_entries: distinct values, over all columns, held in memory; of 16 bytes each.
  """

  def __init__(
    self,
    num_columns: int,
    scratch: pathlib.Path,
    *,
    block_rows: int = 1 << 18,
    max_entries: int = 1 << 21,
  ):
    self._scratch, self._block_rows, self._max_entries = scratch, block_rows, max_entries
    self._pending = np.empty((num_columns, block_rows), np.uint32)
    self._num_pending = 0
    self._first_row = 0
    self._runs: list[list[Run]] = [[] for _ in range(num_columns)]
    self._spilled: list[pathlib.Path] = []

  def add(self, ids: np.ndarray) -> None:
    """Counts the next rows, ``ids: u32[n, num_columns]``."""
    start = 0
    while start < len(ids):
      take = min(len(ids) - start, self._block_rows - self._num_pending)
      stop = self._num_pending + take
      self._pending[:, self._num_pending : stop] = ids[start : start + take].T
      self._num_pending, start = stop, start + take
      if stop == self._block_rows:
        self._count_pending()

  def write(self, folder: pathlib.Path) -> None:
    """Writes one run a column to ``folder``."""
    self._count_pending()
    parts = [open_runs(path) for path in self._spilled]
    files = RunFiles(folder)
    for column, held in enumerate(self._runs):
      files.begin_column()
      runs = [*(part[column] for part in parts), *held]
      for piece in merge_ranges(runs, max_entries=self._max_entries):
        files.append(piece)
    files.close()

  def _count_pending(self) -> None:
    if not self._num_pending:
      return
    for column, held in enumerate(self._runs):
      held.append(count(self._pending[column, : self._num_pending], self._first_row))
      # Merged when the newest are as large as what is before them: each entry moves O(log n) times.
      while len(held) > 1 and 2 * len(held[-1]) > len(held[-2]):
        held[-2:] = [merge(held[-2:])]
    self._first_row += self._num_pending
    self._num_pending = 0
    if sum(len(run) for held in self._runs for run in held) > self._max_entries:
      self._spill()

  def _spill(self) -> None:
    path = self._scratch / f"spilled_{len(self._spilled)}"
    files = RunFiles(path)
    for held in self._runs:
      files.begin_column()
      if held:
        files.append(merge(held))
    files.close()
    self._runs = [[] for _ in self._runs]
    self._spilled.append(path)
