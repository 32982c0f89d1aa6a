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

  Args:
    counts: distinct finite values in ascending order and how often each occurs, in chunks. It is
      read twice.
    num_buckets: buckets wanted. A column of no more distinct values gets one for each; else values
      that occur often leave fewer.

  >>> fit([(np.array([1.0, 2.0, 9.0]), np.array([2, 1, 1]))], num_buckets=2).boundaries
  array([2.])
  """
  num_values = sum(len(values) for values, _ in counts)
  total = sum(int(number.sum()) for _, number in counts)
  boundaries: list[float] = []
  knots: list[float] = []
  ranks: list[float] = []
  below = 0
  bucket, knot = -1, -1  # of the value before
  for values, number in counts:
    ends = below + np.cumsum(number, dtype=np.int64)
    starts = ends - number
    first = below == 0
    below = int(ends[-1])
    parts = starts * num_buckets // total if num_values > num_buckets else starts
    boundaries += values[np.diff(parts, prepend=bucket) > 0].tolist()[first:]
    bucket = int(parts[-1])
    parts = starts * MAX_KNOTS // total if num_values > MAX_KNOTS else starts
    is_knot = (np.diff(parts, prepend=knot) > 0) | (ends == total)
    knots += values[is_knot].tolist()
    ranks += ((starts[is_knot] + ends[is_knot]) / (2 * total)).tolist()
    knot = int(parts[-1])
  return Quantiles(np.array(boundaries), np.array(knots), np.array(ranks))
