"""A history of length 0, and a batch of none, are values like any: every layer gives what it gives
for a history whose steps are all absent.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import layers
from jaxrec.layers import hamming_scan, sequences

D = 8
LAYERS = {
  "LSHAttention": layers.LSHAttention(k=2),
  "TargetAttention": layers.TargetAttention(),
  "KernelCounts": layers.KernelCounts(),
  "ActivationUnit": layers.ActivationUnit(),
}


def history(batch_size: int, length: int, num_rows: int) -> sequences.RowSequence:
  """Steps that are all absent."""
  places = jnp.full((batch_size, length), num_rows, jnp.int32)
  return sequences.RowSequence(jnp.ones((num_rows, D)), places, jnp.zeros(places.shape, bool))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("num_rows", [0, 4])
def test_no_steps_are_worth_what_absent_steps_are(name, is_shared, num_rows):
  layer, target = (
    LAYERS[name],
    jnp.asarray(np.random.default_rng(0).normal(size=(3, D)), jnp.float32),
  )
  batch_size = 1 if is_shared else 3
  absent, empty = history(batch_size, 2, 4), history(batch_size, 0, num_rows)
  variables = layer.init(jax.random.key(0), target, absent)

  def total(variables, target, sequence):
    answer = layer.apply(variables, target, sequence)
    return answer.sum(), answer

  value_and_grad = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
  expected = value_and_grad(variables, target, absent)
  got = value_and_grad(variables, target, empty)
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  assert got[0][1].shape[0] == 3 and not np.asarray(got[0][1]).any()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("length", [0, 5])
def test_a_batch_of_no_candidates_gives_no_answers(name, length):
  target = jnp.zeros((0, D))
  answer, _ = LAYERS[name].init_with_output(jax.random.key(0), target, history(0, length, 4))
  assert answer.shape[0] == 0 and answer.ndim == 2


@pytest.mark.parametrize(("batch_size", "length"), [(0, 0), (0, 5), (3, 0)])
def test_distances_of_no_steps_are_none(batch_size, length):
  words, asked = jnp.ones((4, 2), jnp.uint32), jnp.ones((batch_size, 2), jnp.uint32)
  places = jnp.zeros((batch_size, length), jnp.int32)
  distances = jax.jit(hamming_scan.distances)(words, places, asked)
  assert distances.shape == (batch_size, length) and distances.dtype == jnp.int32
