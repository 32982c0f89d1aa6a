from __future__ import annotations

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import models
from tests.layers import oracles
from tests.models import cases


def expected_logits(params, dense, embeddings, *, self_interaction=False):
  vectors = cases.expected_vectors(params, dense, embeddings)
  inputs = [oracles.dots(vectors, self_interaction=self_interaction)]
  if dense.shape[1]:
    inputs.insert(0, vectors[0])
  return oracles.mlp(params["top"], np.concatenate(inputs, axis=1), activate_last=False)


@pytest.mark.parametrize("self_interaction", [False, True])
def test_logits_and_all_gradients_equal_float64_numpy(strict_promotion, self_interaction):
  model = models.DLRM((5, cases.WIDTH), (6, 1), self_interaction=self_interaction)
  cases.check_logits_and_gradients(
    model,
    cases.random_case(model),
    lambda *inputs: expected_logits(*inputs, self_interaction=self_interaction),
  )


def test_embeddings_of_another_width_are_projected_without_bias(strict_promotion):
  model = models.DLRM((5, cases.WIDTH), (6, 1))
  case = cases.random_case(model, widths=(("b", 1), ("a", 3), ("c", 5)))
  shapes = jax.tree.map(np.shape, {k: v for k, v in case[0].items() if k.startswith("proj")})
  assert shapes == {"proj_b": {"kernel": (1, 3)}, "proj_c": {"kernel": (5, 3)}}
  cases.check_logits_and_gradients(model, case, expected_logits)


@pytest.mark.parametrize("bottom_mlp", [(), (5, cases.WIDTH)])
def test_without_dense_inputs_the_embeddings_interact_alone(strict_promotion, bottom_mlp):
  model = models.DLRM(bottom_mlp, (6, 1))
  case = cases.random_case(model, num_dense=0)
  assert set(case[0]) == {"top"}
  assert case[0]["top"]["layer_0"]["kernel"].shape == (3, 6)
  cases.check_logits_and_gradients(model, case, expected_logits)


def test_several_logits_keep_their_axis(strict_promotion):
  model = models.DLRM((5, cases.WIDTH), (6, 2))
  cases.check_logits_and_gradients(model, cases.random_case(model), expected_logits)


def test_the_top_reads_the_dense_vector_then_the_pairs_in_order():
  """A linear top that picks one input at a time shows what stands at each place."""
  model = models.DLRM((cases.WIDTH,), (1,))
  params, dense, embeddings = cases.random_case(model)
  x = oracles.mlp(params["bottom"], dense, activate_last=True)
  vectors = [x, *embeddings.values()]
  pairs = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
  places = [*x.T, *((vectors[i] * vectors[j]).sum(axis=1) for i, j in pairs)]
  assert params["top"]["layer_0"]["kernel"].shape == (len(places), 1)
  apply = jax.jit(model.apply)
  for place, expected in enumerate(places):
    params["top"]["layer_0"] = {
      "kernel": np.eye(len(places), dtype=np.float32)[:, place : place + 1],
      "bias": np.zeros(1, np.float32),
    }
    oracles.assert_close(apply({"params": params}, dense, embeddings), expected)


def test_the_bottom_ends_in_relu():
  model = models.DLRM((cases.WIDTH,), (1,))
  params, dense, embeddings = cases.random_case(model)
  params["bottom"]["layer_0"]["bias"] -= 100
  params["top"]["layer_0"]["bias"][:] = 7
  silent = {name: np.zeros_like(embedding) for name, embedding in embeddings.items()}
  assert model.apply({"params": params}, dense, silent).tolist() == [7.0] * cases.BATCH_SIZE


@pytest.mark.parametrize(
  ("model", "num_dense"),
  [
    (models.DLRM((5, cases.WIDTH), (6, 1)), 4),
    (models.DLRMDCNv2((5, cases.WIDTH), (6, 1), cross_rank=2), 4),
    (models.DLRM((), (6, 1)), 0),
  ],
)
def test_a_plain_dict_means_the_same_in_any_order_inside_and_outside_jit(model, num_dense):
  params, dense, embeddings = cases.random_case(model, num_dense=num_dense)
  by_name = collections.OrderedDict(sorted(embeddings.items()))
  expected = model.apply({"params": params}, dense, by_name)
  for order in itertools.permutations(embeddings):
    shuffled = {name: embeddings[name] for name in order}
    outside = model.apply({"params": params}, dense, shuffled)
    inside = jax.jit(model.apply)({"params": params}, dense, shuffled)
    np.testing.assert_array_equal(outside, expected)
    np.testing.assert_allclose(inside, expected, rtol=1e-5, atol=1e-5)
  # The order given by an OrderedDict is kept, and is another model.
  inside, outside = (
    f({"params": params}, dense, embeddings) for f in (jax.jit(model.apply), model.apply)
  )
  np.testing.assert_allclose(inside, outside, rtol=1e-5, atol=1e-5)
  assert np.abs(outside - expected).max() > 0.01


@pytest.mark.parametrize(
  "make", [models.DLRM, lambda *mlps, **kw: models.DLRMDCNv2(*mlps, cross_rank=2, **kw)]
)
def test_bfloat16_computes_in_bfloat16_from_float32_to_float32(strict_promotion, make):
  model, exact_model = (
    make((5, cases.WIDTH), (6, 1), dtype=jnp.bfloat16),
    make((5, cases.WIDTH), (6, 1)),
  )
  params, dense, embeddings = cases.random_case(model, widths=(("b", 1), ("a", 3)))
  inputs = ({"params": params}, dense, embeddings)
  first = jax.eval_shape(model.init, jax.random.key(0), dense, embeddings)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(first))
  program = jax.jit(model.apply).lower(*inputs).as_text()
  products = [line for line in program.splitlines() if "dot_general" in line]
  assert len(products) >= 5
  assert all("bf16" in line and "f32" not in line for line in products)
  logits, exact = (jax.jit(m.apply)(*inputs) for m in (model, exact_model))
  assert logits.dtype == exact.dtype == jnp.float32
  oracles.assert_close(logits, np.asarray(exact), tolerance=0.05)
  assert not np.array_equal(logits, exact)
  grads = jax.eval_shape(
    jax.grad(lambda p: jnp.sum(model.apply({"params": p}, dense, embeddings))), params
  )
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(
  ("width", "bottom_mlp", "top_mlp"),
  [
    (16, (512, 256, 64, 16), (512, 256, 1)),
    (64, (512, 256, 64), (512, 512, 256, 1)),
    (128, (512, 256, 128), (1024, 1024, 512, 256, 1)),
  ],
  ids=["kaggle", "terabyte", "mlperf_v1"],
)
def test_presets_have_the_parameters_of_their_widths(width, bottom_mlp, top_mlp):
  dense = jax.ShapeDtypeStruct((2, 13), jnp.float32)
  embeddings = {f"c{i}": jax.ShapeDtypeStruct((2, width), jnp.float32) for i in range(26)}
  model = models.DLRM(bottom_mlp, top_mlp)
  variables = jax.eval_shape(model.init, jax.random.key(0), dense, embeddings)
  expected = 0
  for sizes in ((13, *bottom_mlp), (width + 27 * 26 // 2, *top_mlp)):
    expected += sum(n * m + m for n, m in itertools.pairwise(sizes))
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == expected
  logits = jax.eval_shape(model.apply, variables, dense, embeddings)
  assert (logits.shape, logits.dtype) == ((2,), jnp.float32)


def zeros(*shape: int) -> jax.Array:
  return jnp.zeros(shape)


MLPS = {"bottom_mlp": (5, 3), "top_mlp": (6, 1)}


@pytest.mark.parametrize(
  ("mlps", "dense", "embeddings", "message"),
  [
    (
      {},
      zeros(2, 4),
      {"user": zeros(2, 8), "item": zeros(2, 4)},
      r"bottom_mlp ends in 3, but no embedding is so wide: embedding_dim is 4, 8 \(item, user\)",
    ),
    ({"bottom_mlp": ()}, zeros(2, 4), {"user": zeros(2, 3)}, "bottom_mlp: expected.*4 dense"),
    ({"top_mlp": ()}, zeros(2, 4), {"user": zeros(2, 3)}, "top_mlp: expected the widths"),
    ({}, zeros(2), {"user": zeros(2, 3)}, r"dense: expected \[B, I\], got shape \(2,\)"),
    (
      {},
      zeros(2, 4),
      {"user": zeros(2, 3), "seen": zeros(2, 6, 3)},
      r"embedding 'seen': expected \[B, D\] with B = 2, got \(2, 6, 3\).*pool a sequence",
    ),
    (
      {},
      zeros(2, 4),
      {"user": zeros(2, 3), "seen": (zeros(2, 6, 3), zeros(2, 6))},
      "embedding 'seen'.*got tuple.*pool a sequence",
    ),
    ({}, zeros(2, 4), {"user": zeros(3, 3)}, r"embedding 'user'.*B = 2, got \(3, 3\)"),
    ({}, zeros(2, 0), {}, "needs dense inputs or embeddings, got neither"),
    ({}, zeros(2, 0), {"user": zeros(2, 3)}, "at least two embeddings are needed"),
  ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(mlps, dense, embeddings, message):
  with pytest.raises(ValueError, match=message):
    model = models.DLRM(**{**MLPS, **mlps})
    jax.eval_shape(model.init, jax.random.key(0), dense, embeddings)


def test_dense_inputs_alone_make_a_plain_mlp(strict_promotion):
  model = models.DLRM((5, cases.WIDTH), (6, 1))
  cases.check_logits_and_gradients(
    model,
    cases.random_case(model, widths=()),
    lambda params, dense, _: oracles.mlp(
      params["top"], oracles.mlp(params["bottom"], dense, activate_last=True), activate_last=False
    ),
  )
