"""Dense steps are fitted exactly and give a value the same bits alone and in a column."""

from __future__ import annotations

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxrec.features import numeric
from tests.features.quantiles_test import NUMBERS, counts_of

STEPS = [("log",), ("standardise",), ("cdf",), ("log", "standardise"), ("standardise", "cdf")]


@pytest.mark.parametrize("names", STEPS)
@hypothesis.given(values=NUMBERS, chunk=st.integers(1, 5))
@hypothesis.settings(max_examples=15)
def test_fitted_in_chunks_equals_fitted_at_once_bit_for_bit(names, values, chunk):
  at_once = numeric.fit(names, counts_of(values))
  in_chunks = numeric.fit(names, counts_of(values, chunk))
  assert list(map(numeric.to_plain, at_once)) == list(map(numeric.to_plain, in_chunks))


@pytest.mark.parametrize("names", STEPS)
def test_a_value_comes_out_the_same_alone_and_in_a_column(names):
  values = np.random.default_rng(0).normal(size=333) * 10.0 ** np.arange(333) ** 0.5
  values[::7] = np.nan
  steps = numeric.fit(names, counts_of(values[~np.isnan(values)]))
  whole = numeric.to_dense(steps, values)
  assert whole.dtype == np.float32 and np.isfinite(whole).all()
  alone = np.concatenate([numeric.to_dense(steps, values[k : k + 1]) for k in range(333)])
  np.testing.assert_array_equal(whole.view(np.uint32), alone.view(np.uint32))


def test_standardised_values_have_mean_0_and_deviation_1():
  values = np.random.default_rng(0).normal(5e6, 3.0, 1000)
  steps = numeric.fit(("standardise",), counts_of(values))
  assert steps[0].mean == pytest.approx(values.mean(), rel=1e-15)
  assert steps[0].deviation == pytest.approx(values.std(), rel=1e-9)


def test_steps_follow_their_formulas_in_float64():
  values = np.array([-100.0, 0.0, 3.0, 3.0])
  logs = np.sign(values) * np.log1p(np.abs(values))
  steps = numeric.fit(("log", "standardise"), counts_of(values))
  expected = (logs - logs.mean()) / logs.std()
  np.testing.assert_allclose(numeric.apply(steps, values), expected, rtol=1e-12)


def test_a_missing_value_is_0_and_a_constant_column_is_0():
  steps = numeric.fit(("standardise",), counts_of([4.0, 4.0]))
  assert numeric.to_dense(steps, np.array([4.0, np.nan])).tolist() == [0.0, 0.0]
  empty = numeric.fit(("standardise", "cdf"), [])
  assert numeric.to_dense(empty, np.array([4.0, np.nan])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("names", STEPS)
def test_steps_read_back_from_json_bit_for_bit(names):
  values = np.random.default_rng(2).normal(size=50)
  steps = numeric.fit(names, counts_of(values))
  plain = json.loads(json.dumps(list(map(numeric.to_plain, steps))))
  again = tuple(map(numeric.from_plain, plain))
  np.testing.assert_array_equal(numeric.apply(again, values), numeric.apply(steps, values))
