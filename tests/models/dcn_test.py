from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import models
from tests.layers import oracles
from tests.models import cases


def expected_logits(params, dense, embeddings):
  x0 = np.concatenate(cases.expected_vectors(params, dense, embeddings), axis=1)
  crosses = oracles.cross(params["cross"], x0)
  return oracles.mlp(params["top"], crosses, activate_last=False)


def check(model, **kwargs):
  params, *inputs = cases.random_case(model, **kwargs)
  # Each cross layer multiplies: parameters of one half keep the logits within float32's digits.
  params = jax.tree.map(lambda leaf: 0.5 * leaf, params)
  cases.check_logits_and_gradients(model, (params, *inputs), expected_logits)
  return params


@pytest.mark.parametrize("cross_rank", [2, None])
def test_logits_and_all_gradients_equal_float64_numpy(strict_promotion, cross_rank):
  params = check(models.DLRMDCNv2((5, cases.WIDTH), (6, 1), cross_layers=2, cross_rank=cross_rank))
  assert set(params) == {"bottom", "cross", "top"}
  assert set(params["cross"]) == {"layer_0", "layer_1"}


def test_embeddings_of_another_width_are_projected(strict_promotion):
  model = models.DLRMDCNv2((5, cases.WIDTH), (6, 1), cross_layers=2, cross_rank=2)
  params = check(model, widths=(("b", 1), ("a", 3)))
  assert params["cross"]["layer_0"]["v_kernel"].shape == (3 * cases.WIDTH, 2)


def test_without_dense_inputs_the_embeddings_cross_alone(strict_promotion):
  model = models.DLRMDCNv2((), (6, 2), cross_layers=2, cross_rank=2)
  assert set(check(model, num_dense=0, widths=(("b", 3),))) == {"cross", "top"}


def test_mlperf_has_the_benchmarks_number_of_parameters():
  model = models.DLRMDCNv2((512, 256, 128), (1024, 1024, 512, 256, 1))
  dense = jax.ShapeDtypeStruct((2, 13), jnp.float32)
  embeddings = {f"c{i}": jax.ShapeDtypeStruct((2, 128), jnp.float32) for i in range(26)}
  variables = jax.eval_shape(model.init, jax.random.key(0), dense, embeddings)

  def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

  assert {name: count(part) for name, part in variables["params"].items()} == {
    "bottom": 171_392,
    "cross": 10_627_200,
    "top": 5_245_953,
  }
  assert count(variables) == 16_044_545


def test_a_bottom_that_does_not_fit_the_embeddings_is_refused():
  with pytest.raises(ValueError, match=r"bottom_mlp ends in 3.*embedding_dim is 8 \(user\)"):
    models.DLRMDCNv2((5, 3), (6, 1)).init(
      jax.random.key(0), jnp.zeros((2, 4)), {"user": jnp.zeros((2, 8))}
    )
