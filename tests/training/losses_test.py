"""Binary cross-entropy against float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.training import losses

pytestmark = pytest.mark.usefixtures("strict_promotion")


def oracle_losses(logits, labels):
  """-y log(p) - (1 - y) log(1 - p) in float64, with 1 - p = sigmoid(-logit)."""
  x, y = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
  return y * np.logaddexp(0, -x) + (1 - y) * np.logaddexp(0, x)


def oracle_sigmoid(logits):
  return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def examples(seed=0, count=64):
  rng = np.random.default_rng(seed)
  logits = rng.normal(scale=4, size=count).astype(np.float32)
  labels = rng.integers(0, 2, count).astype(np.float32)
  weights = rng.integers(0, 4, count).astype(np.float32)
  assert (weights == 0).any() and 0 < labels.mean() < 1
  return jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights)


def test_each_loss_is_accurate_in_both_tails():
  x = np.float32([-80, -20, -3, -0.1, 0, 0.1, 3, 20, 80])
  logits, labels = np.repeat(x, 2), np.tile(np.float32([0, 1]), len(x))
  actual = losses.sigmoid_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
  np.testing.assert_allclose(actual, oracle_losses(logits, labels), rtol=1e-6)
  assert actual.dtype == jnp.float32


def test_fractional_labels_interpolate_between_the_classes():
  logits = jnp.array([1.5, -2.0], jnp.float32)
  actual = losses.sigmoid_cross_entropy(logits, jnp.array([0.25, 0.5], jnp.float32))
  np.testing.assert_allclose(actual, oracle_losses(logits, [0.25, 0.5]), rtol=1e-6)


def test_the_mean_is_weighted_and_ignores_padding():
  logits, labels, weights = examples()
  expected = np.average(oracle_losses(logits, labels), weights=weights)
  actual = losses.binary_cross_entropy(logits, labels, weights)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  moved = jnp.where(weights == 0, 50.0, logits)
  assert losses.binary_cross_entropy(moved, labels, weights) == actual


def test_without_weights_every_example_counts_once():
  logits, labels, _ = examples()
  actual = losses.binary_cross_entropy(logits, labels)
  np.testing.assert_allclose(actual, oracle_losses(logits, labels).mean(), rtol=1e-6)
  total = losses.binary_cross_entropy_sum(logits, labels)
  np.testing.assert_allclose(total, oracle_losses(logits, labels).sum(), rtol=1e-6)


def test_the_gradient_is_prediction_minus_label_over_total_weight():
  logits, labels, weights = examples()
  logits = logits.at[0].set(0.0)  # where max and abs have their kinks
  weights = weights.at[0].set(1.0)
  expected = weights * (oracle_sigmoid(logits) - labels) / weights.sum()
  gradient = jax.jit(jax.grad(losses.binary_cross_entropy))(logits, labels, weights)
  np.testing.assert_allclose(gradient, expected, rtol=2e-6, atol=1e-9)


def test_a_batch_of_padding_has_loss_zero_and_gradient_zero():
  logits, labels, weights = examples()
  loss, gradient = jax.value_and_grad(losses.binary_cross_entropy)(logits, labels, 0 * weights)
  assert loss == 0
  np.testing.assert_array_equal(gradient, np.zeros(len(logits)))


def test_parts_of_a_batch_add_up_to_its_mean():
  logits, labels, weights = examples()
  parts = [
    losses.binary_cross_entropy_sum(logits[part], labels[part], weights[part])
    for part in (slice(0, 20), slice(20, 64))
  ]
  whole = losses.binary_cross_entropy(logits, labels, weights)
  np.testing.assert_allclose(sum(parts) / weights.sum(), whole, rtol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
  logits, labels, weights = examples()
  logits = logits.astype(jnp.bfloat16)
  actual = losses.binary_cross_entropy(logits, labels, weights)
  assert actual.dtype == jnp.float32
  expected = np.average(oracle_losses(logits.astype(jnp.float32), labels), weights=weights)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("what", ["labels", "weights"])
def test_shapes_that_would_broadcast_are_refused(what):
  arrays = {"labels": jnp.zeros(4), "weights": jnp.ones(4)} | {what: jnp.ones((4, 1))}
  with pytest.raises(ValueError, match=rf"{what} have shape \(4, 1\), logits \(4,\)"):
    losses.binary_cross_entropy(jnp.zeros(4), **arrays)


def test_clamping_bounds_the_probability_the_loss_and_the_gradient():
  logits = jnp.array([-30.0, -1.0, 2.0, 30.0], jnp.float32)
  labels = jnp.array([1.0, 0.0, 1.0, 0.0], jnp.float32)

  def loss_fn(logits):
    return losses.sigmoid_cross_entropy(losses.clamp_logits(logits, 0.01), labels).sum()

  expected = np.clip(oracle_sigmoid(logits), 0.01, 0.99)
  np.testing.assert_allclose(jax.nn.sigmoid(losses.clamp_logits(logits, 0.01)), expected, rtol=1e-6)
  per_example = -np.log(np.where(np.asarray(labels) == 1, expected, 1 - expected))
  np.testing.assert_allclose(loss_fn(logits), per_example.sum(), rtol=1e-6)
  gradient = jax.grad(loss_fn)(logits)
  np.testing.assert_array_equal(gradient[np.array([0, 3])], [0, 0])
  np.testing.assert_allclose(gradient[1:3], (oracle_sigmoid(logits) - labels)[1:3], rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.5, -1.0, float("nan")])
def test_a_threshold_that_is_no_least_probability_is_refused(threshold):
  with pytest.raises(ValueError, match=r"threshold must lie in \(0, 0.5\), got"):
    losses.clamp_logits(jnp.zeros(1), threshold)


def several(num_labels=3):
  rng = np.random.default_rng(7)
  logits = rng.normal(scale=3, size=(64, num_labels)).astype(np.float32)
  labels = (rng.random((64, num_labels)) < 0.3).astype(np.float32)
  weights = rng.integers(0, 3, 64).astype(np.float32)
  assert 0 < (labels.max(axis=1) == 0).mean() < 1
  return logits, labels, weights


def test_the_loss_of_one_label_without_options_is_the_plain_sum_bit_for_bit():
  logits, labels, weights = examples()
  plain = jax.jit(jax.value_and_grad(losses.binary_cross_entropy_sum))(logits, labels, weights)
  ours = jax.jit(jax.value_and_grad(losses.ClickLoss()))(logits, labels, weights)
  jax.tree.map(np.testing.assert_array_equal, ours, plain)


def test_the_losses_of_several_labels_are_added_each_with_its_weight():
  logits, labels, weights = several()
  label_weights = (1.0, 0.25, 2.0)
  expected = (oracle_losses(logits, labels) * weights[:, None] * label_weights).sum()
  loss = losses.ClickLoss(label_weights=label_weights)
  np.testing.assert_allclose(loss(logits, labels, weights), expected, rtol=1e-6)
  equal = losses.ClickLoss()(logits, labels, weights)
  np.testing.assert_allclose(
    equal, (oracle_losses(logits, labels) * weights[:, None]).sum(), rtol=1e-6
  )


def test_the_loss_of_a_positive_is_scaled_and_of_a_fraction_in_proportion():
  logits, labels, weights = examples()
  labels = labels.at[0].set(0.25)
  x, y = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
  expected = 5 * y * np.logaddexp(0, -x) + (1 - y) * np.logaddexp(0, x)
  actual = losses.ClickLoss(positive_weight=5.0)(logits, labels, weights)
  np.testing.assert_allclose(actual, (weights * expected).sum(), rtol=1e-6)


def test_the_offset_shifts_the_logits_that_are_trained():
  logits, labels, weights = examples()
  loss = losses.ClickLoss(logit_offset=2.5)
  expected = (np.asarray(weights) * oracle_losses(np.float64(logits) + 2.5, labels)).sum()
  np.testing.assert_allclose(loss(logits, labels, weights), expected, rtol=1e-6)
  np.testing.assert_array_equal(loss.trained_logits(logits), logits + jnp.float32(2.5))


def test_examples_with_any_positive_label_are_weighted_for_all_their_labels():
  logits, labels, weights = several()
  factors = np.where(labels.any(axis=1), 0.1, 1.0)
  expected = (oracle_losses(logits, labels) * (weights * factors)[:, None]).sum()
  actual = losses.ClickLoss(any_positive_weight=0.1)(logits, labels, weights)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_labels_and_weights_that_do_not_fit_the_logits_are_refused():
  logits, labels, weights = several()
  with pytest.raises(
    ValueError, match=r"labels have shape \(64, 3\), logits \(64,\).*top_mlp ends"
  ):
    losses.ClickLoss()(logits[:, 0], labels, weights)
  with pytest.raises(ValueError, match=r"one for each of the 3 labels, got \(1.0, 2.0\)"):
    losses.ClickLoss(label_weights=(1.0, 2.0))(logits, labels, weights)
