"""Raw keys to rows: the hashing trick.

Production ids are 64-bit keys. JAX has 32-bit integers by default and would truncate a key
silently, so a key travels to the device as two uint32 words, and the hash uses 32-bit arithmetic
alone: the same function of NumPy and JAX arrays, bit for bit, on the host and inside ``jit``. Keys
may share a row: n distinct keys in V rows make about n (n - 1) / 2V colliding pairs.

Source: Weinberger et al., "Feature hashing for large scale multitask learning" (ICML 2009); the
mixer is the finalizer of MurmurHash3 (Appleby, public domain), applied once a word.
Read next: jaxrec/inputs/batch.py, where the rows go.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

Array = Any  # np.ndarray on the host, jax.Array inside jit
_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio


def mix32(words: Array) -> Array:
  """u32[...] -> u32[...]: a bijection; each input bit flips each output bit half the time."""
  words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return words ^ (words >> np.uint32(16))


def split_words(keys: np.ndarray) -> np.ndarray:
  """64-bit keys as u32[N, 2], (low, high): the form in which they may reach a device.

  >>> split_words(np.array([2**32 + 7, -1])).tolist()
  [[7, 1], [4294967295, 4294967295]]
  """
  keys = np.asarray(keys)
  if keys.dtype.kind not in "iu":
    raise TypeError(f"split_words: expected integer keys, got {keys.dtype}")
  keys = keys.astype(np.uint64)  # a negative key wraps round: its two's complement
  return np.stack([keys, keys >> np.uint64(32)], axis=-1).astype(np.uint32)


def hash_ids(keys: Array, num_buckets: int, *, salt: int = 0) -> Array:
  """Rows i32[N] in [0, num_buckets) for raw keys.

  ``row = mix32(high ^ mix32(low ^ s)) mod num_buckets``, with s from the salt.

  Args:
    keys: i64[N] or u64[N] NumPy keys (host only), or their words u32[N, 2], NumPy or JAX. A key and
      its words give the same row.
    num_buckets: rows of the table, V < 2^31. Probabilities of rows differ by at most V / 2^32,
      relatively.
    salt: another salt, another function; give each table one, and each of several hashes of a key.

  Raises:
    TypeError: neither 64-bit NumPy keys nor uint32 words.

  >>> keys = np.array([3, 10**15])
  >>> bool((hash_ids(keys, 1000) == hash_ids(split_words(keys), 1000)).all())
  True
  """
  if not 0 < num_buckets < 2**31:
    raise ValueError(f"hash_ids: num_buckets must lie in [1, 2^31), got {num_buckets}")
  if isinstance(keys, np.ndarray) and keys.dtype in (np.int64, np.uint64):
    keys = split_words(keys)
  is_array = isinstance(keys, np.ndarray | jax.Array)
  if not is_array or keys.dtype != np.uint32 or keys.shape[-1:] != (2,):
    raise TypeError(
      "hash_ids: expected int64 or uint64 NumPy keys or uint32[N, 2] words, got "
      f"{getattr(keys, 'dtype', type(keys).__name__)}{list(np.shape(keys))}; "
      "split raw keys on the host with features.split_words"
    )
  # Zero is mix32's fixed point: the salt and the added constant keep small keys away from it.
  seed = np.uint32(_GOLDEN * (salt + 1) & 0xFFFFFFFF)
  low = mix32(keys[..., 0] ^ seed) + np.uint32(_GOLDEN)
  return (mix32(keys[..., 1] ^ low) % np.uint32(num_buckets)).astype(np.int32)
