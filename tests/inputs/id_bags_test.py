"""Malformed bags are refused on the host, by the name of their feature."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.features import Batch, IdBags, plan_rows, plan_tables

B = 4
WATCHED = FeatureConfig("watched", TableConfig("video", 10, 2), combiner="mean", ids_per_bag=3)
PLAN = plan_tables([WATCHED])


def plan_of(values, row_splits=None, weights=None, dtype=np.int32):
  splits = None if row_splits is None else np.array(row_splits, np.int32)
  bags = IdBags(values=np.array(values, dtype), row_splits=splits, weights=weights)
  batch = Batch(
    dense=np.zeros((B, 0), np.float32),
    ids={"watched": bags},
    labels={"click": np.zeros(B, np.float32)},
    weights=np.ones(B, np.float32),
  )
  (plan,) = plan_rows(batch, PLAN).rows.values()
  return plan


@pytest.mark.parametrize(
  ("values", "row_splits", "message"),
  [
    ([1, -1, 2, 3, 4, 5], [0, 3, 4, 5, 6], "a bag holds id -1, and absent ids are left out"),
    ([1, 2, 3, 4, 5], [0, 3, 1, 4, 5], "row_splits decrease"),
    ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], r"row_splits begin at \[1\], not 0"),
    ([1, 2, 3, 4], [0, 1, 2, 3, 6], r"row_splits end at \[6\], past the 4 ids"),
    ([], [], "-1 bags in a batch of 4"),
  ],
)
def test_a_malformed_bag_is_refused_by_the_name_of_its_feature(values, row_splits, message):
  with pytest.raises(ValueError, match=f"feature 'watched': {message}.*; mend the batch"):
    plan_of(values, row_splits)


def test_padding_past_the_last_bag_and_a_missing_single_id_are_no_fault():
  assert int(plan_of([1, 2, 2, 3, -1, -1], [0, 2, 2, 3, 4]).num_rows) == 3
  assert int(plan_of([1, -1, 2, 1]).num_rows) == 2
  assert int(plan_of([-1, -1], [0, 0, 0, 0, 0]).num_rows) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.int16])
def test_ids_that_are_not_int32_are_refused(dtype):
  with pytest.raises(ValueError, match=r"feature 'watched': ids .*\[4\], not int32\[N\]"):
    plan_of([1, 2, 3, 4], dtype=dtype)


def test_weights_must_be_one_an_id():
  weighted = FeatureConfig("w", TableConfig("video", 10, 2), ids_per_bag=3, weighted=True)
  bags = IdBags(
    values=np.array([1, 2], np.int32),
    row_splits=np.array([0, 2], np.int32),
    weights=np.ones(3, np.float32),
  )
  one = np.ones(1, np.float32)
  batch = Batch(dense=one[:, None], ids={"w": bags}, labels={}, weights=one)
  with pytest.raises(ValueError, match=r"feature 'w': \(3,\) weights for \(2,\) ids"):
    plan_rows(batch, plan_tables([weighted]))


def test_a_negative_length_is_refused():
  with pytest.raises(ValueError, match="IdBags.from_lengths: a bag of length -1"):
    IdBags.from_lengths(np.array([1, 2], np.int32), np.array([3, -1], np.int32))


def test_weights_that_belong_to_other_bags_are_refused():
  with pytest.raises(ValueError, match=r"bags of \[2, 1\] ids came with \[1, 2\] weights"):
    IdBags.from_lists([[1, 2], [3]], weights=[[1.0], [2.0, 3.0]])


@hypothesis.given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 3))
def test_under_jit_each_id_has_the_bag_that_it_has_on_the_host(lengths, num_padding):
  splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
  values = np.zeros(splits[-1] + num_padding, np.int32)
  bags = IdBags(values=values, row_splits=splits)
  expected = np.repeat(np.arange(len(lengths) + 1), [*lengths, num_padding])
  np.testing.assert_array_equal(bags.bag_ids(), expected)
  found = jax.jit(lambda bags: bags.bag_ids())(bags)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, expected)
