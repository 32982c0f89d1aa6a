from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.layers import cross
from tests.layers import oracles

RANKS = pytest.mark.parametrize("rank", [2, None])


def random_case(rank: int | None, num_layers: int = 3, width: int = 5):
  module = cross.LowRankCross(num_layers, rank)
  x0 = np.random.default_rng(1).normal(size=(4, width)).astype(np.float32)
  params = jax.eval_shape(module.init, jax.random.key(0), x0)["params"]
  return module, jax.tree.map(lambda p: 0.5 * p, oracles.random_like(params)), x0


@RANKS
def test_output_and_all_gradients_equal_float64_numpy(strict_promotion, rank):
  _, params, x0 = random_case(rank)
  weights = np.random.default_rng(2).normal(size=x0.shape).astype(np.float32)
  oracles.assert_close(
    cross.low_rank_cross(params, x0), oracles.cross(*oracles.to_float64((params, x0)))
  )
  grads = jax.jit(
    jax.grad(lambda p, x: jnp.sum(weights * cross.low_rank_cross(p, x)), argnums=(0, 1))
  )(params, x0)
  oracles.assert_close(
    grads,
    oracles.numeric_grad(lambda t: float(np.sum(weights * oracles.cross(*t))), (params, x0)),
  )


@RANKS
def test_the_module_is_the_plain_function(rank):
  module, params, x0 = random_case(rank)
  np.testing.assert_array_equal(
    module.apply({"params": params}, x0), cross.low_rank_cross(params, x0)
  )


def test_one_layer_is_the_formula_in_numbers():
  params = {
    "v_kernel": jnp.array([[1.0], [2.0]]),
    "w_kernel": jnp.array([[3.0, 4.0]]),
    "bias": jnp.array([5.0, 6.0]),
  }
  x0, x = jnp.array([[1.0, 10.0]]), jnp.array([[1.0, 1.0]])  # V x = 3, W V x = (9, 12)
  assert cross.cross_layer(params, x0, x).tolist() == [[1 * 14 + 1, 10 * 18 + 1]]


def test_full_rank_contains_low_rank():
  _, params, x0 = random_case(2)
  full = {
    name: {"kernel": layer["v_kernel"] @ layer["w_kernel"], "bias": layer["bias"]}
    for name, layer in params.items()
  }
  np.testing.assert_allclose(
    cross.low_rank_cross(full, x0), cross.low_rank_cross(params, x0), rtol=1e-5, atol=1e-5
  )


def test_matrices_begin_xavier_normal_and_biases_at_zero():
  low = cross.init_cross_layer(jax.random.key(0), 400, 100)
  full = cross.init_cross_layer(jax.random.key(0), 300, None)
  for kernel, fans in [
    (low["v_kernel"], (400, 100)),
    (low["w_kernel"], (100, 400)),
    (full["kernel"], (300, 300)),
  ]:
    assert kernel.shape == fans
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / sum(fans)), rtol=0.02)
    assert np.abs(kernel).max() > 3.5 * np.std(kernel)
  assert not np.array_equal(low["v_kernel"], low["w_kernel"].T)
  assert not low["bias"].any()
  assert not full["bias"].any()


@RANKS
def test_the_number_of_parameters_is_as_the_rank_says(rank):
  _, params, _ = random_case(rank, num_layers=2, width=7)
  per_layer = 7 * 7 + 7 if rank is None else 2 * 7 * 2 + 7
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2 * per_layer


def test_bfloat16_computes_in_bfloat16_with_float32_parameters(strict_promotion):
  _, params, x0 = random_case(2)
  module = cross.LowRankCross(3, 2, dtype=jnp.bfloat16)
  first = jax.eval_shape(module.init, jax.random.key(0), x0)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(first))
  y = module.apply({"params": params}, x0)
  assert y.dtype == jnp.bfloat16
  oracles.assert_close(y, oracles.cross(*oracles.to_float64((params, x0))), tolerance=0.05)
