from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.layers import mlp
from tests.layers import oracles


def random_case(widths: tuple[int, ...], num_inputs: int = 4, batch_size: int = 6):
  module = mlp.MLP(widths, activate_last=False)
  x = np.random.default_rng(1).normal(size=(batch_size, num_inputs)).astype(np.float32)
  params = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
  return oracles.random_like(params), x


@pytest.mark.parametrize("activate_last", [False, True])
def test_output_and_all_gradients_equal_float64_numpy(strict_promotion, activate_last):
  params, x = random_case((5, 4, 3))
  weights = np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32)

  def loss_fn(params, x):
    return jnp.sum(weights * mlp.apply_mlp(params, x, activate_last=activate_last))

  def expected_loss(tree):
    return float(np.sum(weights * oracles.mlp(*tree, activate_last=activate_last)))

  expected = oracles.mlp(*oracles.to_float64((params, x)), activate_last=activate_last)
  assert (expected == 0).any() == activate_last  # ReLU is at work, or is not
  oracles.assert_close(mlp.apply_mlp(params, x, activate_last=activate_last), expected)
  grads = jax.jit(jax.grad(loss_fn, argnums=(0, 1)))(params, x)
  oracles.assert_close(grads, oracles.numeric_grad(expected_loss, (params, x)))


@pytest.mark.parametrize("activate_last", [False, True])
def test_the_module_is_the_plain_function(activate_last):
  params, x = random_case((5, 3))
  module = mlp.MLP((5, 3), activate_last=activate_last)
  np.testing.assert_array_equal(
    module.apply({"params": params}, x), mlp.apply_mlp(params, x, activate_last=activate_last)
  )


def test_dense_is_an_affine_map_over_any_leading_axes():
  params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.array([10.0, 20.0])}
  x = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
  assert mlp.dense(params, x).tolist() == [[[11.0, 22.0], [13.0, 24.0]]]


def test_more_than_ten_layers_run_in_their_own_order():
  widths = tuple(range(2, 14))
  params, x = random_case(widths)
  assert params["layer_11"]["kernel"].shape == (12, 13)
  expected = oracles.mlp(*oracles.to_float64((params, x)), activate_last=False)
  oracles.assert_close(jax.jit(mlp.apply_mlp)(params, x), expected)


def test_first_parameters_have_the_deviations_of_dlrm():
  n, m = 300, 500
  params = mlp.init_dense(jax.random.key(0), n, m)
  kernel = np.asarray(params["kernel"])
  assert kernel.shape == (n, m)
  np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (m + n)), rtol=0.01)
  assert np.abs(kernel).max() > 3.5 * kernel.std()  # normal, not cut off at two deviations
  keys = jax.random.split(jax.random.key(1), 20)
  biases = jax.vmap(lambda key: mlp.init_dense(key, 1, m)["bias"])(keys)
  np.testing.assert_allclose(biases.std(), np.sqrt(1 / m), rtol=0.03)


def test_layers_of_one_shape_begin_differently():
  module = mlp.MLP((3, 3, 3), activate_last=False)
  params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 3)))
  kernels = [layer["kernel"] for layer in params["params"].values()]
  assert not np.array_equal(kernels[0], kernels[1])
  assert not np.array_equal(kernels[1], kernels[2])


def test_bfloat16_computes_in_bfloat16_with_float32_parameters(strict_promotion):
  module = mlp.MLP((5, 3), activate_last=False, dtype=jnp.bfloat16)
  params, x = random_case((5, 3))
  first = jax.eval_shape(module.init, jax.random.key(0), x)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(first))
  y = module.apply({"params": params}, x)
  assert y.dtype == jnp.bfloat16
  exact = oracles.mlp(*oracles.to_float64((params, x)), activate_last=False)
  oracles.assert_close(y, exact, tolerance=0.03)
  assert np.abs(np.asarray(y, np.float64) - exact).max() > 1e-4


def dropped(module, params, x, seed=0):
  return module.apply({"params": params}, x, rngs={"dropout": jax.random.key(seed)})


def test_dropout_is_on_exactly_when_there_is_a_key_for_it():
  params, x = random_case((50, 50, 3))
  module = mlp.MLP((50, 50, 3), activate_last=False, dropout=0.5)
  plain = mlp.apply_mlp(params, x, activate_last=False)
  np.testing.assert_array_equal(module.apply({"params": params}, x), plain)
  assert (np.asarray(dropped(module, params, x)) != np.asarray(plain)).mean() > 0.5
  np.testing.assert_array_equal(dropped(module, params, x), dropped(module, params, x))
  assert (np.asarray(dropped(module, params, x, 1)) != np.asarray(dropped(module, params, x))).any()
  off = mlp.MLP((50, 50, 3), activate_last=False)
  np.testing.assert_array_equal(dropped(off, params, x), plain)
  assert jax.tree.structure(module.init(jax.random.key(0), x)) == jax.tree.structure(
    off.init(jax.random.key(0), x)
  )


@pytest.mark.parametrize("activate_last", [False, True])
def test_dropout_zeroes_its_share_of_hidden_units_alone_and_keeps_their_mean(activate_last):
  """Layers of the identity hand on ones, so the result is the product of the layers' masks."""
  identity = {"kernel": jnp.eye(400), "bias": jnp.zeros(400)}
  params = {f"layer_{i}": identity for i in range(3)}
  module = mlp.MLP((400,) * 3, activate_last=activate_last, dropout=0.25)
  values = np.asarray(dropped(module, params, jnp.ones((50, 400))))
  kept = (1 / 0.75) ** 2  # two of the three layers are hidden, each with a mask of its own
  assert np.allclose(values[values != 0], kept)
  assert np.mean(values != 0) == pytest.approx(0.75**2, abs=0.01)
  assert values.mean() == pytest.approx(1.0, abs=0.02)
