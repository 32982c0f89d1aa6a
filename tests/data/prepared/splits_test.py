"""Splits are functions of rows and moments, never of chunks."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from jaxrec.data.prepared import fit_transforms, splits
from jaxrec.data.readers import files
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features import BadExampleError, column_values


def split(splitter: splits.Splitter, times, first: int = 0) -> np.ndarray:
  """The splits of rows of these times, the first of which is number ``first``."""
  numbers = np.arange(first, first + len(times))
  return splitter(numbers, pa.record_batch({"t": pa.array(times)}))


@hypothesis.given(
  st.lists(st.integers(0, 20), min_size=1, max_size=80),
  st.floats(0, 0.9),
  st.floats(0, 0.9),
  st.integers(1, 90),
)
@hypothesis.example([0, 1, 1], 0.0, 0.25, 1)  # more rows of the last moment than were to test
@hypothesis.example(list(range(20)), 0.25, 0.2, 3)  # the cuts lie in later chunks
def test_by_time_the_latest_test_and_of_the_others_the_latest_choose(times, val, test, chunk):
  reader = reader_lib.ArrowTable(pa.table({"t": times}))
  num_rows, moments = len(times), np.unique(times)
  num_test = round(test * num_rows)
  num_val = round(val * (num_rows - num_test))
  num_parts = 1 + (num_test > 0) + (num_val > 0)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(files, "CHUNK_ROWS", chunk)
    patch.setattr(fit_transforms, "_CHUNK_VALUES", chunk)
    if len(moments) < num_parts:
      with pytest.raises(
        BadExampleError, match="the table: time 't' has . distinct moments, too few"
      ):
        splits.by_time(reader, "t", val_fraction=val, test_fraction=test)
      return
    splitter = splits.by_time(reader, "t", val_fraction=val, test_fraction=test)
  found = split(splitter, times)
  times = np.array(times)
  groups = [times[found == part] for part in (splits.TRAIN, splits.VAL, splits.TEST)]
  assert len(groups[0]) and bool(len(groups[1])) == (num_val > 0)
  assert bool(len(groups[2])) == (num_test > 0)
  for earlier, later in ((0, 1), (1, 2), (0, 2)):
    if len(groups[earlier]) and len(groups[later]):
      assert groups[earlier].max() < groups[later].min()
  # Ties stay together on the earlier side of a cut, unless that leaves a part without any.
  for part, wanted, parts_before in ((2, num_test, 1 + (num_val > 0)), (1, num_test + num_val, 1)):
    later, before = times[found >= part], np.unique(times[found < part])
    assert len(later) <= wanted or len(np.unique(groups[part])) <= 1  # none without val
    if len(later) < wanted and len(before) > parts_before:
      assert (times >= before.max()).sum() > wanted
  one_by_one = [split(splitter, times[k : k + 1], k)[0] for k in range(len(times))]
  assert found.tolist() == one_by_one


@pytest.mark.parametrize("chunk", [7, 1000])
def test_by_time_bad_moments_are_left_to_whoever_reads_the_rows(chunk, monkeypatch):
  monkeypatch.setattr(files, "CHUNK_ROWS", chunk)
  times = pa.array([*range(100), None, np.nan, np.inf])
  reader = reader_lib.ArrowTable(pa.table({"t": times}))
  options = {"val_fraction": 0.25, "test_fraction": 0.2}
  with pytest.raises(BadExampleError, match="the table, row 100: time 't': is missing; fill it in"):
    splits.by_time(reader, "t", **options)
  splitter = splits.by_time(reader, "t", **options, skip_bad_rows=True)
  assert (splitter.val_after, splitter.test_after) == (59, 79)
  for bad in (100, 101, 102):
    with pytest.raises(column_values.BadRowsError, match="row 0: time 't': "):
      split(splitter, times[bad : bad + 1])


def test_times_of_another_form_are_named(tmp_path):
  path = tmp_path / "x.csv"
  path.write_text("t\n" + "".join(f"{k % 28 + 1:02d}/03/2024\n" for k in range(50)))
  for skip, message in (
    (False, "x.csv, line 2: time 't': expected a moment such as 2024-01-31 .*got '01/03/2024'"),
    (True, "x.csv: holds no row with a 't' that can be read"),
  ):
    reader = reader_lib.open_files(path, skip_bad_rows=skip)
    with pytest.raises(BadExampleError, match=message):
      splits.by_time(reader, "t", val_fraction=0.1, test_fraction=0.1, skip_bad_rows=skip)


def test_by_time_takes_dates_and_texts_of_dates():
  dates = np.arange(100).astype("datetime64[D]")
  texts = [str(date) for date in dates]
  slashes = [text.replace("-", "/") for text in texts]
  for values in (pa.array(dates), pa.array(texts), pa.array(slashes)):
    table = pa.table({"t": values})
    splitter = splits.by_time(
      reader_lib.ArrowTable(table), "t", val_fraction=0.25, test_fraction=0.2
    )
    found = split(splitter, values)
    assert [np.count_nonzero(found == k) for k in range(3)] == [60, 20, 20]
    assert (np.diff(found.astype(int)) >= 0).all()


def test_by_chance_shares_are_met_and_a_row_is_decided_by_its_number():
  splitter = splits.ByChance(seed=3, val_fraction=0.1, test_fraction=0.2)
  whole = split(splitter, np.zeros(50_000))
  parts = np.concatenate([split(splitter, np.zeros(777), k) for k in range(0, 49_728, 777)])
  np.testing.assert_array_equal(parts, whole[: len(parts)])
  shares = np.bincount(whole) / len(whole)
  np.testing.assert_allclose(shares, [0.72, 0.08, 0.2], atol=0.006)
  assert (split(splits.ByChance(4, 0.1, 0.2), np.zeros(1000)) != whole[:1000]).any()


def test_an_official_test_split_is_the_first_rows():
  splitter = splits.ByChance(0, val_fraction=0.1, num_test=30)
  found = split(splitter, np.zeros(1000))
  assert (found[:30] == splits.TEST).all() and (found[30:] != splits.TEST).all()
  assert 60 < np.count_nonzero(found == splits.VAL) < 140


@pytest.mark.parametrize("part", range(3))
def test_rows_of_a_split_are_numbers_in_the_table(part):
  assigned = np.array([0, 1, 2, 0, 1], np.uint8)
  assert (
    splits.rows_of(assigned, 100, part).tolist()
    == (100 + np.flatnonzero(assigned == part)).tolist()
  )
