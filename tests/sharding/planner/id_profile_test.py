"""How many different rows a batch touches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec import features as features_lib
from jaxrec import sharding
from jaxrec.config import ConfigError, FeatureConfig, TableConfig


def exact(vocab_size, exponent, num_ids):
  chances = np.arange(1, vocab_size + 1, dtype=np.float64) ** -exponent
  chances /= chances.sum()
  touched = 1 - (1 - chances) ** num_ids
  return touched.sum(), (touched**2).sum()


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.05, 2.0])
@pytest.mark.parametrize("vocab_size", [1, 3, 1024, 1025, 300_001])
def test_binned_sums_are_those_over_all_rows(vocab_size, exponent):
  profile = sharding.zipf_profile(vocab_size, exponent)
  assert profile.num_rows.sum() == vocab_size
  for num_ids in (1, 40, 5_000, 10**6):
    np.testing.assert_allclose(
      profile.unique(num_ids), exact(vocab_size, exponent, num_ids), rtol=1e-4
    )


def test_a_table_of_billions_of_rows_has_few_bins():
  assert len(sharding.zipf_profile(2 * 10**9).chances) < 3_000


@given(vocab_size=st.integers(1, 10**7), exponent=st.floats(0, 3), num_ids=st.integers(0, 10**7))
def test_no_more_rows_are_touched_than_there_are_ids_or_rows(vocab_size, exponent, num_ids):
  unique, squares = sharding.zipf_profile(vocab_size, exponent).unique(num_ids)
  assert -1e-9 <= squares <= unique * (1 + 1e-9)
  assert unique <= min(num_ids, vocab_size) * (1 + 1e-9)


def test_counted_ids_predict_the_rows_of_a_fresh_batch():
  rng = np.random.default_rng(0)
  vocab_size = 20_000
  ranks = np.arange(1, vocab_size + 1) ** -1.1
  draw = lambda n: rng.choice(vocab_size, n, p=ranks / ranks.sum())  # noqa: E731
  counts = np.bincount(draw(400_000), minlength=vocab_size)
  profile = sharding.profile_of_counts(counts, vocab_size)
  seen = np.mean([len(np.unique(draw(10_000))) for _ in range(20)])
  assert profile.unique(10_000)[0] == pytest.approx(seen, rel=0.03)
  top = np.sort(counts)[::-1][:500]  # of the top rows alone, and how many look-ups there were
  of_top = sharding.profile_of_counts(top, vocab_size, num_lookups=400_000)
  assert of_top.chances @ of_top.num_rows == pytest.approx(1)
  assert of_top.unique(10_000)[0] > profile.unique(10_000)[0]  # the rest as if equal: the most


def test_one_row_that_is_always_asked_for_is_touched_once():
  assert sharding.profile_of_counts(np.array([7]), 1).unique(100) == (1.0, 1.0)


def test_features_of_one_table_are_counted_together():
  table = TableConfig("t", 10, 4)
  inputs = [FeatureConfig("a", table), FeatureConfig("b", table)]
  ids = {"a": np.array([1, 1, -1], np.int32), "b": np.array([2, 1, 3], np.int32)}
  batch = features_lib.Batch(
    dense=np.zeros((3, 0), np.float32),
    ids={name: features_lib.IdBags.single(values) for name, values in ids.items()},
    labels={},
    weights=np.ones(3, np.float32),
  )
  profile = sharding.measure_profiles([batch], inputs)["t"]
  assert profile.num_rows.tolist() == [2, 1, 7]  # 2 and 3 once, 1 thrice, seven never
  np.testing.assert_allclose(profile.chances, [0.6 / 5, 3 * 0.6 / 5, 0.4 / 7])
  with pytest.raises(ConfigError, match="table 't' is never looked up in these batches"):
    sharding.measure_profiles([], inputs)


@pytest.mark.parametrize(
  ("counts", "lookups", "message"),
  [
    ([1, 2, 3], None, r"at most vocab_size=2 rows.* got \(3,\) with sum 6"),
    ([-1, 4], None, "none negative"),
    ([0, 0], None, "some above 0"),
    ([3, 4], 6, "num_lookups must be at least the sum of counts, 7, got 6"),
  ],
)
def test_counts_that_make_no_sense_are_refused(counts, lookups, message):
  with pytest.raises(ConfigError, match=message):
    sharding.profile_of_counts(np.array(counts), 2, num_lookups=lookups)


def test_a_negative_exponent_is_refused():
  with pytest.raises(ConfigError, match="exponent >= 0, got 5 and -1"):
    sharding.zipf_profile(5, -1)
