"""Quantiles are exact, whatever the chunks, ties and missing values."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from jaxrec.features import quantiles

NUMBERS = st.lists(
  st.one_of(st.integers(-5, 5).map(float), st.floats(-1e12, 1e12)), min_size=1, max_size=60
)


def counts_of(values, chunk=10**9):
  distinct, number = np.unique(np.asarray(values, np.float64) + 0.0, return_counts=True)
  return [(distinct[k : k + chunk], number[k : k + chunk]) for k in range(0, len(distinct), chunk)]


def boundaries_by_definition(values, num_buckets):
  """A frequent value has its own bucket; bucket k of the others begins at the least of them that
  has k / (buckets left) of them below it.
  """
  values = np.asarray(values, np.float64)
  distinct, number = np.unique(values, return_counts=True)
  if len(distinct) <= num_buckets:
    return distinct[1:].tolist()
  heavy = set(distinct[number * num_buckets >= len(values)])
  light = np.array([v for v in values if v not in heavy])
  left = max(1, num_buckets - len(heavy))
  starts = set()
  for k in range(1, left):
    if at := [v for v in np.unique(light) if (light < v).sum() * left >= k * len(light)]:
      starts.add(min(at))
  found = []
  for before, value in zip(distinct[:-1], distinct[1:], strict=True):
    if value in heavy or before in heavy or value in starts:
      found.append(value)
  return found


@hypothesis.given(NUMBERS, st.integers(1, 9), st.integers(1, 7))
@hypothesis.settings(max_examples=100)
def test_buckets_begin_where_their_definition_says_whatever_the_chunks(values, num_buckets, chunk):
  fitted = quantiles.fit(counts_of(values, chunk), num_buckets=num_buckets)
  assert fitted.boundaries.tolist() == boundaries_by_definition(values, num_buckets)
  at_once = quantiles.fit(counts_of(values), num_buckets=num_buckets)
  for ours, theirs in ((fitted.knots, at_once.knots), (fitted.ranks, at_once.ranks)):
    np.testing.assert_array_equal(ours, theirs)


@hypothesis.given(NUMBERS, st.integers(1, 9))
def test_every_value_falls_into_the_bucket_that_holds_it(values, num_buckets):
  fitted = quantiles.fit(counts_of(values), num_buckets=num_buckets)
  for value, bucket in zip(values, fitted.buckets(np.array(values)).tolist(), strict=True):
    assert bucket == 1 + sum(edge <= value for edge in fitted.boundaries)
    assert 1 <= bucket < fitted.num_rows


def test_buckets_hold_equal_shares_of_values_that_do_not_repeat():
  values = np.random.default_rng(0).lognormal(3, 2, 10_000)
  fitted = quantiles.fit(counts_of(values, 777), num_buckets=64)
  shares = np.bincount(fitted.buckets(values), minlength=fitted.num_rows)[1:]
  assert len(shares) == 64
  assert shares.min() >= 156 and shares.max() <= 157


def test_a_frequent_value_leaves_the_buckets_to_the_others():
  rng = np.random.default_rng(0)
  values = np.where(rng.random(10_000) < 0.95, 0.0, rng.lognormal(3, 2, 10_000))
  fitted = quantiles.fit(counts_of(values), num_buckets=64)
  shares = np.bincount(fitted.buckets(values), minlength=fitted.num_rows)[1:]
  assert shares[0] == (values == 0).sum()
  assert len(shares) == 64 and shares[1:].max() <= 9


def test_a_column_of_few_values_gets_a_bucket_for_each():
  values = [0.0] * 1000 + [1.0, 2.0, 2.0]
  fitted = quantiles.fit(counts_of(values), num_buckets=64)
  assert fitted.buckets(np.array([0.0, 1.0, 2.0, -9.0, 9.0])).tolist() == [1, 2, 3, 1, 3]


@hypothesis.given(NUMBERS)
def test_the_cdf_is_the_middle_rank(values):
  fitted = quantiles.fit(counts_of(values), num_buckets=4)
  ranks = (scipy.stats.rankdata(values) - 0.5) / len(values)
  np.testing.assert_allclose(
    fitted.cdf(np.array(values) + 0.0), (ranks - 0.5) * np.sqrt(12), rtol=1e-12, atol=1e-12
  )


def test_the_cdf_of_many_values_is_near_the_rank_and_monotone():
  values = np.random.default_rng(1).standard_cauchy(50_000)
  fitted = quantiles.fit(counts_of(values), num_buckets=4)
  assert len(fitted.knots) <= quantiles.MAX_KNOTS + 2
  ranks = (scipy.stats.rankdata(values) - 0.5) / len(values)
  assert np.abs(fitted.cdf(values) / np.sqrt(12) + 0.5 - ranks).max() < 1 / quantiles.MAX_KNOTS
  assert (np.diff(fitted.cdf(np.sort(values))) >= 0).all()


def test_missing_values_have_row_0_and_the_middle_rank():
  fitted = quantiles.fit(counts_of([1.0, 2.0, 3.0]), num_buckets=3)
  assert fitted.buckets(np.array([np.nan, 2.0])).tolist() == [0, 2]
  assert fitted.cdf(np.array([np.nan, 2.0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("counts", [[], [(np.zeros(0), np.zeros(0, np.int64))]])
def test_a_column_that_is_missing_everywhere_has_one_bucket(counts):
  fitted = quantiles.fit(counts, num_buckets=8)
  assert fitted.num_rows == 2
  assert fitted.buckets(np.array([np.nan, 5.0])).tolist() == [0, 1]
  assert fitted.cdf(np.array([np.nan, 5.0])).tolist() == [0.0, 0.0]
