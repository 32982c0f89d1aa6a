"""Splits are functions of rows and moments, never of chunks."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from jaxrec.data import reading, splits


def rows(times) -> pa.RecordBatch:
  return pa.record_batch({"t": pa.array(times)})


@hypothesis.given(
  st.lists(st.integers(0, 20), min_size=1, max_size=80),
  st.floats(0, 0.9),
  st.floats(0, 0.9),
)
def test_by_time_the_latest_test_and_of_the_others_the_latest_choose(times, val, test):
  reader = reading.ArrowTable(pa.table({"t": times}))
  splitter = splits.by_time(reader, "t", val_fraction=val, test_fraction=test)
  found = splitter(0, rows(times))
  times = np.array(times)
  groups = [times[found == split] for split in (splits.TRAIN, splits.VAL, splits.TEST)]
  for earlier, later in ((0, 1), (1, 2), (0, 2)):
    if len(groups[earlier]) and len(groups[later]):
      assert groups[earlier].max() < groups[later].min()
  assert len(groups[2]) <= round(test * len(times))
  # Ties stay together on the earlier side: one more moment would have been too many.
  if len(groups[2]) < round(test * len(times)) and len(groups[2]):
    before = np.unique(times[times < groups[2].min()])
    assert not len(before) or (times >= before.max()).sum() > round(test * len(times))
  one_by_one = [splitter(k, rows(times[k : k + 1]))[0] for k in range(len(times))]
  assert found.tolist() == one_by_one


def test_by_time_takes_dates_and_texts_of_dates():
  dates = np.arange(100).astype("datetime64[D]")
  for values in (pa.array(dates), pa.array([str(date) for date in dates])):
    table = pa.table({"t": values})
    splitter = splits.by_time(reading.ArrowTable(table), "t", val_fraction=0.25, test_fraction=0.2)
    found = splitter(0, table.to_batches()[0])
    assert [np.count_nonzero(found == k) for k in range(3)] == [60, 20, 20]
    assert (np.diff(found.astype(int)) >= 0).all()


def test_by_chance_shares_are_met_and_a_row_is_decided_by_its_number():
  splitter = splits.ByChance(seed=3, val_fraction=0.1, test_fraction=0.2)
  whole = splitter(0, rows(np.zeros(50_000)))
  parts = np.concatenate([splitter(k, rows(np.zeros(777))) for k in range(0, 49_728, 777)])
  np.testing.assert_array_equal(parts, whole[: len(parts)])
  shares = np.bincount(whole) / len(whole)
  np.testing.assert_allclose(shares, [0.72, 0.08, 0.2], atol=0.006)
  assert (splits.ByChance(4, 0.1, 0.2)(0, rows(np.zeros(1000))) != whole[:1000]).any()


def test_an_official_test_split_is_the_first_rows():
  splitter = splits.ByChance(0, val_fraction=0.1, num_test=30)
  found = splitter(0, rows(np.zeros(1000)))
  assert (found[:30] == splits.TEST).all() and (found[30:] != splits.TEST).all()
  assert 60 < np.count_nonzero(found == splits.VAL) < 140


@pytest.mark.parametrize("split", range(3))
def test_rows_of_a_split_are_numbers_in_the_table(split):
  assigned = np.array([0, 1, 2, 0, 1], np.uint8)
  assert (
    splits.rows_of(assigned, 100, split).tolist()
    == (100 + np.flatnonzero(assigned == split)).tolist()
  )
