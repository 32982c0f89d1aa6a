"""How skewed the ids of a data set are: how much of the traffic goes to how few rows.

Skew decides what caching, compression and sharding can gain: where one row in a hundred takes half
of the look-ups, a small cache serves half of them. Counted on batches as they are, sparsely: memory
grows with the distinct ids seen and not with the vocabulary.

Read next: jaxrec/inputs/batch.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from jaxrec import config
from jaxrec.inputs import batch as batch_lib


@dataclasses.dataclass(frozen=True, eq=False)
class IdCounts:
  """How often each id was looked up.

  Attributes:
    ids: i64[K], distinct and sorted.
    counts: i64[K], positive.
  """

  ids: np.ndarray
  counts: np.ndarray

  @classmethod
  def of(cls, ids: np.ndarray) -> IdCounts:
    """Counts ``ids: int[N]``."""
    return cls(*np.unique(np.asarray(ids, np.int64), return_counts=True))

  def merge(self, other: IdCounts) -> IdCounts:
    """The counts of both together."""
    ids, inverse = np.unique(np.concatenate([self.ids, other.ids]), return_inverse=True)
    counts = np.zeros(len(ids), np.int64)
    np.add.at(counts, inverse, np.concatenate([self.counts, other.counts]))
    return IdCounts(ids, counts)

  @property
  def lookups(self) -> int:
    return int(self.counts.sum())

  def top_share(self, fraction: float) -> float:
    """Share of the look-ups that the most popular ``fraction`` of the ids seen takes.

    At least one id is taken. NaN when none was seen.

    >>> IdCounts.of(np.array([7, 7, 7, 1])).top_share(0.01)
    0.75
    """
    if not len(self.ids):
      return math.nan
    num_top = max(1, math.ceil(round(fraction * len(self.ids), 9)))
    return float(np.sort(self.counts)[::-1][:num_top].sum() / self.lookups)


def count_ids(
  batches: Iterable[batch_lib.Batch], features: Sequence[config.FeatureConfig]
) -> dict[str, IdCounts]:
  """Counts by table name; features that share a table are counted together.

  An example of weight 0 is padding and looks nothing up. Host only.
  """
  none = np.zeros(0, np.int64)
  found = {feature.table.name: IdCounts.of(none) for feature in features}
  for batch in batches:
    for feature in features:
      values = np.asarray(batch.ids[feature.name].values)
      seen = values[(values >= 0) & np.asarray(batch_lib.is_real(batch, feature.name))]
      found[feature.table.name] = found[feature.table.name].merge(IdCounts.of(seen))
  return found
