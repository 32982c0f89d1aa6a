"""Random numbers that are a function of where they are needed.

A counter-based generator has no state: number k of a stream is a hash of (key, k). Examples can
thus be drawn at any position, in any order and in any chunking, by any thread or process, and be
the same.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), for the idea; the
hash is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), a dozen array operations in NumPy.
Read next: jaxrec/data/datasets/synthetic.py.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads neighbouring counters


def stream_key(*parts: int | str) -> np.uint64:
  """The key of the stream named by ``parts``; other parts, another stream.

  >>> bool(stream_key("label", 0) == stream_key("label", 0))
  True
  """
  digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
  return np.uint64(int.from_bytes(digest, "little"))


def bits(key: np.uint64 | np.ndarray, counters: np.ndarray) -> np.ndarray:
  """Words u64[...] number ``counters: i64[...]`` of stream ``key: u64[...]``; the two broadcast."""
  words = counters.astype(np.uint64) * _GOLDEN + key
  words ^= words >> np.uint64(30)
  words *= np.uint64(0xBF58476D1CE4E5B9)
  words ^= words >> np.uint64(27)
  words *= np.uint64(0x94D049BB133111EB)
  words ^= words >> np.uint64(31)
  return words


def uniform(key: np.uint64 | np.ndarray, counters: np.ndarray) -> np.ndarray:
  """f64[...] uniform in [0, 1): multiples of 2^-53."""
  return (bits(key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def quarters(key: np.uint64 | np.ndarray, counters: np.ndarray) -> np.ndarray:
  """f64[4, ...]: the four 16-bit parts of a word, each uniform with mean 0 and variance 1."""
  words = bits(key, counters)
  parts = np.empty((4, *words.shape))
  for part in parts:
    part[...] = words & np.uint64(0xFFFF)
    words >>= np.uint64(16)
  parts -= 0.5 * 0xFFFF
  parts *= np.sqrt(12.0 / (2.0**32 - 1))
  return parts


def normal(key: np.uint64 | np.ndarray, counters: np.ndarray) -> np.ndarray:
  """f64[...] nearly normal, mean 0 and variance 1: half the sum of a word's quarters.

  Only additions and multiplications, so the same on every machine. The price is a thin tail:
  nothing lies beyond ±2 sqrt(3), and the kurtosis is 2.7 instead of 3.
  """
  first, second, third, fourth = quarters(key, counters)
  return 0.5 * ((first + second) + (third + fourth))
