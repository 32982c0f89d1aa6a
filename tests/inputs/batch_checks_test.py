"""What a data set returns is checked by name: number of examples, shapes, dtypes, groups."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxrec import data
from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.features import BadExampleError, Batch, BatchSpec, IdBags, check_batch

B = 6
SPEC = BatchSpec(
  (FeatureConfig("id", TableConfig("id", 9, 4)),), num_dense=2, labels=("buy",), groups=("user",)
)


def good(size=B):
  return Batch(
    dense=np.ones((size, 2), np.float32),
    ids={"id": IdBags.single(np.zeros(size, np.int32))},
    labels={"buy": np.ones(size, np.float32)},
    weights=np.ones(size, np.float32),
    groups={"user": np.zeros(size, np.int32)},
  )


FAULTS = {
  "one example too few": (
    lambda b: good(B - 1),
    r"dense: expected float32\[6, 2\] for 6 examples, got float32\[5, 2\]; mend what .* read\(\)",
  ),
  "a boolean label": (
    lambda b: b.replace(labels={"buy": b.labels["buy"] > 0}),
    r"label 'buy': expected float32\[6\] for 6 examples, got bool\[6\]",
  ),
  "a label of two dimensions": (
    lambda b: b.replace(labels={"buy": b.labels["buy"][:, None]}),
    r"label 'buy': expected float32\[6\] .* got float32\[6, 1\]",
  ),
  "an integer dense column": (
    lambda b: b.replace(dense=b.dense.astype(np.int32)),
    r"dense: expected float32\[6, 2\] .* got int32\[6, 2\]",
  ),
  "short weights": (
    lambda b: b.replace(weights=b.weights[:-1]),
    r"weights: expected float32\[6\] .* got float32\[5\]",
  ),
  "no group": (lambda b: b.replace(groups={}), r"group 'user' is missing; the batch has \[\]"),
  "a group of numbers": (
    lambda b: b.replace(groups={"user": np.zeros(B, np.float32)}),
    r"group 'user': expected int32\[6\] .* got float32\[6\]",
  ),
}


@dataclasses.dataclass(frozen=True)
class Faulty:
  fault: str
  spec: BatchSpec = SPEC
  size: int = 12

  def num_examples(self, split):
    return self.size

  def read(self, indices, split="train"):
    assert len(indices) == B
    return FAULTS[self.fault][0](good())


def test_a_good_batch_passes():
  check_batch(good(), SPEC)
  check_batch(good(), SPEC, np.arange(B))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_source_that_returns_something_else_is_told_so_by_name(fault):
  with pytest.raises(BadExampleError, match=FAULTS[fault][1]):
    next(data.batches(Faulty(fault), B, num_steps=1))


def test_a_train_split_without_examples_is_refused():
  with pytest.raises(BadExampleError, match="split 'train' holds no examples"):
    data.batches(Faulty("no group", size=0), B, num_steps=1)


def test_double_precision_is_told_to_become_single_and_keys_to_be_hashed():
  with pytest.raises(TypeError, match=r"Batch.dense: .* float64.*dense.astype\(np.float32\)"):
    good().replace(dense=np.ones((B, 2)))
  with pytest.raises(TypeError, match=r"IdBags.values: .* int64; .*features.hash_ids"):
    IdBags(values=np.zeros(B, np.int64))
