"""Counts of ids and their skew equal a Counter's."""

from __future__ import annotations

import collections
import math

import numpy as np
import pytest

from jaxrec import config, features
from jaxrec.inputs import id_counts


def batches_of(num, rng):
  for _ in range(num):
    single = np.where(rng.random(50) < 0.1, -1, rng.zipf(1.5, 50) % 400).astype(np.int32)
    bags = [(rng.zipf(1.3, rng.integers(0, 4)) % 400).tolist() for _ in range(50)]
    yield features.Batch(
      dense=np.zeros((50, 0), np.float32),
      ids={
        "item": features.IdBags.single(single),
        "history": features.IdBags.from_lists(bags, capacity=200),
        "other": features.IdBags.single(np.full(50, 3, np.int32)),
      },
      labels={},
      weights=(rng.random(50) < 0.8).astype(np.float32),
    )


SHARED = config.TableConfig("item", 400, 4)
FEATURES = (
  config.FeatureConfig("item", SHARED),
  config.FeatureConfig("history", SHARED, ids_per_bag=4),
  config.FeatureConfig("other", config.TableConfig("other", 5, 4)),
)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 1.0])
def test_counts_equal_a_counter_over_features_that_share_a_table(fraction):
  batches = list(batches_of(5, np.random.default_rng(0)))
  expected = collections.Counter()
  for batch in batches:
    for name in ("item", "history"):
      for bag, weight in zip(batch.ids[name].to_lists(), batch.weights, strict=True):
        expected.update(bag if weight > 0 else [])
  found = id_counts.count_ids(batches, FEATURES)
  assert dict(zip(found["item"].ids.tolist(), found["item"].counts.tolist(), strict=True)) == (
    dict(expected)
  )
  num_top = max(1, math.ceil(fraction * len(expected)))
  top = sum(count for _, count in expected.most_common(num_top))
  assert found["item"].top_share(fraction) == pytest.approx(top / expected.total(), rel=1e-12)
  assert found["item"].lookups == expected.total()
  assert found["other"].ids.tolist() == [3] and found["other"].top_share(0.01) == 1.0


def test_a_table_that_nothing_looked_up_has_no_share():
  found = id_counts.count_ids([], FEATURES)["item"]
  assert found.lookups == 0 and math.isnan(found.top_share(0.01))
