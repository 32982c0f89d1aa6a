"""Random numbers that are a function of where they are needed.

A counter-based generator has no state: number k of a stream is a hash of (key, k). Examples can thus be
drawn at any position, in any order and in any chunking, by any thread or process, and be the same.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), for the idea; the hash is
the SplitMix64 of Steele, Lea and Flood (OOPSLA 2014), which NumPy computes in a dozen array operations.
Read next: jaxrec/data/synthetic.py.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads neighbouring counters
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def stream_key(*parts: int | str) -> np.uint64:
  """The key of a stream named by ``parts``; other parts, another stream.

  >>> stream_key("label", 0) == stream_key("label", 0), stream_key("label", 0) == stream_key("label", 1)
  (np.True_, np.False_)
  """
  digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
  return np.uint64(int.from_bytes(digest, "little"))


def bits(key: np.uint64 | np.ndarray, counters: np.ndarray) -> np.ndarray:
  """Random words u64[...] number ``counters: i64[...]`` of the stream ``key``; the two broadcast."""
  words = counters.astype(np.uint64) * _GOLDEN + key
  for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
    words ^= words >> shift
    words *= multiplier
  words ^= words >> _SHIFTS[2]
  return words


def uniform(key: np.uint64 | np.ndarray, counters: np.ndarray) -> np.ndarray:
  """f64[...] uniform in [0, 1), multiples of 2^-53."""
  return (bits(key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(key: np.uint64 | np.ndarray, counters: np.ndarray) -> np.ndarray:
  """f64[...] nearly normal, mean 0 and variance 1, within ±2 sqrt(3).

  The standardised sum of the four 16-bit quarters of a word: exact arithmetic, so the same on every
  machine, at the price of thin tails (kurtosis 2.7 instead of 3).
  """
  words = bits(key, counters)
  total = np.zeros(words.shape, np.uint64)
  for shift in (0, 16, 32, 48):
    total += (words >> np.uint64(shift)) & np.uint64(0xFFFF)
  return (total.astype(np.float64) - 2 * 65535) / np.sqrt((65536.0**2 - 1) / 3)
