"""One buffer, one transfer, one compilation; a batch always on its way."""

from __future__ import annotations

import threading

import jax
import numpy as np
import pytest

from jaxrec import data
from jaxrec.data.pipeline.prefetch import pack, unpack
from jaxrec.features import Batch, IdBags, RowPlan


def batch(seed=0, size=6):
  rng = np.random.default_rng(seed)
  weighted = IdBags.from_lists([[1, 2], [], [3]] * (size // 3), capacity=2 * size,
                               weights=[[0.5, -0.0], [], [np.inf]] * (size // 3))  # fmt: skip
  return Batch(
    dense=rng.normal(size=(size, 3)).astype(np.float32),
    ids={"a": IdBags.single(rng.integers(-1, 9, size).astype(np.int32)), "w": weighted},
    labels={"click": (rng.random(size) < 0.5).astype(np.float32)},
    weights=np.ones(size, np.float32),
    groups={"user": rng.integers(0, 3, size).astype(np.int32)},
    rows={
      "d4": RowPlan(
        rows=rng.integers(0, 9, size).astype(np.int32),
        inverse=rng.integers(0, 9, size).astype(np.int32),
        num_rows=np.asarray(4, np.int32),
      )
    },
  )


def same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    x, y = np.asarray(x), np.asarray(y)
    assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def test_packing_and_unpacking_keep_every_bit_and_compile_once():
  unpack.clear_cache()  # other tests of this process may have unpacked such a batch
  for seed in range(3):
    buffer, layout = pack(batch(seed))
    assert buffer.dtype == np.uint32 and buffer.ndim == 1
    same_bits(unpack(buffer, layout), batch(seed))
  assert unpack._cache_size() == 1
  without_rows = batch().replace(rows=None)
  same_bits(unpack(*pack(without_rows)), without_rows)


def test_a_wide_leaf_is_refused():
  with pytest.raises(TypeError, match="32 bits, got int64"):
    pack(batch().replace(rows={"d4": np.zeros(3, np.int64)}))


def test_each_batch_has_a_buffer_of_its_own():
  found = [pack(b)[0] for b in [batch(0)] * 3]
  assert len({buffer.ctypes.data for buffer in found}) == 3


def test_any_iterable_of_batches_arrives_in_order_in_one_transfer_each():
  wanted = [batch(seed) for seed in range(7)]
  feed = data.prefetch(wanted, depth=3)
  for ours, theirs in zip(feed, wanted, strict=True):
    same_bits(ours, theirs)
  assert feed.stats.num_transfers == feed.stats.num_batches == 7


class Source:
  """Counts what was asked of it, and lets a test wait for it."""

  def __init__(self, size):
    self.size, self.given, self.condition = size, 0, threading.Condition()

  def __iter__(self):
    for seed in range(self.size):
      with self.condition:
        self.given += 1
        self.condition.notify_all()
      yield batch(seed)

  def wait_for(self, count):
    with self.condition:
      assert self.condition.wait_for(lambda: self.given >= count, timeout=30), self.given


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_batches_are_fetched_ahead_and_never_further_than_asked(depth):
  source = Source(20)
  with data.prefetch(source, depth=depth) as feed:
    for taken in range(5):
      # Unasked, `depth` batches come to lie ahead of the consumer.
      source.wait_for(taken + depth)
      assert source.given <= taken + depth
      next(feed)
    assert feed.stats.num_ready == 5  # the consumer always found its batch in flight


def test_an_error_in_the_source_reaches_the_consumer_after_the_batches_before_it():
  def source():
    yield batch()
    raise ValueError("the disk is on fire")

  feed = data.prefetch(source())
  next(feed)
  with pytest.raises(ValueError, match="on fire"):
    next(feed)
  with pytest.raises(StopIteration):
    next(feed)


def test_closing_stops_the_thread_of_an_endless_source():
  def endless():
    while True:
      yield batch()

  feed = data.prefetch(endless())
  next(feed)
  feed.close()
  assert not feed._thread.is_alive()
  with pytest.raises(StopIteration):
    next(feed)


def test_a_prefetcher_that_is_dropped_ends_its_thread_and_its_source():
  ended = threading.Event()

  def endless():
    try:
      while True:
        yield batch()
    finally:
      ended.set()

  before = set(threading.enumerate())
  for _ in data.prefetch(endless()):
    (thread,) = set(threading.enumerate()) - before
    break
  thread.join(timeout=10)
  assert not thread.is_alive()
  assert ended.wait(timeout=10)


def test_a_source_may_reuse_its_arrays_as_soon_as_it_is_asked_again():
  wanted = [batch(seed) for seed in range(6)]

  def source():
    one = jax.tree.map(np.copy, wanted[0])
    for values in wanted:
      jax.tree.map(np.copyto, one, values)
      yield one
    jax.tree.map(lambda leaf: leaf.fill(77), one)

  for ours, theirs in zip(list(data.prefetch(source(), depth=4)), wanted, strict=True):
    same_bits(ours, theirs)


def test_closing_closes_its_source_and_a_list_needs_none():
  closed = []

  def source():
    try:
      while True:
        yield batch()
    finally:
      closed.append(True)

  with data.prefetch(source()) as feed:
    next(feed)
    assert not closed
  assert closed == [True]
  with data.prefetch([batch(), batch()]) as feed:
    next(feed)


def test_a_depth_that_leaves_nothing_in_flight_is_refused():
  with pytest.raises(ValueError, match="depth must be at least 2"):
    data.prefetch([], depth=1)
