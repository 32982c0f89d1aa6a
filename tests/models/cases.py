"""Inputs for models, and the comparison with float64 NumPy that every model passes."""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
import numpy as np

from tests.layers import oracles

BATCH_SIZE, WIDTH = 5, 3


def random_case(model, *, num_dense: int = 4, widths=(("b", 3), ("a", 3), ("c", 3))):
  """Inputs with features in the order given, and parameters of which none is zero."""
  rng = np.random.default_rng(0)
  dense = rng.normal(size=(BATCH_SIZE, num_dense)).astype(np.float32)
  embeddings = collections.OrderedDict(
    (name, rng.normal(size=(BATCH_SIZE, width)).astype(np.float32)) for name, width in widths
  )
  params = jax.eval_shape(model.init, jax.random.key(0), dense, embeddings)["params"]
  return oracles.random_like(params, seed=1), dense, embeddings


def expected_vectors(params, dense, embeddings):
  vectors = []
  if dense.shape[1]:
    vectors.append(oracles.mlp(params["bottom"], dense, activate_last=True))
  for name, embedding in embeddings.items():
    projection = params.get(f"proj_{name}")
    vectors.append(embedding if projection is None else embedding @ projection["kernel"])
  return vectors


def check_logits_and_gradients(model, case, expected_fn):
  """The model against ``expected_fn -> [B, T]``, with gradients of all that is an input."""
  expected = expected_fn(*oracles.to_float64(case))
  factors = np.random.default_rng(2).normal(size=expected.shape).astype(np.float32)

  def loss_fn(params, dense, embeddings):
    logits = model.apply({"params": params}, dense, embeddings)
    return jnp.sum(factors * logits.reshape(factors.shape)), logits

  (_, logits), grads = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1, 2), has_aux=True))(*case)
  assert logits.shape == (expected[:, 0] if expected.shape[1] == 1 else expected).shape
  assert logits.dtype == jnp.float32
  oracles.assert_close(logits.reshape(expected.shape), expected)
  oracles.assert_close(
    grads, oracles.numeric_grad(lambda inputs: float(np.sum(factors * expected_fn(*inputs))), case)
  )
  assert any(np.abs(leaf).max(initial=0) > 0.1 for leaf in jax.tree.leaves(grads[1:]))
