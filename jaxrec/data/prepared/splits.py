"""Which rows train, which choose, which test.

A ``Splitter`` says it of any rows by their number in the table and the values in them, so a table
of any size is split as it streams by. By chance it is a hash of (seed, row); by time the latest
rows are held out, and of the others the latest choose. A data set with an official split brings its
own.

Read next: jaxrec/data/prepared/prepare.py.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxrec.data.pipeline import counter_rng
from jaxrec.data.prepared import fit_transforms
from jaxrec.data.readers import duckdb_session
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features import column_values, quantiles
from jaxrec.inputs import batch_checks

NAMES = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)


class Splitter(Protocol):
  """Decides over rows."""

  def columns(self) -> tuple[str, ...]:
    """Columns it looks at."""

  def __call__(self, numbers: np.ndarray, rows: pa.RecordBatch) -> np.ndarray:
    """u8[N] of TRAIN, VAL, TEST for ``rows``, which are the table's ``numbers: i64[N]``."""


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

  def __call__(self, numbers: np.ndarray, rows: pa.RecordBatch) -> np.ndarray:
    is_test = uniform("test", self.seed, numbers) < self.test_fraction
    is_test |= numbers < self.num_test
    is_val = uniform("val", self.seed, numbers) < self.val_fraction
    return np.where(is_test, TEST, np.where(is_val, VAL, TRAIN)).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class ByTime:
  """The latest rows: those after ``test_after`` test, those after ``val_after`` choose.

  Attributes:
    column: of moments, or numbers that grow with time.
    kind: of its values.
    val_after: as ``column_values.to_numbers`` reads them, like the next.
    test_after: the later of the two.
  """

  column: str
  kind: str
  val_after: float
  test_after: float

  def columns(self) -> tuple[str, ...]:
    return (self.column,)

  def __call__(self, numbers: np.ndarray, rows: pa.RecordBatch) -> np.ndarray:
    times = _times(rows.column(self.column), self.kind, self.column)
    return np.where(
      times > self.test_after, TEST, np.where(times > self.val_after, VAL, TRAIN)
    ).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class AllTest:
  """Every row tests: a table of a test split's own."""

  def columns(self) -> tuple[str, ...]:
    return ()

  def __call__(self, numbers: np.ndarray, rows: pa.RecordBatch) -> np.ndarray:
    return np.full(rows.num_rows, TEST, np.uint8)


def by_time(
  reader: reader_lib.Reader,
  column: str,
  *,
  val_fraction: float,
  test_fraction: float,
  skip_bad_rows: bool = False,
) -> ByTime:
  """A split of ``reader`` at moments: the latest ``test_fraction`` of rows, and of the others the
  latest ``val_fraction``. Rows of one moment stay together, on the earlier side of a cut; but a
  part that was asked for has the latest moment at least.

  Raises:
    BadExampleError: the rows are of fewer moments than there are parts; or one has none that can be
      read, unless ``skip_bad_rows`` leaves these aside.
  """
  kind = reader.kinds[column]
  with tempfile.TemporaryDirectory(prefix="jaxrec-split-") as folder:
    path = f"{folder}/times.parquet"
    _write_times(reader, column, kind, path, skip_bad_rows=skip_bad_rows)
    connection = duckdb_session.connect(temporary=folder)
    moments = fit_transforms.Counts(connection, path, ["time"], where="true")
    num_rows = sum(int(number.sum()) for _, number in moments)
    if not num_rows:
      raise batch_checks.BadExampleError(
        f"{reader.name}: holds no row with a {column!r} that can be read; expected at least one"
      )
    num_kept = num_rows - round(test_fraction * num_rows)
    num_train = num_kept - round(val_fraction * num_kept)
    num_moments = sum(len(values) for values, _ in moments)
    has_test, has_val = num_kept < num_rows, num_train < num_kept
    if num_moments < 1 + has_val + has_test:
      raise batch_checks.BadExampleError(
        f"{reader.name}: time {column!r} has {num_moments} distinct moments, too few to train, "
        "choose and test at different ones; set val_fraction or test_fraction to 0, or leave "
        "--time out of a table for a random split"
      )
    # How many moments lie before the test, and before what chooses; some are left for each part.
    kept = min(_moment_of(moments, num_kept) + 1, num_moments - has_test)
    kept = max(kept, 1 + has_val)
    train = min(_moment_of(moments, num_train) + 1, kept - has_val)
    cuts = [_at(moments, number - 1) for number in (train, kept)]
    connection.close()
  return ByTime(column, kind, *cuts)


def _write_times(
  reader: reader_lib.Reader, column: str, kind: str, path: str, *, skip_bad_rows: bool
) -> None:
  first, schema = 0, pa.schema([("time", pa.float64())])
  with pq.ParquetWriter(path, schema) as writer:
    for rows in reader.batches([column]):
      times, bad = column_values.of_good_rows(
        rows, lambda good, places: _times(good.column(0), kind, column)
      )
      if bad and not skip_bad_rows:
        (place,) = reader.places([first + min(bad)])
        raise batch_checks.BadExampleError(f"{place}: {bad[min(bad)]}")
      writer.write_batch(pa.record_batch([pa.array(times)], schema))
      first += rows.num_rows


def _moment_of(moments: quantiles.Counts, count: int) -> int:
  """The number of the moment of the last of the first ``count`` rows."""
  before = 0
  for _, number in moments:
    ends = np.cumsum(number)
    if count <= ends[-1]:
      return before + int(np.searchsorted(ends, count))
    count, before = count - int(ends[-1]), before + len(number)
  return before


def _at(moments: quantiles.Counts, number: int) -> float:
  for values, _ in moments:
    if number < len(values):
      return float(values[number])
    number -= len(values)
  raise IndexError(number)


def uniform(what: str, seed: int, rows: np.ndarray) -> np.ndarray:
  """f64[N] in [0, 1): a hash of (what, seed, row)."""
  return counter_rng.uniform(counter_rng.stream_key("split", what, seed), rows)


def rows_of(assigned: np.ndarray, first: int, split: int) -> np.ndarray:
  """i64[n]: numbers of the rows of a split, of the rows from ``first`` on."""
  return first + np.flatnonzero(assigned == split).astype(np.int64)


def _times(values: pa.Array, kind: str, column: str) -> np.ndarray:
  """f64[N]."""
  # Without a kind of their own, texts are moments: dates in a form that was not recognised.
  times = column_values.to_numbers(values, "time" if kind == "text" else kind, f"time {column!r}")
  if np.isnan(times).any():
    raise column_values.BadRowsError(
      f"time {column!r}: is missing; fill it in, or leave --time out for a random split",
      np.isnan(times),
    )
  return times


def check_not_empty(counts: Sequence[int], where: str) -> None:
  """Raises BadExampleError if no row trains."""
  if not counts[TRAIN]:
    raise batch_checks.BadExampleError(
      f"{where}: no row is left to train on (train, val, test: {', '.join(map(str, counts))}); "
      "lower data.val_fraction and data.test_fraction, or bring more rows"
    )
