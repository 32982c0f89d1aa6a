"""permuted: each example once, in an order that looks like chance."""

from __future__ import annotations

import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from jaxrec.data.pipeline import shuffle

SIZES = sorted(
  {1, 2, 3, 5, 1000, 99_991, *(2**k + d for k in (2, 5, 9, 10, 11, 16, 17) for d in (-1, 0, 1))}
)


@pytest.mark.parametrize("num_examples", SIZES)
def test_each_example_comes_once(num_examples):
  places = np.arange(num_examples)
  examples = shuffle.permuted(places, num_examples=num_examples, seed=3, epoch=1)
  assert examples.dtype == np.int64
  np.testing.assert_array_equal(np.sort(examples), places)


@hypothesis.given(st.integers(1, 5000), st.integers(0, 2**63), st.integers(0, 1000))
def test_each_example_comes_once_in_any_epoch(num_examples, seed, epoch):
  places = np.arange(num_examples)
  examples = shuffle.permuted(places, num_examples=num_examples, seed=seed, epoch=epoch)
  np.testing.assert_array_equal(np.sort(examples), places)


@pytest.mark.parametrize("num_examples", [10, 1000, 100_003])
def test_a_place_is_looked_up_alone_as_among_others(num_examples):
  places = np.random.default_rng(0).integers(0, num_examples, 60_000)
  examples = shuffle.permuted(places, num_examples=num_examples, seed=5)
  for place in (0, 1, 777, 59_999):
    alone = shuffle.permuted(places[place : place + 1], num_examples=num_examples, seed=5)
    assert alone[0] == examples[place]
  matrix = shuffle.permuted(places.reshape(300, 200), num_examples=num_examples, seed=5)
  np.testing.assert_array_equal(matrix.reshape(-1), examples)


@pytest.mark.parametrize("num_examples", [500, 5000])
def test_seeds_and_epochs_have_orders_of_their_own(num_examples):
  places = np.arange(num_examples)
  orders = [
    shuffle.permuted(places, num_examples=num_examples, seed=seed, epoch=epoch)
    for seed in range(4)
    for epoch in range(4)
  ]
  for k, one in enumerate(orders):
    for other in orders[:k]:
      assert (one == other).mean() < 0.02  # two random orders agree at one place on average


@pytest.mark.parametrize("num_examples", [2, 3, 5, 12])
def test_over_epochs_each_example_takes_each_place_equally_often(num_examples):
  num_epochs = 3000
  orders = np.stack(
    [
      shuffle.permuted(np.arange(num_examples), num_examples=num_examples, epoch=epoch)
      for epoch in range(num_epochs)
    ]
  )
  for place in range(num_examples):
    counts = np.bincount(orders[:, place], minlength=num_examples)
    assert stats.chisquare(counts).pvalue > 1e-5


@pytest.mark.parametrize("num_examples", [1025, 1500, 2**20 + 1, 10**9, 2**62])
def test_one_place_over_epochs_is_uniform_in_a_large_set(num_examples):
  place = np.array([num_examples // 3])
  examples = [
    int(shuffle.permuted(place, num_examples=num_examples, epoch=epoch)[0]) for epoch in range(2000)
  ]
  counts = np.bincount([example * 20 // num_examples for example in examples], minlength=20)
  assert stats.chisquare(counts).pvalue > 1e-5


@pytest.mark.parametrize("num_examples", [1025, 5000, 2**16, 10**6])
def test_steps_between_neighbours_are_uniform(num_examples):
  counts = np.zeros(32, np.int64)
  for epoch in range(-(-200_000 // num_examples)):
    places = np.arange(min(num_examples, 200_000))
    examples = shuffle.permuted(places, num_examples=num_examples, epoch=epoch)
    steps = np.diff(examples) % num_examples
    counts += np.bincount(steps * 32 // num_examples, minlength=32)
  assert stats.chisquare(counts).pvalue > 1e-5


def test_neighbouring_places_are_not_correlated():
  examples = shuffle.permuted(np.arange(500_000), num_examples=500_000, seed=1)
  for lag in (1, 2, 708):  # 708: the base of the digits
    assert abs(np.corrcoef(examples[:-lag], examples[lag:])[0, 1]) < 0.01


def test_largest_set_stays_in_range_without_repeats():
  places = 2**62 - 1 - np.arange(100_000)
  examples = shuffle.permuted(places, num_examples=2**62, seed=9)
  assert examples.min() >= 0
  assert examples.max() < 2**62
  assert len(np.unique(examples)) == 100_000


def test_no_places_give_no_examples():
  assert shuffle.permuted(np.arange(0), num_examples=10).shape == (0,)


@pytest.mark.parametrize("bad", [-1, 10])
def test_place_outside_the_set_is_refused(bad):
  with pytest.raises(ValueError, match=r"must lie in \[0, 10\), got .*epoch"):
    shuffle.permuted(np.array([bad, 3]), num_examples=10)


@pytest.mark.parametrize("num_examples", [0, -3, 2**62 + 1])
def test_impossible_set_size_is_refused(num_examples):
  with pytest.raises(ValueError, match=rf"\[1, 2\^62\], got {num_examples}"):
    shuffle.permuted(np.array([0]), num_examples=num_examples)


def test_five_million_places_take_under_a_second():
  places = np.arange(500_000)
  seconds = []
  for epoch in range(5):
    started = time.thread_time()
    shuffle.permuted(places, num_examples=10**9, epoch=epoch)
    seconds.append(time.thread_time() - started)
  assert min(seconds) < 0.1
