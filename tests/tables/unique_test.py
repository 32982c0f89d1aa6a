"""Duplicate removal: the host's plan and the one made in jit are the same."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import tables
from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.features import Batch, IdBags, plan_rows, plan_tables

_unique = jax.jit(tables.unique_rows, static_argnums=1)


def first_occurrences(ids):
  seen = {}
  for i in ids:
    if i >= 0:
      seen.setdefault(int(i), len(seen))
  return seen


@hypothesis.given(st.lists(st.integers(-1, 9), min_size=1, max_size=24))
def test_rows_come_in_order_of_first_occurrence(ids):
  plan = _unique(jnp.asarray(np.pad(ids, (0, 24 - len(ids)), constant_values=-1), jnp.int32), 10)
  order = first_occurrences(ids)
  assert int(plan.num_rows) == len(order)
  rows = np.asarray(plan.rows)
  assert rows[: len(order)].tolist() == list(order)
  assert (rows[len(order) :] >= 10).all() and len(set(rows.tolist())) == 10
  expected = [order[i] if i >= 0 else 10 for i in ids]
  assert np.asarray(plan.inverse)[: len(ids)].tolist() == expected


def two_features(seed, size=40, vocab=(7, 13)):
  rng = np.random.default_rng(seed)
  features = [
    FeatureConfig("a", TableConfig("a", vocab[0], 4)),
    FeatureConfig("b", TableConfig("b", vocab[1], 4), ids_per_bag=3),
    FeatureConfig("b2", TableConfig("b", vocab[1], 4), combiner="mean", ids_per_bag=2),
    FeatureConfig("c", TableConfig("c", 5, 8)),
  ]

  def bags(n, v):
    return IdBags.from_lists(
      [rng.integers(0, v, rng.integers(0, n + 1)).tolist() for _ in range(size)], capacity=size * n
    )

  batch = Batch(
    dense=np.zeros((size, 1), np.float32),
    ids={
      "a": IdBags.single(rng.integers(-1, vocab[0], size).astype(np.int32)),
      "b": bags(3, vocab[1]),
      "b2": bags(2, vocab[1]),
      "c": IdBags.single(rng.integers(-1, 5, size).astype(np.int32)),
    },
    labels={"click": np.zeros(size, np.float32)},
    weights=(rng.random(size) < 0.8).astype(np.float32),
  )
  return plan_tables(features), batch


@pytest.mark.parametrize("seed", range(3))
def test_the_hosts_plan_equals_the_plan_made_in_jit(seed):
  plan, batch = two_features(seed)
  planned = plan_rows(batch, plan)
  in_jit = jax.jit(tables.row_plans, static_argnums=0)(plan, batch)
  assert set(in_jit) == set(planned.rows) == {"d4_float32", "d8_float32"}
  for name, ours in planned.rows.items():
    assert int(ours.num_rows) > 0
    jax.tree.map(np.testing.assert_array_equal, ours, in_jit[name])


def test_ids_of_padding_examples_touch_no_row():
  plan, batch = two_features(0)
  only_first = batch.replace(weights=np.eye(1, 40, 0, dtype=np.float32)[0])
  planned = plan_rows(only_first, plan)
  touched = sum(int(p.num_rows) for p in planned.rows.values())
  first = sum(len(set(bags.to_lists()[0])) for name, bags in batch.ids.items())
  assert 0 < touched <= first


def test_an_id_out_of_range_is_named_with_its_feature_and_table():
  plan, batch = two_features(0)
  for bad in (7, -2):
    values = batch.ids["a"].values.copy()
    values[3] = bad
    broken = batch.replace(ids={**batch.ids, "a": IdBags.single(values)})
    with pytest.raises(
      ValueError, match=rf"feature 'a': id {bad} is out of range, table 'a' has ids 0..6"
    ):
      plan_rows(broken, plan)


def test_a_missing_feature_is_named():
  plan, batch = two_features(0)
  ids = {name: bags for name, bags in batch.ids.items() if name != "b2"}
  with pytest.raises(ValueError, match="feature 'b2' is missing"):
    plan_rows(batch.replace(ids=ids), plan)


def test_wide_ids_are_an_error_and_never_a_truncation():
  with pytest.raises(TypeError, match="int64"):
    IdBags(values=np.array([2**40], np.int64))
  with pytest.raises(TypeError, match="truncate"):
    IdBags.single(np.array([1, 2], np.int64))
  with pytest.raises(TypeError, match="does not fit int32"):
    IdBags.from_lists([[2**40]])
  with pytest.raises(TypeError, match="int32"):
    tables.unique_rows(jnp.zeros(3, jnp.uint32), 4)


@pytest.mark.parametrize(
  ("name", "bags", "message"),
  [
    ("a", IdBags.from_lists([[1, 2]] + [[]] * 39), "a bag of 2 ids, but ids_per_bag is 1"),
    ("b", IdBags.from_lists([[1, 2, 3, 4]] + [[]] * 39), "a bag of 4 ids, but ids_per_bag is 3"),
    ("b", IdBags.from_lists([[1]] * 39), "39 bags in a batch of 40"),
    ("b", IdBags.from_lists([[1]] * 40, weights=[[1.0]] * 40), "ids with weights, but weighted is"),
  ],
)
def test_bags_that_are_not_as_declared_are_refused(name, bags, message):
  plan, batch = two_features(0)
  with pytest.raises(ValueError, match=f"feature '{name}': {message}"):
    plan_rows(batch.replace(ids={**batch.ids, name: bags}), plan)


def test_a_negative_id_inside_a_bag_is_refused():
  with pytest.raises(ValueError, match="a bag holds id -1; leave absent ids out"):
    IdBags.from_lists([[3, -1]])


def test_a_plan_made_for_other_features_is_refused_and_never_misread():
  plan, batch = two_features(0)
  planned = plan_rows(batch, plan)
  other = plan_tables(plan.features[::-1])
  assert [s.name for s in other.stacks] == [s.name for s in plan.stacks[::-1]]
  with pytest.raises(ValueError, match="row plan was made for other features or tables"):
    tables.row_plans(other, planned)
  assert tables.row_plans(plan, planned) is planned.rows


@pytest.mark.parametrize("bad", [7, -2, 2**31 - 1])
def test_an_id_out_of_range_that_only_jit_sees_reads_as_nan_and_never_as_nothing(bad):
  plan, batch = two_features(0)
  stored = tables.create(plan, jax.random.key(0))

  @jax.jit
  def read(batch):
    plans = tables.row_plans(plan, batch)
    rows = tables.read_rows(stored, {name: found.rows for name, found in plans.items()})
    return tables.embed(plan, rows, plans, batch)

  whole = read(batch)
  assert all(np.isfinite(found).all() for found in whole.values())
  real = np.flatnonzero(batch.weights > 0)[0]
  padding = np.flatnonzero(batch.weights == 0)[0]
  values = batch.ids["a"].values.copy()
  values[[real, padding]] = bad
  found = read(batch.replace(ids={**batch.ids, "a": IdBags.single(values)}))
  assert np.flatnonzero(np.isnan(found["a"]).all(1)).tolist() == [real]
  for name in ("b", "b2", "c"):
    np.testing.assert_array_equal(found[name], whole[name])


@pytest.mark.parametrize("bad", [9, -2, 2**31 - 1])
def test_an_id_out_of_range_in_a_sequence_that_only_jit_sees_reads_as_nan(bad):
  history = FeatureConfig("history", TableConfig("item", 9, 4), combiner="none", ids_per_bag=3)
  plan = plan_tables([history])
  stored = tables.create(plan, jax.random.key(0))

  @jax.jit
  def read(values, weights):
    batch = Batch(
      dense=jnp.zeros((3, 0)),
      ids={"history": IdBags(values=values, row_splits=jnp.array([0, 2, 2, 3], jnp.int32))},
      labels={},
      weights=weights,
    )
    plans = tables.row_plans(plan, batch)
    rows = tables.read_rows(stored, {name: found.rows for name, found in plans.items()})
    return tables.embed(plan, rows, plans, batch)["history"].embeddings()

  table = np.asarray(stored.table("item"))
  fine = read(jnp.array([4, 2, 4], jnp.int32), jnp.ones(3))
  expected = np.zeros((3, 3, 4), np.float32)
  expected[0, :2], expected[2, 0] = table[[4, 2]], table[4]
  np.testing.assert_array_equal(fine, expected)
  assert np.isnan(read(jnp.array([4, bad, 4], jnp.int32), jnp.ones(3))[0, 0]).all()
  unweighed = read(jnp.array([bad, bad, 4], jnp.int32), jnp.array([0.0, 1, 1]))
  np.testing.assert_array_equal(unweighed[2, 0], table[4])
