"""Wide & Deep against float64 NumPy; one loss for both parts (law W3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import layers, models
from tests.layers import oracles
from tests.models import cases

WIDE = ("wide/b", "wide/a")


def widths(num_logits: int):
  return (("b", 3), ("a", 2), ("wide/b", num_logits), ("wide/a", num_logits))


def expected_wide(embeddings):
  return embeddings["wide/b"] + embeddings["wide/a"]


def expected_logits(params, dense, embeddings):
  inputs = np.concatenate([dense, embeddings["b"], embeddings["a"]], axis=1)
  return oracles.mlp(params["deep"], inputs, activate_last=False) + expected_wide(embeddings)


@pytest.mark.parametrize("num_dense", [4, 0])
@pytest.mark.parametrize("num_logits", [1, 3])
def test_logits_and_all_gradients_equal_float64_numpy(strict_promotion, num_dense, num_logits):
  model = models.WideDeep(WIDE, (6, 5, num_logits))
  case = cases.random_case(model, num_dense=num_dense, widths=widths(num_logits))
  assert set(case[0]) == {"deep"}
  cases.check_logits_and_gradients(model, case, expected_logits)


@pytest.mark.parametrize("num_logits", [1, 2])
def test_the_wide_part_alone_is_a_sum_and_a_bias(strict_promotion, num_logits):
  model = models.WideDeep(WIDE, ())
  case = cases.random_case(
    model, widths=(("wide/b", num_logits), ("wide/a", num_logits)), num_dense=0
  )
  assert {name: np.shape(value) for name, value in case[0].items()} == {"bias": (num_logits,)}
  cases.check_logits_and_gradients(
    model, case, lambda params, dense, embeddings: params["bias"] + expected_wide(embeddings)
  )


def test_the_deep_part_alone_is_an_mlp(strict_promotion):
  model = models.WideDeep((), (6, 1))
  case = cases.random_case(model, widths=(("b", 3), ("a", 2)))

  def expected(params, dense, embeddings):
    inputs = np.concatenate([dense, embeddings["b"], embeddings["a"]], axis=1)
    return oracles.mlp(params["deep"], inputs, activate_last=False)

  cases.check_logits_and_gradients(model, case, expected)


def _gradients(model, params, dense, embeddings, labels):
  def loss(params, embeddings):
    logits = model.apply({"params": params}, dense, embeddings)
    return optax.sigmoid_binary_cross_entropy(logits, labels).sum(), logits

  (_, logits), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, embeddings)
  return logits, grads


def test_both_parts_have_the_gradient_of_the_one_logit():
  """Law W3: joint training is no ensemble."""
  model = models.WideDeep(WIDE, (6, 1))
  params, dense, embeddings = cases.random_case(model, widths=widths(1))
  labels = jnp.array([0.0, 1, 1, 0, 1])
  logits, (grads, rows) = _gradients(model, params, dense, embeddings, labels)
  shared = jax.nn.sigmoid(logits) - labels  # of the sum of losses by the logit
  for name in WIDE:
    np.testing.assert_allclose(rows[name][:, 0], shared, atol=1e-6)
  # The last layer's bias adds to the logit as a weight does.
  np.testing.assert_allclose(grads["deep"]["layer_1"]["bias"][0], shared.sum(), rtol=1e-5)
  without_wide = {name: jnp.zeros_like(x) if name in WIDE else x for name, x in embeddings.items()}
  _, (other, _) = _gradients(model, params, dense, without_wide, labels)
  for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(other), strict=True):
    assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() > 1e-3
  silent = jax.tree.map(jnp.zeros_like, params)
  _, (_, alone) = _gradients(model, silent, dense, embeddings, labels)
  assert np.abs(np.asarray(alone["wide/a"]) - np.asarray(rows["wide/a"])).max() > 1e-3


@pytest.mark.parametrize(
  ("wide", "deep_mlp", "embeddings", "message"),
  [
    (("w",), (4, 1), {"w": (2, 2), "a": (2, 3)}, r"wide feature 'w': expected weights \[B, 1\]"),
    ((), (), {"a": (2, 3)}, "wide part: no weights to add"),
    (("w",), (4, 1), {"w": (2, 1)}, "deep part: nothing to read"),
    (
      ("w",),
      (4, 1),
      {"w": (2, 1), "a": (2, 5, 3)},
      r"embedding 'a': expected \[B, D\].*pool a seq",
    ),
  ],
)
def test_what_does_not_fit_is_named(wide, deep_mlp, embeddings, message):
  arrays = {name: jnp.zeros(shape) for name, shape in embeddings.items()}
  with pytest.raises(ValueError, match=message):
    models.WideDeep(wide, deep_mlp).init(jax.random.key(0), jnp.zeros((2, 0)), arrays)


def test_weights_add_up_in_one_order_whatever_the_dicts():
  rng = np.random.default_rng(0)
  weights = {name: rng.normal(size=(7, 1)).astype(np.float32) for name in "cab"}
  total = layers.wide_logits(weights)
  again = layers.wide_logits({name: weights[name] for name in "bca"})
  np.testing.assert_array_equal(total, again)


def test_it_computes_in_bfloat16_with_float32_logits():
  model = models.WideDeep(WIDE, (6, 1), dtype=jnp.bfloat16)
  params, dense, embeddings = cases.random_case(model, widths=widths(1))
  logits = model.apply({"params": params}, dense, embeddings)
  exact = models.WideDeep(WIDE, (6, 1)).apply({"params": params}, dense, embeddings)
  assert logits.dtype == jnp.float32 and params["deep"]["layer_0"]["kernel"].dtype == jnp.float32
  assert 0 < np.abs(np.asarray(logits - exact)).max() < 0.2
