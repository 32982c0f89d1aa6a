from __future__ import annotations

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxrec.layers import pooling
from tests.layers import oracles

COMBINERS = pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
WEIGHTED = pytest.mark.parametrize("is_weighted", [False, True])
# One batch size and one capacity, so that examples share their compiled programs.
LENGTHS = st.lists(st.integers(0, 4), min_size=5, max_size=5)
CAPACITY = 20

jitted_pool = jax.jit(pooling.pool, static_argnums=2, static_argnames="combiner")
jitted_to_sequence = jax.jit(pooling.to_sequence, static_argnums=3)


def bags_of(lengths: list[int], num_padding: int, embedding_dim: int = 3, seed: int = 0):
  """Rows, bag ids and weights of bags end to end; padding holds garbage, as nothing may read it."""
  rng = np.random.default_rng(seed)
  count = sum(lengths)
  rows = rng.normal(size=(count + num_padding, embedding_dim)).astype(np.float32)
  weights = rng.uniform(0.5, 2, size=count + num_padding).astype(np.float32)
  rows[count:] = weights[count:] = 1e9
  bag_ids = np.concatenate(
    [np.repeat(np.arange(len(lengths)), lengths), np.full(num_padding, len(lengths))]
  )
  return rows, bag_ids.astype(np.int32), weights


def expected_pool(rows, bag_ids, batch_size, combiner, weights):
  pooled = np.zeros((batch_size, rows.shape[1]))
  for b in range(batch_size):
    total, weight_sum, square_sum = np.zeros(rows.shape[1]), 0.0, 0.0
    for n in np.flatnonzero(bag_ids == b):
      w = 1.0 if weights is None else weights[n]
      total, weight_sum, square_sum = total + w * rows[n], weight_sum + w, square_sum + w * w
    divisor = {"sum": 1.0, "mean": weight_sum, "sqrtn": square_sum**0.5}[combiner]
    pooled[b] = total / divisor if divisor else 0.0
  return pooled


@hypothesis.given(
  lengths=LENGTHS,
  combiner=st.sampled_from(["sum", "mean", "sqrtn"]),
  is_weighted=st.booleans(),
  is_shuffled=st.booleans(),
)
def test_pooling_equals_a_loop_over_the_bags(lengths, combiner, is_weighted, is_shuffled):
  rows, bag_ids, weights = bags_of(lengths, num_padding=CAPACITY - sum(lengths))
  if is_shuffled:
    order = np.random.default_rng(1).permutation(len(rows))
    rows, bag_ids, weights = rows[order], bag_ids[order], weights[order]
  weights = weights if is_weighted else None
  with jax.numpy_dtype_promotion("strict"):
    pooled = jitted_pool(rows, bag_ids, len(lengths), combiner=combiner, weights=weights)
  expected = expected_pool(
    *oracles.to_float64((rows, bag_ids)), len(lengths), combiner, oracles.to_float64(weights)
  )
  oracles.assert_close(pooled, expected)


@COMBINERS
@WEIGHTED
def test_gradients_equal_float64_numpy_with_empty_bags_and_padding(combiner, is_weighted):
  rows, bag_ids, weights = bags_of([2, 0, 3, 0, 1], num_padding=2)
  factors = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
  inputs = (rows, weights if is_weighted else None)

  def loss_fn(inputs):
    rows, weights = inputs
    return jnp.sum(factors * pooling.pool(rows, bag_ids, 5, combiner=combiner, weights=weights))

  def expected_loss(inputs):
    rows, weights = inputs
    return float(np.sum(factors * expected_pool(rows, bag_ids, 5, combiner, weights)))

  grads = jax.jit(jax.grad(loss_fn))(inputs)
  oracles.assert_close(grads, oracles.numeric_grad(expected_loss, inputs))
  assert not any(np.asarray(grad)[6:].any() for grad in jax.tree.leaves(grads))


@COMBINERS
@WEIGHTED
def test_empty_bags_give_zeros_and_finite_gradients(combiner, is_weighted):
  rows, bag_ids = jnp.ones((2, 3)), jnp.array([3, 3])
  weights = jnp.ones(2) if is_weighted else None

  def total(rows, weights):
    return jnp.sum(pooling.pool(rows, bag_ids, 3, combiner=combiner, weights=weights))

  assert not pooling.pool(rows, bag_ids, 3, combiner=combiner, weights=weights).any()
  grads = jax.jit(jax.grad(total, argnums=(0, 1) if is_weighted else (0,)))(rows, weights)
  assert all(not grad.any() for grad in grads)


@pytest.mark.parametrize(
  ("combiner", "weights"), [("mean", [0.0, 0.0]), ("mean", [1.0, -1.0]), ("sqrtn", [0.0, 0.0])]
)
def test_a_bag_whose_denominator_is_zero_gives_zeros_and_finite_gradients(combiner, weights):
  rows = jnp.array([[1.0], [5.0]])

  def total(weights):
    return jnp.sum(pooling.pool(rows, jnp.zeros(2, int), 1, combiner=combiner, weights=weights))

  assert total(jnp.array(weights)) == 0
  assert np.isfinite(jax.grad(total)(jnp.array(weights))).all()


def test_weighted_combiners_are_tensorflows():
  rows, bag_ids, weights = jnp.array([[1.0], [2.0]]), jnp.array([0, 0]), jnp.array([3.0, 4.0])
  pool = functools.partial(pooling.pool, rows, bag_ids, 1, weights=weights)
  assert pool(combiner="sum").tolist() == [[11.0]]
  assert pool(combiner="mean").tolist() == [[pytest.approx(11 / 7)]]
  assert pool(combiner="sqrtn").tolist() == [[pytest.approx(11 / 5)]]


def test_an_unknown_combiner_is_refused_by_name():
  with pytest.raises(ValueError, match=r"one of \('sum', 'mean', 'sqrtn'\), got 'none'.*to_sequen"):
    pooling.pool(jnp.zeros((1, 1)), jnp.zeros(1, int), 1, combiner="none")


@hypothesis.given(lengths=LENGTHS, max_length=st.sampled_from([1, 3, 5]))
def test_a_sequence_holds_each_bag_from_its_start(lengths, max_length):
  rows, bag_ids, _ = bags_of(lengths, num_padding=CAPACITY - sum(lengths))
  row_splits = np.cumsum([0, *lengths]).astype(np.int32)
  expected = np.zeros((len(lengths), max_length, 3))
  for b, length in enumerate(lengths):
    for step in range(min(length, max_length)):
      expected[b, step] = rows[row_splits[b] + step]
  with jax.numpy_dtype_promotion("strict"):
    sequence, mask = jitted_to_sequence(rows, bag_ids, row_splits, max_length)
  np.testing.assert_array_equal(sequence, expected)
  assert mask.dtype == bool
  np.testing.assert_array_equal(mask, np.arange(max_length) < np.array(lengths)[:, None])


def test_a_sequences_gradient_returns_to_the_rows_it_came_from():
  rows, bag_ids, _ = bags_of([2, 0, 3], num_padding=1)
  row_splits = jnp.array([0, 2, 2, 5])
  factors = np.random.default_rng(1).normal(size=(3, 2, 3)).astype(np.float32)

  def loss_fn(rows):
    return jnp.sum(factors * pooling.to_sequence(rows, bag_ids, row_splits, 2)[0])

  none = np.zeros(3)
  expected = [factors[0, 0], factors[0, 1], factors[2, 0], factors[2, 1], none, none]
  np.testing.assert_array_equal(jax.grad(loss_fn)(rows), expected)
