"""The order of examples is a function of (seed, epoch, index), whoever reads them."""

from __future__ import annotations

import dataclasses
import multiprocessing
import re

import jax
import numpy as np
import pytest

from jaxrec import data
from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.data import pipeline
from jaxrec.features import BadExampleError, Batch, BatchSpec, IdBags
from jaxrec.inputs import batch as batch_lib

SIZE = 37


@dataclasses.dataclass(frozen=True)
class Numbered:
  """A data set whose example i says that it is example i."""

  broken: str = ""

  @property
  def spec(self):
    features = (FeatureConfig("id", TableConfig("id", SIZE, 4)),)
    return BatchSpec(features, num_dense=1, dense_names=("I1",))

  def num_examples(self, split):
    return SIZE

  def read(self, indices, split="train"):
    dense = indices[:, None].astype(np.float32)
    labels = (indices % 2).astype(np.float32)
    ids = indices.astype(np.int32)
    if self.broken == "dense":
      dense = np.where(dense == 5, np.nan, dense)
    if self.broken == "label":
      labels = np.where(indices == 5, -1, labels).astype(np.float32)
    if self.broken == "id":
      ids = np.where(indices == 5, SIZE, ids).astype(np.int32)
    return Batch(
      dense=dense,
      ids={"id": IdBags.single(ids)},
      labels={"click": labels},
      weights=np.ones(len(indices), np.float32),
    )


def order(batches):
  return np.concatenate([b.dense[:, 0].astype(int) for b in batches]).tolist()


def test_an_epoch_holds_every_example_once_and_the_next_one_in_another_order():
  stream = order(data.batches(Numbered(), 10, num_steps=3 * SIZE // 10 + 1))
  epochs = [stream[i * SIZE : (i + 1) * SIZE] for i in range(3)]
  assert all(sorted(epoch) == list(range(SIZE)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3
  assert epochs[0] != list(range(SIZE))
  assert order(data.batches(Numbered(), 10, num_steps=1, seed=1)) != stream[:10]


@pytest.mark.parametrize("start", [0, 7, 50])
def test_any_start_and_batch_size_continue_the_same_stream(start):
  stream = order(data.batches(Numbered(), 12, num_steps=10))
  assert order(data.batches(Numbered(), 6, num_steps=8, start=start)) == stream[start : start + 48]


def test_processes_read_their_parts_of_the_global_batch():
  whole = list(data.batches(Numbered(), 12, num_steps=5))
  parts = [
    list(
      data.batches(
        Numbered(),
        12,
        num_steps=5,
        options=pipeline.InputOptions(parts=(p,), num_parts=3),
      )
    )
    for p in range(3)
  ]
  for step, batch in enumerate(whole):
    assert order([batch]) == order([parts[p][step] for p in range(3)])
  two = pipeline.InputOptions(parts=(0, 2), num_parts=3)
  for step, batch in enumerate(data.batches(Numbered(), 12, num_steps=5, options=two)):
    joined = batch_lib.join_parts([parts[0][step], parts[2][step]])
    jax.tree.map(np.testing.assert_array_equal, batch, joined)
    assert all(plan.num_rows.shape == (2,) for plan in batch.rows.values())
  with pytest.raises(ValueError, match="batch_size 10 must be positive and divide by 4, a part"):
    data.batches(Numbered(), 10, options=pipeline.InputOptions(num_parts=4))


def test_worker_processes_and_threads_read_the_same_batches():
  threads = list(data.batches(Numbered(), 8, num_steps=6))
  options = pipeline.InputOptions(num_workers=2, buffer_batches=2)
  workers = list(data.batches(Numbered(), 8, num_steps=6, options=options))
  assert len(threads) == len(workers) == 6
  for a, b in zip(threads, workers, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_evaluation_split_is_read_once_in_order_and_filled_up_with_weight_zero():
  batches = list(data.batches(Numbered(), 10, split="test"))
  assert len(batches) == 4
  weights = np.concatenate([b.weights for b in batches])
  assert weights.sum() == SIZE and (weights[:SIZE] == 1).all()
  assert order(batches)[:SIZE] == list(range(SIZE))
  (plan,) = batches[-1].rows.values()
  assert int(plan.num_rows) == SIZE - 30  # the filling touches no row
  assert list(data.batches(Numbered(), 10, split="test", start=SIZE)) == []


@pytest.mark.parametrize(
  ("broken", "message"),
  [
    ("dense", r"dense column 0 \('I1'\): nan in example 5 .*fill missing values"),
    ("label", r"label 'click': expected 0 or 1 \(is this an unlabeled test file\?\), got -1.0"),
  ],
)
def test_a_bad_example_is_named_before_it_is_trained(broken, message):
  with pytest.raises(BadExampleError, match=message):
    list(data.batches(Numbered(broken=broken), SIZE, split="test"))


@pytest.mark.parametrize("broken", ["dense", "label", "id"])
def test_a_bad_example_is_named_by_its_number_in_the_data_not_its_place_in_the_shuffle(broken):
  place = order(data.batches(Numbered(), SIZE, num_steps=1)).index(5)
  assert place != 5
  with pytest.raises(BadExampleError) as refused:
    list(data.batches(Numbered(broken=broken), SIZE, num_steps=1))
  found = {"id": rf"feature 'id': id {SIZE} is out of range.* \(split 'train'\)"}
  assert re.search(found.get(broken, "in example 5 "), str(refused.value))


def test_a_bad_example_is_named_across_worker_processes_which_then_end():
  options = pipeline.InputOptions(num_workers=2)
  batches = data.batches(Numbered(broken="label"), SIZE, num_steps=9, options=options)
  with pytest.raises(BadExampleError, match=r"label 'click': .*got -1.0 in example 5 "):
    next(batches)
  assert multiprocessing.active_children() == []


def test_worker_processes_end_when_their_batches_are_closed():
  batches = data.batches(Numbered(), 8, options=pipeline.InputOptions(num_workers=2))
  next(batches)
  assert len(multiprocessing.active_children()) == 2
  batches.close()
  assert multiprocessing.active_children() == []
