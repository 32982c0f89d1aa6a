"""Attention, values and all gradients, against float64 NumPy and finite differences of it."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.layers import attention, sequences

B, L, D, H, HEAD_DIM = 4, 6, 5, 2, 3
LENGTHS = (6, 0, 3, 1)


@pytest.fixture
def inputs():
  rng = np.random.default_rng(0)
  mask = np.arange(L) < np.array(LENGTHS)[:, None]
  steps = np.where(mask[..., None], rng.normal(size=(B, L, D)), 0).astype(np.float32)
  return rng.normal(size=(B, D)).astype(np.float32), steps, mask


def sequence_of(steps, mask):
  return sequences.of_embeddings(jnp.asarray(steps), jnp.asarray(mask))


def oracle(params, target, steps, mask) -> np.ndarray:
  """As the paper prints it, one example and head at a time: f64[B, H d]."""
  params = {name: np.asarray(value, np.float64) for name, value in params.items()}
  found = []
  for b in range(len(target)):
    kept, heads = steps[b][mask[b]].astype(np.float64), []
    for h in range(params["query"].shape[1]):
      query = target[b].astype(np.float64) @ params["query"][:, h]
      keys, values = kept @ params["key"][:, h], kept @ params["value"][:, h]
      if not len(kept):
        heads.append(np.zeros(values.shape[1]))
        continue
      scores = keys @ query / np.sqrt(len(query))
      weights = np.exp(scores - scores.max())
      heads.append(weights / weights.sum() @ values)
    found.append(np.einsum("hd,hdo->o", np.stack(heads), params["out"]))
  return np.stack(found)


def test_target_attention_is_the_papers_formula_with_all_gradients(inputs):
  target, steps, mask = inputs
  module = attention.TargetAttention(H, HEAD_DIM)
  variables = module.init(jax.random.key(0), jnp.asarray(target), sequence_of(steps, mask))
  params = variables["params"]
  found = module.apply(variables, jnp.asarray(target), sequence_of(steps, mask))
  assert found.shape == (B, H * HEAD_DIM)
  np.testing.assert_allclose(found, oracle(params, target, steps, mask), atol=1e-5)
  assert not np.asarray(found[1]).any()  # an empty history is zeros
  sign = np.random.default_rng(1).normal(size=found.shape)

  def loss(params, target, steps):
    out = attention.target_attention(params, target, sequence_of(steps, mask))
    return jnp.sum(out * sign)

  grads = jax.grad(loss, argnums=(0, 1, 2))(params, jnp.asarray(target), jnp.asarray(steps))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))

  def numeric(change):
    plus, minus = ((oracle(*change(step), mask) * sign).sum() for step in (1e-6, -1e-6))
    return (plus - minus) / 2e-6

  rng = np.random.default_rng(2)
  for _ in range(20):
    b, n = rng.integers(B), rng.integers(D)
    step = rng.integers(L)

    def moved(by, b=b, n=n):
      shifted = target.astype(np.float64)
      shifted[b, n] += by
      return params, shifted, steps

    def moved_step(by, b=b, n=n, step=step):
      shifted = steps.astype(np.float64)
      shifted[b, step, n] += by
      return params, target, shifted

    assert grads[1][b, n] == pytest.approx(numeric(moved), abs=1e-4)
    assert grads[2][b, step, n] == pytest.approx(numeric(moved_step), abs=1e-4)
  for name in params:
    where = tuple(rng.integers(size) for size in params[name].shape)

    def moved_param(by, name=name, where=where):
      value = np.asarray(params[name], np.float64)
      value[where] += by
      return {**params, name: value}, target, steps

    assert grads[0][name][where] == pytest.approx(numeric(moved_param), abs=1e-4)


def test_steps_that_are_not_there_change_nothing(inputs):
  target, steps, mask = inputs
  module = attention.TargetAttention(H, HEAD_DIM)
  variables = module.init(jax.random.key(0), jnp.asarray(target), sequence_of(steps, mask))
  noise = np.where(mask[..., None], steps, np.float32(1e6))
  rows = sequences.RowSequence(
    jnp.asarray(noise.reshape(-1, D)), jnp.arange(B * L).reshape(B, L), jnp.asarray(mask)
  )
  np.testing.assert_array_equal(
    module.apply(variables, jnp.asarray(target), rows),
    module.apply(variables, jnp.asarray(target), sequence_of(steps, mask)),
  )


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_masked_softmax_is_a_softmax_of_what_is_there(scale):
  rng = np.random.default_rng(0)
  scores, mask = scale * rng.normal(size=(5, 7)), rng.random((5, 7)) < 0.6
  mask[2] = False
  found = np.asarray(attention.masked_softmax(jnp.asarray(scores, jnp.float32), jnp.asarray(mask)))
  for row, kept, weights in zip(
    scores.astype(np.float32).astype(np.float64), mask, found, strict=True
  ):
    expected = np.zeros(7)
    if kept.any():
      grown = np.exp(row[kept] - row[kept].max())
      expected[kept] = grown / grown.sum()
    np.testing.assert_allclose(weights, expected, atol=1e-6)
  narrow = attention.masked_softmax(jnp.asarray(scores, jnp.bfloat16), jnp.asarray(mask))
  assert narrow.dtype == jnp.bfloat16


def test_counts_are_of_steps_that_are_like_the_candidate_and_the_same_item_is_one(inputs):
  target, steps, mask = inputs
  steps = steps.copy()
  steps[0, :3] = 2.5 * target[0]  # three steps in the candidate's direction
  sharpness = np.array([2.0, 30.0, 1e6], np.float32)
  found = attention.kernel_counts(
    jnp.asarray(target), sequence_of(steps, mask), jnp.asarray(sharpness)
  )
  for b in range(B):
    kept = steps[b][mask[b]].astype(np.float64)
    norms = np.linalg.norm(kept, axis=1) * np.linalg.norm(target[b])
    cosines = kept @ target[b].astype(np.float64) / norms
    expected = np.log1p(np.exp(sharpness[:2, None] * (cosines - 1)).sum(axis=1))
    np.testing.assert_allclose(found[b, :2], expected, atol=1e-4)
  assert float(found[0, 2]) == pytest.approx(np.log(4), abs=0.3) and not np.asarray(found[1]).any()
  module = attention.KernelCounts((2.0, 30.0))
  variables = module.init(jax.random.key(0), jnp.asarray(target), sequence_of(steps, mask))
  learned = module.apply(variables, jnp.asarray(target), sequence_of(steps, mask))
  np.testing.assert_allclose(learned, found[:, :2], rtol=1e-5)
  zeros = jax.grad(
    lambda rows: attention.kernel_counts(
      jnp.asarray(target), sequence_of(rows, mask), jnp.asarray(sharpness)
    ).sum()
  )(jnp.zeros_like(steps))
  assert np.isfinite(zeros).all()  # rows of zeros have no direction, and no NaN


def test_dins_unit_weighs_each_step_by_what_it_and_the_candidate_say(inputs):
  target, steps, mask = inputs
  module = attention.ActivationUnit((4,))
  variables = module.init(jax.random.key(0), jnp.asarray(target), sequence_of(steps, mask))
  layers = variables["params"]["unit"]
  found = np.asarray(module.apply(variables, jnp.asarray(target), sequence_of(steps, mask)))
  for b in range(B):
    expected = np.zeros(D)
    for step in steps[b][mask[b]].astype(np.float64):
      asked = target[b].astype(np.float64)
      x = np.concatenate([step, asked, step - asked, step * asked])
      x = np.maximum(x @ layers["layer_0"]["kernel"] + layers["layer_0"]["bias"], 0)
      weight = (x @ layers["layer_1"]["kernel"] + layers["layer_1"]["bias"])[0]
      expected += weight * step
    np.testing.assert_allclose(found[b], expected, atol=1e-5)


def test_half_precision_is_near_and_of_its_own_dtype(inputs):
  target, steps, mask = inputs
  module = attention.TargetAttention(H, HEAD_DIM)
  variables = module.init(jax.random.key(0), jnp.asarray(target), sequence_of(steps, mask))
  wide = module.apply(variables, jnp.asarray(target), sequence_of(steps, mask))
  narrow = module.apply(variables, jnp.asarray(target, jnp.bfloat16), sequence_of(steps, mask))
  assert narrow.dtype == jnp.bfloat16 and isinstance(module, nn.Module)
  np.testing.assert_allclose(narrow.astype(jnp.float32), wide, atol=0.05)


def test_counts_have_a_gradient_that_is_small_at_zero_vectors():
  rows = jnp.asarray([[0.0, 0.0], [1.0, 2.0]])
  sequence = sequences.RowSequence(rows, jnp.asarray([[0, 1]]), jnp.ones((1, 2), bool))

  def total(target, rows):
    found = attention.kernel_counts(
      target, dataclasses.replace(sequence, rows=rows), jnp.asarray([4.0, 64.0])
    )
    return found.sum()

  for target in (jnp.zeros((1, 2)), jnp.asarray([[0.5, 0.1]])):
    grads = jax.grad(total, (0, 1))(target, rows)
    assert all(np.abs(np.asarray(grad)).max() < 100 for grad in grads)


@pytest.mark.parametrize(
  "module",
  [attention.TargetAttention(1), attention.KernelCounts(), attention.ActivationUnit()],
  ids=lambda module: type(module).__name__,
)
def test_a_mask_that_is_narrowed_is_enough(module):
  """Whatever the places say: what is masked is not read."""
  rows = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
  target, places = rows[:1], jnp.asarray([[1, 2, 3]])
  mask = jnp.asarray([[True, True, False]])
  narrow = sequences.RowSequence(rows, places, mask)
  nowhere = sequences.RowSequence(rows, jnp.asarray([[1, 2, 5]]), mask)
  variables = module.init(jax.random.key(0), target, narrow)
  ours, theirs = (module.apply(variables, target, one) for one in (narrow, nowhere))
  np.testing.assert_allclose(ours, theirs, atol=1e-6)
