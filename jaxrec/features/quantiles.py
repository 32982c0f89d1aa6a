"""Numbers by their rank.

Raw numbers of a click log (prices, counts, seconds) are skewed over many orders of magnitude; their
ranks are not. From the distinct values of a column and how often each occurs, in order, follow the
exact quantiles, two uses of which are here: *buckets*, whose numbers are looked up like ids, and
the *cdf*, the share of values below, as a dense input. Ties take their middle rank, so a value and
its copies stay together.

Source: quantile normalisation as in Covington et al., "Deep neural networks for YouTube
recommendations" (RecSys 2016, section 3.2), and Cheng et al., "Wide & deep learning" (2016).
Read next: jaxrec/features/transforms.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

MAX_KNOTS = 1024
_UNIT_VARIANCE = math.sqrt(12.0)  # a uniform number times this has deviation 1

Counts = Iterable[tuple[np.ndarray, np.ndarray]]  # distinct values ascending, and how often each


@dataclasses.dataclass(frozen=True, eq=False)
class Quantiles:
  """What ranks are read from.

  Attributes:
    boundaries: f64[K] ascending: bucket b holds boundaries[b - 1] <= x < boundaries[b].
    knots: f64[M] ascending values at which the cdf is known; between them it is straight.
    ranks: f64[M] in [0, 1]: their middle ranks.
  """

  boundaries: np.ndarray
  knots: np.ndarray
  ranks: np.ndarray

  @property
  def num_rows(self) -> int:
    """Rows of a table of buckets: one for each, after row 0 for what is missing."""
    return len(self.boundaries) + 2

  def buckets(self, values: np.ndarray) -> np.ndarray:
    """i32[N]: 1 + the bucket of each number f64[N]; 0 for NaN."""
    found = 1 + np.searchsorted(self.boundaries, values, side="right")
    return np.where(np.isnan(values), 0, found).astype(np.int32)

  def cdf(self, values: np.ndarray) -> np.ndarray:
    """f64[N]: (rank - 1/2) sqrt(12), so deviation is about 1; 0, the median, for NaN."""
    if not len(self.knots):
      return np.zeros(len(values))
    ranks = np.interp(values, self.knots, self.ranks)
    return np.where(np.isnan(values), 0.0, (ranks - 0.5) * _UNIT_VARIANCE)


def fit(counts: Counts, *, num_buckets: int) -> Quantiles:
  """Exact quantiles of a column.

  A value that fills an equal share by itself (nine in ten examples may have a count of 0) gets a
  bucket of its own, and the other values share the other buckets evenly. A column of no more
  distinct values than buckets gets one for each.

  Args:
    counts: distinct finite values in ascending order and how often each occurs, in chunks. It is
      read three times.
    num_buckets: B, about so many buckets: no more than 2 B.

  >>> fit([(np.array([1.0, 2.0, 9.0]), np.array([2, 1, 1]))], num_buckets=2).boundaries
  array([2.])
  """
  num_values = sum(len(values) for values, _ in counts)
  total = sum(int(number.sum()) for _, number in counts)
  heavy = [number[number * num_buckets >= total] for _, number in counts]
  num_heavy, num_light = sum(map(len, heavy)), total - sum(int(n.sum()) for n in heavy)
  edges = _Edges(num_values, num_buckets, total, max(1, num_buckets - num_heavy), num_light)
  knots = _Knots(num_values, total)
  for values, number in counts:
    if len(values):
      edges.add(values, number)
      knots.add(values, number)
  boundaries = np.concatenate([np.zeros(0), *edges.found])[1:]
  return Quantiles(boundaries, *(np.concatenate([np.zeros(0), *part]) for part in knots.found))


class _Edges:
  """Finds the first value of each bucket, a chunk of values at a time."""

  def __init__(
    self, num_values: int, num_buckets: int, total: int, num_light_buckets: int, num_light: int
  ):
    self.found: list[np.ndarray] = []
    self._alone = num_values <= num_buckets
    self._num_buckets, self._total = num_buckets, total
    self._num_light_buckets, self._num_light = num_light_buckets, num_light
    self._below = 0  # light values below the chunk
    self._last = (-1, True)  # of the value before: its share of the light, whether it is heavy

  def add(self, values: np.ndarray, number: np.ndarray) -> None:
    is_heavy = number * self._num_buckets >= self._total
    light = np.where(is_heavy, 0, number)
    ends = self._below + np.cumsum(light, dtype=np.int64)
    share = (ends - light) * self._num_light_buckets // max(1, self._num_light)
    share_before = np.concatenate([[self._last[0]], share[:-1]])
    heavy_before = np.concatenate([[self._last[1]], is_heavy[:-1]])
    self.found.append(values[self._alone | is_heavy | heavy_before | (share > share_before)])
    self._below, self._last = int(ends[-1]), (int(share[-1]), bool(is_heavy[-1]))


class _Knots:
  """Finds values at which the cdf is kept, and their middle ranks."""

  def __init__(self, num_values: int, total: int):
    self.found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    self._all = num_values <= MAX_KNOTS
    self._total = total
    self._below, self._part = 0, -1

  def add(self, values: np.ndarray, number: np.ndarray) -> None:
    ends = self._below + np.cumsum(number, dtype=np.int64)
    starts = ends - number
    parts = starts * MAX_KNOTS // self._total
    is_knot = self._all | (np.diff(parts, prepend=self._part) > 0) | (ends == self._total)
    self.found[0].append(values[is_knot])
    self.found[1].append((starts[is_knot] + ends[is_knot]) / (2 * self._total))
    self._below, self._part = int(ends[-1]), int(parts[-1])
