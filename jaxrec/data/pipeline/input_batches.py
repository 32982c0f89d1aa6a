"""From a source of examples to an iterator of batches.

The order of examples is a function of (seed, epoch, global index): the whole data set is permuted,
block by block where it is read in blocks, and then each device takes its part of every global
batch. The position in it is therefore one integer, the examples trained so far, and any number of
workers and processes can go on from it. All host work ahead of the step happens in here, in grain's
threads or worker processes: reading, hashing, vocabulary look-up, duplicate removal.

Source: grain's checkpointable datasets; here the iterator needs no state of its own, because
element k is computed from k alone.
Read next: jaxrec/data/pipeline/prefetch.py.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Protocol

import grain
import numpy as np

from jaxrec.data.pipeline import shuffle
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import batch_checks, row_plan, table_plan

_ENDLESS_STEPS = 2**40


class Source(Protocol):
  """What a data set must offer: random access to examples by number.

  One that lies on disk in blocks of rows, each read whole, has a fourth member, an int
  ``block_rows``: its examples are then shuffled block by block (``shuffle.permuted_by_block``).
  """

  @property
  def spec(self) -> batch_lib.BatchSpec:
    """What its batches hold."""

  def num_examples(self, split: str) -> int | None:
    """Examples in a split; None when it has no end."""

  def read(self, indices: np.ndarray, split: str = "train") -> batch_lib.Batch:
    """The examples numbered ``indices: i64[n]``, as a host batch without a row plan."""


@dataclasses.dataclass(frozen=True)
class InputOptions:
  """How batches are made; none of it changes what they hold.

  Attributes:
    num_workers: worker processes; 0 reads in threads of this one.
    num_threads: reader threads in each process.
    buffer_batches: batches kept ready.
    parts: which parts of each global batch to read, of ``num_parts``, one for each of this
      process's devices; each has a row plan of its own, and they are joined
      (``features.join_parts``). None: the whole batch.
    num_parts: in how many a global batch is cut, in order.
  """

  num_workers: int = 0
  num_threads: int = 2
  buffer_batches: int = 4
  parts: tuple[int, ...] | None = None
  num_parts: int = 1


def batches(
  source: Source,
  batch_size: int,
  *,
  num_steps: int | None = None,
  split: str = "train",
  start: int = 0,
  seed: int = 0,
  plan: table_plan.Numbering | None = None,
  options: InputOptions = InputOptions(),
) -> Iterator[batch_lib.Batch]:
  """Host batches of ``batch_size`` examples (of the global batch), with their row plans.

  ``train`` is shuffled anew each epoch and has no end of its own. Other splits are read once, in
  order; the last batch is filled up with examples of weight 0.

  Args:
    source: the examples.
    batch_size: of the global batch; ``options.num_parts`` must divide it.
    num_steps: batches to yield; None: all (``train``: endless).
    split: ``train``, or a split read in order.
    start: examples already consumed; the first batch begins at this one.
    seed: of the shuffle.
    plan: which rows ids are; None: as the tables of ``source.spec`` have them on one device.
    options: workers, threads and parts.
  """
  if batch_size < 1 or batch_size % options.num_parts:
    raise ValueError(
      f"batch_size {batch_size} must be positive and divide by {options.num_parts}, a part for "
      "each device or process"
    )
  size = source.num_examples(split)
  if split != "train" and size is not None:
    remaining = max(0, -(-(size - start) // batch_size))
    num_steps = remaining if num_steps is None else min(num_steps, remaining)
  if split == "train" and size == 0:
    raise batch_checks.BadExampleError(
      "split 'train' holds no examples: there is nothing to train on"
    )
  plan = table_plan.plan_tables(source.spec.features) if plan is None else plan
  load = _Load(source, plan, split, batch_size, start, seed, options)
  dataset = grain.MapDataset.range(_ENDLESS_STEPS if num_steps is None else num_steps).map(load)
  reader = dataset.to_iter_dataset(
    grain.ReadOptions(num_threads=options.num_threads, prefetch_buffer_size=options.buffer_batches)
  )
  if not options.num_workers:
    return iter(reader)
  # Through pipes: a batch is many small arrays, and a container has 64 MiB of shared memory.
  by_pipe = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
  workers = grain.MultiprocessingOptions(
    num_workers=options.num_workers, per_worker_buffer_size=options.buffer_batches
  )
  reader = grain.experimental.WithOptionsIterDataset(reader, by_pipe)
  return _from_workers(reader.mp_prefetch(workers, _follow_trainer))


def _from_workers(reader: grain.IterDataset) -> Iterator[batch_lib.Batch]:
  """Yields what worker processes read, and ends them when it is closed.

  Ctrl-C in a terminal reaches every process of the run. The workers, which inherit the blocked
  signal, must survive it: the trainer still wants to finish its step and save.
  """
  resource_tracker.ensure_running()  # here, because it unblocks the signal as it starts
  batches = iter(reader)
  try:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      first = list(itertools.islice(batches, 1))
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    yield from itertools.chain(first, batches)
  finally:
    batches.close()


def _follow_trainer(worker: int, num_workers: int) -> None:
  """Runs in each worker, which by itself would survive its trainer's kill, and ends it then."""
  del worker, num_workers
  trainer = multiprocessing.parent_process()

  def follow() -> None:
    if trainer is not None:
      trainer.join()
      os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


class _Load:
  """Step number -> batch. A class, so that it pickles to worker processes."""

  def __init__(
    self,
    source: Source,
    plan: table_plan.Numbering,
    split: str,
    batch_size: int,
    start: int,
    seed: int,
    options: InputOptions,
  ):
    self._source, self._plan, self._split, self._seed = source, plan, split, seed
    self._size = source.num_examples(split)
    self._permuted = shuffle.permuted
    if (block_rows := getattr(source, "block_rows", None)) is not None:
      self._permuted = functools.partial(shuffle.permuted_by_block, block_rows=block_rows)
    self._batch_size, self._start = batch_size, start
    self._part_size = batch_size // options.num_parts
    self._parts = options.parts

  def __call__(self, step: int) -> batch_lib.Batch:
    first = self._start + step * self._batch_size
    if self._parts is None:
      return self._read(first)
    return batch_lib.join_parts([self._read(first + i * self._part_size) for i in self._parts])

  def _read(self, first: int) -> batch_lib.Batch:
    positions = np.arange(first, first + self._part_size, dtype=np.int64)
    indices = self._indices(positions)
    batch = self._source.read(indices, self._split)
    batch_checks.check_batch(batch, self._source.spec, indices)
    if self._split != "train" and self._size is not None and positions[-1] >= self._size:
      batch = dataclasses.replace(
        batch, weights=np.where(positions < self._size, batch.weights, np.float32(0))
      )
    try:
      return row_plan.plan_rows(batch, self._plan)
    except ValueError as error:
      raise batch_checks.BadExampleError(f"{error} (split {self._split!r})") from error

  def _indices(self, positions: np.ndarray) -> np.ndarray:
    if self._size is None:
      return positions
    if self._split != "train":
      return np.minimum(positions, self._size - 1)
    epochs, within = np.divmod(positions, self._size)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
      chosen = epochs == epoch
      indices[chosen] = self._permuted(
        within[chosen], num_examples=self._size, seed=self._seed, epoch=int(epoch)
      )
    return indices
