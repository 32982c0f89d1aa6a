"""Raw keys to rows: the hashing trick.

Production ids are 64-bit keys. JAX has no 64-bit integers by default and would truncate them silently, so
a key travels to the device as two uint32 words, and the hash uses 32-bit arithmetic alone: the same
function on NumPy and JAX arrays, bit for bit, on the host or inside ``jit``. Two keys may share a row;
with V rows and n distinct keys, about n (n - 1) / 2V pairs do.

Source: Weinberger et al., "Feature hashing for large scale multitask learning" (ICML 2009); the mixer
is the finalizer of MurmurHash3 (Appleby, public domain), one application for each word.
Read next: jaxrec/features/batch.py, where the rows go.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # np.ndarray on the host, jax.Array inside jit
_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio


def mix32(words: Array) -> Array:
  """u32[...] -> u32[...]: MurmurHash3's finalizer, a bijection in which every input bit moves all."""
  words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return words ^ (words >> np.uint32(16))


def split_words(keys: np.ndarray) -> np.ndarray:
  """64-bit keys as u32[N, 2], (low, high): the form in which they may reach a device.

  >>> split_words(np.array([2**32 + 7, -1], np.int64)).tolist()
  [[7, 1], [4294967295, 4294967295]]
  """
  keys = np.asarray(keys)
  if keys.dtype.kind not in "iu":
    raise TypeError(f"split_words: expected integer keys, got {keys.dtype}")
  wide = keys.astype(np.int64).view(np.uint64) if keys.dtype.kind == "i" else keys.astype(np.uint64)
  return np.stack([wide, wide >> np.uint64(32)], axis=-1).astype(np.uint32)


def hash_words(words: Array, *, salt: int = 0) -> Array:
  """u32[..., 2] -> u32[...]: ``mix32(high ^ mix32(low ^ mix32(salt)))`` with constants in between."""
  seed = np.uint32((_GOLDEN * (salt + 1)) & 0xFFFFFFFF)
  low = mix32(words[..., 0] ^ mix32(np.asarray(seed)))
  return mix32((low + np.uint32(_GOLDEN)) ^ words[..., 1])


def hash_ids(keys: Array, num_buckets: int, *, salt: int = 0) -> Array:
  """Rows i32[N] in [0, num_buckets) for raw keys.

  Args:
    keys: i64[N] or u64[N] NumPy keys (host only), or their words u32[N, 2], NumPy or JAX. A key and its
      words give the same row.
    num_buckets: rows of the table, V < 2^31. Buckets differ in probability by at most V / 2^32.
    salt: another salt, another hash; use one a table (quotient-remainder and double hashing use two).

  Raises:
    TypeError: neither 64-bit NumPy keys nor uint32 words.

  >>> hash_ids(np.array([3, 10**15]), 1000).tolist() == hash_ids(split_words([3, 10**15]), 1000).tolist()
  True
  """
  if not 0 < num_buckets < 2**31:
    raise ValueError(f"hash_ids: num_buckets must lie in [1, 2^31), got {num_buckets}")
  if not isinstance(keys, jax.Array):
    keys = np.asarray(keys)
    if keys.dtype in (np.int64, np.uint64):
      keys = split_words(keys)
  if keys.dtype != np.uint32 or keys.ndim < 1 or keys.shape[-1] != 2:
    raise TypeError(
        f"hash_ids: expected int64 or uint64 NumPy keys or uint32[N, 2] words, got "
        f"{keys.dtype}{list(keys.shape)}; split raw keys on the host with features.split_words"
    )
  xp = jnp if isinstance(keys, jax.Array) else np
  return (hash_words(keys, salt=salt) % np.uint32(num_buckets)).astype(xp.int32)
