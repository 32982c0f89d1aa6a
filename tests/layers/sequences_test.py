"""Histories by number are the histories spelt out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.layers import sequences

LENGTHS = (5, 0, 2, 1)
L, D = 5, 3


@pytest.fixture
def spelt_out() -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  mask = np.arange(L) < np.array(LENGTHS)[:, None]
  return np.where(mask[..., None], rng.normal(size=(4, L, D)), 0).astype(np.float32), mask


def test_a_sequence_spelt_out_is_what_it_was_made_of(spelt_out):
  steps, mask = spelt_out
  sequence = sequences.of_embeddings(jnp.asarray(steps), jnp.asarray(mask))
  np.testing.assert_array_equal(sequence.embeddings(), steps)
  assert sequence.max_length == L


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_the_latest_are_the_last_steps_in_their_order(spelt_out, k):
  steps, mask = spelt_out
  latest = sequences.of_embeddings(jnp.asarray(steps), jnp.asarray(mask)).latest(k)
  assert latest.max_length == min(k, L)
  for b, length in enumerate(LENGTHS):
    expected = steps[b, max(0, length - k) : length]
    found = np.asarray(latest.embeddings()[b])
    np.testing.assert_array_equal(found[: len(expected)], expected)
    assert not found[len(expected) :].any()
    assert np.asarray(latest.mask[b]).tolist() == [j < len(expected) for j in range(min(k, L))]


def test_what_is_taken_is_gathered_and_nothing_else_has_a_gradient(spelt_out):
  steps, mask = spelt_out
  chosen = jnp.array([[4, 0], [1, 2], [1, 3], [0, 1]])
  chosen = chosen.at[3].set(jnp.array([0, 0]))
  is_found = jnp.array([[True, True], [False, False], [True, True], [True, False]])

  def taken(rows):
    whole = sequences.of_embeddings(rows, jnp.asarray(mask))
    return whole.take(chosen, is_found)

  found = taken(jnp.asarray(steps))
  np.testing.assert_array_equal(found.embeddings()[0], steps[0, [4, 0]])
  np.testing.assert_array_equal(found.embeddings()[2], [steps[2, 1], np.zeros(D)])
  np.testing.assert_array_equal(found.embeddings()[3], [steps[3, 0], np.zeros(D)])
  assert np.asarray(found.mask).tolist() == [
    [True, True], [False, False], [True, False], [True, False]
  ]  # fmt: skip
  gradient = jax.grad(lambda rows: taken(rows).embeddings().sum())(jnp.asarray(steps))
  expected = np.zeros_like(steps)
  for b, step in ((0, 4), (0, 0), (2, 1), (3, 0)):
    expected[b, step] = 1
  np.testing.assert_array_equal(gradient, expected)
