from __future__ import annotations

import collections
import types

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from jaxrec.layers import interaction
from tests.layers import oracles


def random_vectors(batch_size: int, num_fields: int, embedding_dim: int, seed: int = 0):
  shape = (batch_size, num_fields, embedding_dim)
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_pairs_come_row_by_row_of_the_strict_lower_triangle():
  vectors = jnp.array([[[2.0], [3.0], [5.0], [7.0]]])
  assert interaction.dot_interaction(vectors).tolist() == [[6, 10, 15, 14, 21, 35]]


def test_self_interaction_ends_each_row_with_the_square():
  vectors = jnp.array([[[2.0], [3.0], [5.0]]])
  pairs = interaction.dot_interaction(vectors, self_interaction=True)
  assert pairs.tolist() == [[4, 6, 9, 10, 15, 25]]


@pytest.mark.parametrize("num_fields", [1, 2, 5])
@pytest.mark.parametrize("self_interaction", [False, True])
def test_output_and_gradient_equal_float64_numpy(strict_promotion, num_fields, self_interaction):
  vectors = random_vectors(3, num_fields, 4)
  num_pairs = num_fields * (num_fields + (1 if self_interaction else -1)) // 2
  weights = np.random.default_rng(1).normal(size=(3, num_pairs)).astype(np.float32)

  def expected_dots(vectors):
    return oracles.dots(list(vectors.transpose(1, 0, 2)), self_interaction=self_interaction)

  @jax.jit
  def value_and_grad(vectors):
    dots, pullback = jax.vjp(
      lambda v: interaction.dot_interaction(v, self_interaction=self_interaction), vectors
    )
    return dots, pullback(weights)[0]

  dots, grad = value_and_grad(vectors)
  oracles.assert_close(dots, expected_dots(vectors.astype(np.float64)))
  oracles.assert_close(
    grad, oracles.numeric_grad(lambda v: float(np.sum(weights * expected_dots(v))), vectors)
  )


@pytest.mark.parametrize("self_interaction", [False, True])
def test_the_second_derivative_is_right(self_interaction):
  def loss_fn(vectors):
    dots = interaction.dot_interaction(vectors, self_interaction=self_interaction)
    return jnp.sum(jnp.sin(dots))

  jax.test_util.check_grads(loss_fn, (random_vectors(2, 3, 2),), order=2, modes=["rev"], eps=1e-2)


def test_bfloat16_stays_bfloat16_in_both_directions(strict_promotion):
  vectors = jnp.asarray(random_vectors(2, 4, 3), jnp.bfloat16)
  pairs, pullback = jax.vjp(interaction.dot_interaction, vectors)
  assert pairs.dtype == jnp.bfloat16
  assert pullback(pairs)[0].dtype == jnp.bfloat16


def test_vectors_of_the_wrong_rank_are_refused():
  with pytest.raises(ValueError, match=r"expected vectors \[B, F, D\], got shape \(4, 3\)"):
    interaction.dot_interaction(jnp.zeros((4, 3)))


def test_an_ordered_dict_keeps_its_order_and_any_other_mapping_is_sorted():
  items = {"b": 1, "c": 2, "a": 3}
  assert list(interaction.ordered(collections.OrderedDict(items)).items()) == list(items.items())
  for mapping in (items, types.MappingProxyType(items), collections.defaultdict(int, items)):
    assert list(interaction.ordered(mapping).items()) == [("a", 3), ("b", 1), ("c", 2)]


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_the_order_is_the_same_inside_and_outside_jit(kind):
  seen = []

  def concatenate(embeddings):
    seen.append(list(interaction.ordered(embeddings)))
    return jnp.concatenate(list(interaction.ordered(embeddings).values()))

  embeddings = kind([("b", jnp.ones(1)), ("c", jnp.zeros(1)), ("a", jnp.full(1, 2.0))])
  outside, inside = concatenate(embeddings), jax.jit(concatenate)(embeddings)
  assert seen[0] == seen[1] == (["a", "b", "c"] if kind is dict else ["b", "c", "a"])
  assert outside.tolist() == inside.tolist()
