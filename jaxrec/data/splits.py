"""Which rows train, which choose, which test.

A ``Splitter`` says it of any rows by their number in the table and the values in them, so a table
of any size is split as it streams by. By chance it is a hash of (seed, row); by time the latest
rows are held out, and of the others the latest choose. A data set with an official split brings its
own.

Read next: jaxrec/data/preparing.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec.data import counter_rng, reading
from jaxrec.features import transforms, validate

NAMES = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)


class Splitter(Protocol):
  """Decides over rows."""

  def columns(self) -> tuple[str, ...]:
    """Columns it looks at."""

  def __call__(self, first: int, rows: pa.RecordBatch) -> np.ndarray:
    """u8[N] of TRAIN, VAL, TEST for the rows numbered ``first``, ``first + 1``, ..."""


@dataclasses.dataclass(frozen=True)
class ByChance:
  """A hash of (seed, row): ``test_fraction`` of all rows, and ``val_fraction`` of the others.

  Attributes:
    seed: another seed, another split.
    val_fraction: of the rows that do not test.
    test_fraction: of all rows.
    num_test: instead: the first so many rows test.
  """

  seed: int
  val_fraction: float
  test_fraction: float = 0.0
  num_test: int = 0

  def columns(self) -> tuple[str, ...]:
    return ()

  def __call__(self, first: int, rows: pa.RecordBatch) -> np.ndarray:
    numbers = np.arange(first, first + rows.num_rows)
    is_test = uniform("test", self.seed, numbers) < self.test_fraction
    is_test |= numbers < self.num_test
    is_val = uniform("val", self.seed, numbers) < self.val_fraction
    return np.where(is_test, TEST, np.where(is_val, VAL, TRAIN)).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class ByTime:
  """The latest rows: those after ``test_after`` test, those after ``val_after`` choose."""

  column: str
  val_after: float
  test_after: float

  def columns(self) -> tuple[str, ...]:
    return (self.column,)

  def __call__(self, first: int, rows: pa.RecordBatch) -> np.ndarray:
    times = _times(rows.column(self.column), self.column, first)
    return np.where(
      times > self.test_after, TEST, np.where(times > self.val_after, VAL, TRAIN)
    ).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class AllTest:
  """Every row tests: a table of a test split's own."""

  def columns(self) -> tuple[str, ...]:
    return ()

  def __call__(self, first: int, rows: pa.RecordBatch) -> np.ndarray:
    return np.full(rows.num_rows, TEST, np.uint8)


def by_time(
  reader: reading.Reader, column: str, *, val_fraction: float, test_fraction: float
) -> ByTime:
  """A split of ``reader`` at moments: the latest ``test_fraction`` of rows, and of the others the
  latest ``val_fraction``. Rows of one moment stay together, on the earlier side of a cut.
  """
  chunks = [_times(rows.column(0), column, 0) for rows in reader.batches([column])]
  times = np.sort(np.concatenate(chunks)) if chunks else np.zeros(0)
  if not len(times):
    raise validate.BadExampleError(f"{reader.name}: holds no rows")
  num_kept = len(times) - round(test_fraction * len(times))
  num_train = num_kept - round(val_fraction * num_kept)
  last = [times[max(0, count - 1)] for count in (num_train, num_kept)]
  return ByTime(column, float(last[0]), float(last[1]))


def uniform(what: str, seed: int, rows: np.ndarray) -> np.ndarray:
  """f64[N] in [0, 1): a hash of (what, seed, row)."""
  return counter_rng.uniform(counter_rng.stream_key("split", what, seed), rows)


def rows_of(assigned: np.ndarray, first: int, split: int) -> np.ndarray:
  """i64[n]: numbers of the rows of a split, of the rows from ``first`` on."""
  return first + np.flatnonzero(assigned == split).astype(np.int64)


def _times(values: pa.Array, column: str, first: int) -> np.ndarray:
  if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
    values = transforms.cast(values, pa.timestamp("us"), column, "the table")
  if values.null_count:
    row = first + int(np.argmax(pc.is_null(values).to_numpy(zero_copy_only=False)))
    raise validate.BadExampleError(
      f"time column {column!r}: row {row} has none; fill it in, or leave --time out for a "
      "random split"
    )
  return transforms.to_numbers(values, column, "the table")


def check_not_empty(counts: Sequence[int], where: str) -> None:
  """Raises BadExampleError if no row trains."""
  if not counts[TRAIN]:
    raise validate.BadExampleError(
      f"{where}: no row is left to train on (train, val, test: {', '.join(map(str, counts))}); "
      "lower data.val_fraction and data.test_fraction, or bring more rows"
    )
