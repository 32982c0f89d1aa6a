"""Bits against their definition, their law of angles, and Python's own counting (T1, T2, T9)."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.layers import simhash

SIZES = [(8, 1), (5, 31), (16, 32), (7, 33), (32, 64), (3, 100)]


def bits_of(words: np.ndarray, num_bits: int) -> np.ndarray:
  """bool[..., m] of u32[..., W], by Python's whole numbers."""
  flat = [
    [(int(row[i // 32]) >> (i % 32)) & 1 for i in range(num_bits)]
    for row in np.asarray(words).reshape(-1, words.shape[-1])
  ]
  return np.array(flat, bool).reshape(*words.shape[:-1], num_bits)


@pytest.mark.parametrize(("dim", "num_bits"), SIZES)
@pytest.mark.parametrize("variant", simhash.VARIANTS)
def test_bits_are_the_sides_of_the_planes_packed_into_words(dim, num_bits, variant):
  rng = np.random.default_rng(dim)
  x = rng.normal(size=(3, 50, dim)).astype(np.float32)
  planes = np.asarray(simhash.hyperplanes(jax.random.key(1), dim, num_bits))
  found = simhash.fingerprints(jnp.asarray(x), jnp.asarray(planes), variant=variant)
  assert found.dtype == jnp.uint32 and found.shape == (3, 50, -(-num_bits // 32))
  wide, normals = x.astype(np.float64), planes.astype(np.float64)
  if variant == "inner_product":
    sums = wide @ normals
    is_clear = np.abs(sums) > 1e-5
  else:
    sums = np.sign(wide[..., None] * normals).sum(axis=-2)
    is_clear = np.ones_like(sums, bool)
  np.testing.assert_array_equal(bits_of(found, num_bits)[is_clear], (sums > 0)[is_clear])
  assert is_clear.mean() > 0.99
  past = np.asarray(found)[..., -1].astype(np.uint64) >> np.uint64((num_bits - 1) % 32 + 1)
  assert not past.any()  # bits past the last are 0


@pytest.mark.parametrize("theta", [0.2, 0.8, np.pi / 2, 2.0, 2.9])
def test_two_vectors_agree_in_a_bit_as_often_as_their_angle_says(theta):
  num_bits, dim = 40_000, 24
  rng = np.random.default_rng(0)
  a, b = np.linalg.qr(rng.normal(size=(dim, 2)))[0].T
  pair = np.stack([a, np.cos(theta) * a + np.sin(theta) * b]).astype(np.float32)
  planes = simhash.hyperplanes(jax.random.key(3), dim, num_bits)
  words = simhash.fingerprints(jnp.asarray(pair), planes)
  agree = 1 - int(simhash.hamming(words[0], words[1])) / num_bits
  expected = 1 - theta / np.pi
  assert abs(agree - expected) < 3 * np.sqrt(expected * (1 - expected) / num_bits)


def test_the_printed_form_does_not_keep_that_law_and_counts_signs_alone():
  planes = simhash.hyperplanes(jax.random.key(3), 24, 40_000)
  x = np.zeros((2, 24), np.float32)
  x[:, 0] = 1.0
  x[1, 1:] = 1e-3  # almost the same direction, yet of other signs
  words = simhash.fingerprints(jnp.asarray(x), planes, variant="paper_alg1")
  plain = simhash.fingerprints(jnp.asarray(x), planes)
  assert int(simhash.hamming(plain[0], plain[1])) < 0.01 * 40_000
  # The first is a lone sign, the second a majority of 24 among which that one counts for little.
  assert 0.3 * 40_000 < int(simhash.hamming(words[0], words[1])) < 0.55 * 40_000
  scaled = simhash.fingerprints(jnp.asarray(x * [[3.0], [0.01]]), planes, variant="paper_alg1")
  np.testing.assert_array_equal(scaled, words)


@hypothesis.given(st.integers(1, 4), st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8))
def test_distances_are_counted_bits(num_words, words):
  a, b = np.array(words[:num_words], np.uint32), np.array(words[4 : 4 + num_words], np.uint32)
  expected = sum((int(x) ^ int(y)).bit_count() for x, y in zip(a, b, strict=True))
  found = simhash.hamming(jnp.asarray(a), jnp.asarray(b))
  assert found.dtype == jnp.int32 and int(found) == expected


@hypothesis.given(st.data())
def test_the_nearest_are_found_in_order_and_of_ties_the_later(data):
  length, k = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 15))
  num_bits = data.draw(st.sampled_from([4, 2**20, 2**26]))  # as floats, and past them
  one = st.sampled_from([0, 1, num_bits - 1, num_bits])
  distances = data.draw(st.lists(one, min_size=length, max_size=length))
  mask = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
  steps, is_found = simhash.nearest(
    jnp.array([distances], jnp.int32), jnp.array([mask]), k, num_bits=num_bits
  )
  there = [step for step in range(length) if mask[step]]
  expected = sorted(there, key=lambda step: (distances[step], -step))[:k]
  assert steps.shape == is_found.shape == (1, min(k, length))
  assert np.asarray(steps)[0][np.asarray(is_found)[0]].tolist() == expected
  assert int(is_found.sum()) == len(expected)


def test_what_is_not_there_is_behind_the_farthest_that_is():
  steps, is_found = simhash.nearest(
    jnp.array([[32, 0, 32]]), jnp.array([[True, False, False]]), 1, num_bits=32
  )
  assert (int(steps[0, 0]), bool(is_found[0, 0])) == (0, True)


def test_large_keys_keep_their_order_where_floats_would_not():
  num_bits = 2**26
  distances = jnp.array([[num_bits - 1, num_bits - 1, num_bits - 2, num_bits]])
  steps, _ = simhash.nearest(distances, jnp.ones((1, 4), bool), 4, num_bits=num_bits)
  assert steps[0].tolist() == [2, 1, 0, 3]


def test_bad_shapes_and_variants_are_named():
  planes = simhash.hyperplanes(jax.random.key(0), 4, 8)
  with pytest.raises(ValueError, match="vectors of width 3, hyperplanes of width 4"):
    simhash.fingerprints(jnp.zeros((2, 3)), planes)
  with pytest.raises(ValueError, match="variant must be one of .*got 'learned'"):
    simhash.fingerprints(jnp.zeros((2, 4)), planes, variant="learned")
  with pytest.raises(ValueError, match="exceed a 32-bit key"):
    simhash.nearest(jnp.zeros((1, 8192), jnp.int32), jnp.ones((1, 8192), bool), 3, num_bits=2**20)


def test_narrow_vectors_have_the_bits_of_their_own_values():
  x = jax.random.normal(jax.random.key(0), (64, 16)).astype(jnp.bfloat16)
  planes = simhash.hyperplanes(jax.random.key(1), 16, 48)
  np.testing.assert_array_equal(
    simhash.fingerprints(x, planes), simhash.fingerprints(x.astype(jnp.float32), planes)
  )
