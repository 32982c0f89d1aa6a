"""How often a table's ids are looked up, and so how many different rows a batch touches.

Of n look-ups, the row that each names with chance p is among the rows touched with chance
q = 1 - (1 - p)^n; their number has mean sum q. A profile keeps the rows in bins of one chance, so
that this is a short sum for a table of any size: under a Zipf law the first 1,024 rows have bins of
their own and the others share bins 1 % wide; measured counts share a bin where they are equal.

*Source*: balls into bins; the missing mass after I. J. Good, Biometrika 1953.
*Read next*: jaxrec/sharding/planner/cost.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from jaxrec import config
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import id_counts

DEFAULT_EXPONENT = 1.05  # of tables without a profile: that of the synthetic log
_OWN_BINS = 1024
_BIN_WIDTH = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class IdProfile:
  """Bins of rows that are looked up equally often.

  Attributes:
    chances: f64[K], of one look-up to name one row of the bin.
    num_rows: f64[K] rows of each bin.
  """

  chances: np.ndarray
  num_rows: np.ndarray

  def unique(self, num_ids: float) -> tuple[float, float]:
    """Of the rows that ``num_ids`` look-ups touch: (sum q, sum q^2).

    >>> zipf_profile(1000, 0.0).unique(500)[0]  # 1000 (1 - 0.999^500)
    393.6...
    """
    with np.errstate(divide="ignore"):
      touched = -np.expm1(num_ids * np.log1p(-self.chances)) if num_ids else 0.0 * self.chances
    return float(self.num_rows @ touched), float(self.num_rows @ touched**2)

  def of_most_popular(self, num_rows: int) -> IdProfile:
    """Of that many rows alone, which then get all look-ups; all if there are no more.

    >>> zipf_profile(4, 0.0).of_most_popular(2).unique(1)[0]
    1.0
    """
    order = np.argsort(-self.chances, kind="stable")
    chances, sizes = self.chances[order], self.num_rows[order]
    kept = np.clip(num_rows - (np.cumsum(sizes) - sizes), 0, sizes)
    chances, kept = chances[kept > 0], kept[kept > 0]
    return IdProfile(chances / (chances @ kept), kept)


def zipf_profile(vocab_size: int, exponent: float = DEFAULT_EXPONENT) -> IdProfile:
  """The r-th most popular row's chance is proportional to r^-exponent; 0: all are equal."""
  config.require(
    vocab_size > 0 and exponent >= 0,
    f"zipf_profile: vocab_size must be >= 1 and exponent >= 0, got {vocab_size} and {exponent}",
  )
  edges = [np.arange(1, min(vocab_size, _OWN_BINS) + 2)]  # a bin holds ranks [edge, next edge)
  if vocab_size > _OWN_BINS:
    num_bins = int(np.ceil(np.log(vocab_size / _OWN_BINS) / np.log1p(_BIN_WIDTH))) + 1
    edges.append(np.geomspace(_OWN_BINS + 1, vocab_size + 1, num_bins + 1).astype(np.int64)[1:])
  ranks = np.unique(np.minimum(np.concatenate(edges), vocab_size + 1))
  ranks[-1] = vocab_size + 1
  num_rows = np.diff(ranks).astype(np.float64)
  middle = (ranks[:-1] + ranks[1:] - 1) / 2
  weights = middle**-exponent
  return IdProfile(weights / (weights @ num_rows), num_rows)


def profile_of_counts(
  counts: np.ndarray, vocab_size: int, *, num_lookups: int | None = None
) -> IdProfile:
  """Of look-ups as counted.

  Args:
    counts: int[K] of the K most popular rows, or of all that were seen, in any order.
    vocab_size: V; the rows without a count share equally what look-ups are left.
    num_lookups: of all rows together, where ``counts`` are those of the top; None: no others were
      seen. Look-ups of unseen rows are then as likely as rows seen once were (Good's estimate).

  Raises:
    ConfigError: more counts than rows, negative ones, none above zero, or too few look-ups.
  """
  counts = np.asarray(counts, np.int64)
  seen = int(counts.sum())
  config.require(
    counts.ndim == 1 and len(counts) <= vocab_size and seen > 0 and counts.min() >= 0,
    f"profile_of_counts: counts must be those of at most vocab_size={vocab_size} rows, none "
    f"negative and some above 0; got {counts.shape} with sum {seen}",
  )
  config.require(
    num_lookups is None or num_lookups >= seen,
    f"profile_of_counts: num_lookups must be at least the sum of counts, {seen}, got {num_lookups}",
  )
  values, num_rows = np.unique(counts[counts > 0], return_counts=True)
  num_unseen = vocab_size - int(num_rows.sum())
  unseen = 0.0
  if num_unseen and num_lookups is not None:
    unseen = (num_lookups - seen) / num_lookups
  elif num_unseen:
    unseen = min(float((counts == 1).sum()) / seen, 0.5)
  chances = values / seen * (1 - unseen)
  if not num_unseen:
    return IdProfile(chances, num_rows.astype(np.float64))
  return IdProfile(
    np.append(chances, unseen / num_unseen), np.append(num_rows, num_unseen).astype(np.float64)
  )


def measure_profiles(
  batches: Iterable[batch_lib.Batch], features: Sequence[config.FeatureConfig]
) -> dict[str, IdProfile]:
  """Profiles by table name, counted on host batches; features of one table count together.

  Raises:
    ConfigError: a table is never looked up in these batches.
  """
  found = id_counts.count_ids(batches, features)
  tables = {feature.table.name: feature.table for feature in features}
  for name in tables:
    config.require(
      found[name].lookups > 0,
      f"measure_profiles: table {name!r} is never looked up in these batches; give more of them",
    )
  return {n: profile_of_counts(found[n].counts, table.vocab_size) for n, table in tables.items()}
