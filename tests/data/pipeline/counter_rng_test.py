"""Counter-based random numbers: functions of (key, counter), and random enough."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from jaxrec.data.pipeline import counter_rng

KEY = counter_rng.stream_key("test", 1)


def splitmix64(state: int) -> int:
  """SplitMix64's output function in Python's integers."""
  state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
  state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
  return state ^ (state >> 31)


def test_first_words_are_those_of_the_published_generator():
  # SplitMix64 from seed 1234567, as its reference implementation prints them.
  words = counter_rng.bits(np.uint64(1234567), np.arange(1, 4))
  assert words.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_words_equal_those_of_python_integers():
  counters = np.array([0, 1, 2**40, 2**62])
  words = counter_rng.bits(KEY, counters)
  expected = [splitmix64((int(KEY) + c * 0x9E3779B97F4A7C15) % 2**64) for c in counters.tolist()]
  assert words.dtype == np.uint64
  assert words.tolist() == expected


def test_keys_and_counters_broadcast():
  keys = np.array([counter_rng.stream_key(k) for k in range(3)])
  words = counter_rng.bits(keys, np.arange(5)[:, None])
  assert words.shape == (5, 3)
  assert words[4, 2] == counter_rng.bits(keys[2], np.array([4]))[0]


def test_drawing_leaves_counters_alone():
  counters = np.arange(5)
  counter_rng.normal(KEY, counters)
  assert counters.tolist() == [0, 1, 2, 3, 4]


def test_every_part_of_a_stream_name_counts():
  names = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a", 1), ("a", "1"), (1, "a"), (-1,), (1,)]
  assert len({int(counter_rng.stream_key(*name)) for name in names}) == len(names)


def test_uniforms_are_uniform_and_below_one():
  draws = counter_rng.uniform(KEY, np.arange(200_000))
  assert draws.min() >= 0
  assert draws.max() < 1
  assert stats.kstest(draws, "uniform").pvalue > 1e-4


def test_quarters_are_uniform_independent_and_standardised():
  parts = counter_rng.quarters(KEY, np.arange(200_000))
  assert parts.shape == (4, 200_000)
  word = int(counter_rng.bits(KEY, np.array([7]))[0])
  numbers = [word // 2**shift % 2**16 for shift in (0, 16, 32, 48)]
  deviation = np.arange(2.0**16).std()
  np.testing.assert_allclose(parts[:, 7], [(n - 32767.5) / deviation for n in numbers])
  np.testing.assert_allclose(parts.mean(axis=1), 0, atol=0.01)
  np.testing.assert_allclose(np.cov(parts), np.eye(4), atol=0.01)
  for part in parts:
    assert stats.kstest(part, "uniform", args=(-np.sqrt(3), 2 * np.sqrt(3))).pvalue > 1e-4


def test_normals_have_the_moments_that_are_promised():
  draws = counter_rng.normal(KEY, np.arange(400_000))
  assert abs(draws.mean()) < 0.01
  assert abs(draws.std() - 1) < 0.01
  assert abs(stats.kurtosis(draws, fisher=False) - 2.7) < 0.03
  assert np.abs(draws).max() <= 2 * np.sqrt(3)


@pytest.mark.parametrize("other", [("test", 2), ("tset", 1)])
def test_streams_are_not_correlated(other):
  first = counter_rng.uniform(KEY, np.arange(200_000))
  second = counter_rng.uniform(counter_rng.stream_key(*other), np.arange(200_000))
  assert abs(np.corrcoef(first, second)[0, 1]) < 0.01
  assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.01
