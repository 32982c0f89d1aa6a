"""hash_ids: one function on every side, and a good one."""

from __future__ import annotations

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from jaxrec.features import hashing

KEYS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40)
KEY_SETS = {
  "counting": np.arange(200_000),
  "counting in the high word": np.arange(200_000) << 32,
  "multiples of 1,024": np.arange(200_000) << 10,
  "both words alike": np.arange(200_000) * (2**32 + 1),
  "negative": -np.arange(200_000),
}


def fmix32(h: int) -> int:
  """MurmurHash3's finalizer in Python's integers."""
  h ^= h >> 16
  h = h * 0x85EBCA6B % 2**32
  h ^= h >> 13
  h = h * 0xC2B2AE35 % 2**32
  return h ^ (h >> 16)


def hash_in_python(key: int, num_buckets: int, salt: int) -> int:
  low, high = key % 2**32, (key >> 32) % 2**32
  mixed = (fmix32(low ^ (0x9E3779B9 * (salt + 1) % 2**32)) + 0x9E3779B9) % 2**32
  return fmix32(high ^ mixed) % num_buckets


@hypothesis.given(KEYS, st.integers(1, 2**31 - 1), st.integers(0, 1000))
def test_rows_equal_those_of_python_integers(keys, num_buckets, salt):
  rows = hashing.hash_ids(np.array(keys, np.int64), num_buckets, salt=salt)
  assert rows.dtype == np.int32
  assert rows.tolist() == [hash_in_python(key, num_buckets, salt) for key in keys]


@hypothesis.given(KEYS, st.integers(1, 2**31 - 1))
def test_key_words_and_jit_give_the_same_rows(keys, num_buckets):
  keys = np.array(keys, np.int64)
  words = hashing.split_words(keys)
  on_host = hashing.hash_ids(keys, num_buckets)
  np.testing.assert_array_equal(hashing.hash_ids(keys.view(np.uint64), num_buckets), on_host)
  np.testing.assert_array_equal(hashing.hash_ids(words, num_buckets), on_host)
  padded = np.zeros((40, 2), np.uint32)  # one shape, so that one program serves them all
  padded[: len(words)] = words
  hash_jitted = jax.jit(functools.partial(hashing.hash_ids, num_buckets=num_buckets))
  on_device = hash_jitted(padded)
  assert on_device.dtype == jnp.int32
  np.testing.assert_array_equal(on_device[: len(words)], on_host)


@pytest.mark.usefixtures("strict_promotion")
def test_hashing_in_jit_promotes_no_dtype():
  words = jnp.asarray(hashing.split_words(np.arange(8)))
  assert jax.jit(lambda w: hashing.hash_ids(w, 100, salt=3))(words).shape == (8,)


@hypothesis.given(KEYS)
def test_words_put_together_are_the_key(keys):
  words = hashing.split_words(np.array(keys, np.int64))
  assert words.dtype == np.uint32
  assert words.shape == (len(keys), 2)
  assert [int(low) + (int(high) << 32) for low, high in words] == [key % 2**64 for key in keys]


@pytest.mark.parametrize("name", KEY_SETS)
@pytest.mark.parametrize("num_buckets", [100, 1024])
def test_regular_keys_fill_buckets_evenly(name, num_buckets):
  counts = np.bincount(hashing.hash_ids(KEY_SETS[name], num_buckets), minlength=num_buckets)
  assert counts.sum() == 200_000
  assert stats.chisquare(counts).pvalue > 1e-4


def test_each_bit_of_a_key_flips_each_bit_of_the_row_half_the_time():
  keys = np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64)
  rows = hashing.hash_ids(keys, 2**30)
  for bit in range(64):
    flipped = rows ^ hashing.hash_ids(keys ^ np.uint64(1 << bit), 2**30)
    rates = (flipped[:, None] >> np.arange(30) & 1).mean(axis=0)
    assert np.abs(rates - 0.5).max() < 0.02, bit


def test_salts_make_independent_functions():
  keys = np.arange(200_000)
  first, second = (hashing.hash_ids(keys, 16, salt=salt) for salt in (0, 1))
  pairs = np.bincount(first * 16 + second, minlength=256)
  assert stats.chisquare(pairs).pvalue > 1e-4


@pytest.mark.parametrize(
  "keys, got",
  [
    (np.arange(3, dtype=np.int32), r"got int32\[3\]"),
    (np.zeros(3), r"got float64\[3\]"),
    (np.zeros((3, 3), np.uint32), r"got uint32\[3, 3\]"),
    (np.zeros((3, 2), np.int32), r"got int32\[3, 2\]"),
    (np.array(7, np.uint32), r"got uint32\[\]"),
    ([1, 2], r"got list\[2\]"),
    (jnp.arange(3), r"got int32\[3\]"),
  ],
)
def test_anything_but_wide_keys_or_words_is_refused(keys, got):
  with pytest.raises(TypeError, match=got + ".*split_words"):
    hashing.hash_ids(keys, 10)


@pytest.mark.parametrize("num_buckets", [0, -1, 2**31])
def test_bucket_counts_outside_int32_are_refused(num_buckets):
  with pytest.raises(ValueError, match=rf"\[1, 2\^31\), got {num_buckets}"):
    hashing.hash_ids(np.arange(3), num_buckets)


def test_splitting_floats_is_refused():
  with pytest.raises(TypeError, match="expected integer keys, got float64"):
    hashing.split_words(np.zeros(3))
