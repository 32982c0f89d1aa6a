"""Batches on the device before the step asks for them.

A thread packs each host batch into one buffer, sends it in one transfer and hands it over through a
queue; a jitted function, compiled once, unpacks it on the device. While the device computes on one
batch the next is already on its way.

On several devices each gets its own part, packed for itself, and of several processes each sends
the parts of its own devices.

A buffer given to ``device_put`` is never written again: on CPU the device array *is* that memory.

Source: flax.jax_utils.prefetch_to_device and grain's device_put, which transfer leaf by leaf;
packing makes it one transfer for the 60-odd leaves of a DLRM batch.
Read next: jaxrec/runs/loop.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import queue
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.inputs import batch as batch_lib


@dataclasses.dataclass(frozen=True)
class PackedLayout:
  """How the leaves of a batch lie in one u32 buffer: hashable, so each layout compiles once.

  With ``sharding``, of the buffers of all devices, shapes are those of one device's part.
  """

  treedef: Any
  shapes: tuple[tuple[int, ...], ...]
  dtypes: tuple[str, ...]
  sharding: jax.sharding.NamedSharding | None = None


def pack(
  batch: batch_lib.Batch, sharding: jax.sharding.NamedSharding | None = None
) -> tuple[np.ndarray, PackedLayout]:
  """Copies all leaves of a host batch into one fresh buffer u32[W]. Leaves must be 32 bits wide.

  With ``sharding`` the batch is joined of one part for each of its devices here, and the buffer is
  u32[parts, W].
  """
  leaves, treedef = jax.tree.flatten(batch)
  leaves = [np.asarray(leaf) for leaf in leaves]
  for leaf in leaves:
    if leaf.dtype.itemsize != 4:
      raise TypeError(f"prefetch: expected leaves of 32 bits, got {leaf.dtype}{list(leaf.shape)}")
  parts = 1 if sharding is None else len(sharding.addressable_devices)
  micro = batch.weights.ndim - 1  # micro-batches come before examples
  leaves = [leaf[None] if sharding is None else _by_part(leaf, parts, micro) for leaf in leaves]
  buffer = np.empty((parts, sum(leaf[0].size for leaf in leaves)), np.uint32)
  start = 0
  for leaf in leaves:
    flat = np.ascontiguousarray(leaf).reshape(parts, -1)
    buffer[:, start : start + flat.shape[1]] = flat.view(np.uint32)
    start += flat.shape[1]
  shapes = tuple(leaf.shape[1:] for leaf in leaves)
  layout = PackedLayout(treedef, shapes, tuple(leaf.dtype.name for leaf in leaves), sharding)
  return (buffer[0] if sharding is None else buffer), layout


def _by_part(leaf: np.ndarray, parts: int, axis: int) -> np.ndarray:
  """[..., parts * n, ...] to [parts, ..., n, ...]."""
  shape = (*leaf.shape[:axis], parts, leaf.shape[axis] // parts, *leaf.shape[axis + 1 :])
  return np.moveaxis(leaf.reshape(shape), axis, 0)


@functools.partial(jax.jit, static_argnums=1)
def unpack(buffer: jax.Array, layout: PackedLayout) -> batch_lib.Batch:
  """The batch that ``pack`` packed, bit for bit, on the device or on all of them."""
  if layout.sharding is None:
    return _unpack(buffer, layout)
  spec = layout.sharding.spec
  weights = jax.tree.unflatten(layout.treedef, layout.shapes).weights
  out_spec = jax.P(*(None,) * (len(weights) - 1), *spec)  # micro-batches come before examples
  run = jax.shard_map(
    lambda part: _unpack(part[0], layout),
    mesh=layout.sharding.mesh,
    in_specs=spec,
    out_specs=out_spec,
    check_vma=False,
  )
  found: batch_lib.Batch = run(buffer)
  return found


def _unpack(buffer: jax.Array, layout: PackedLayout) -> batch_lib.Batch:
  leaves, start = [], 0
  for shape, dtype in zip(layout.shapes, layout.dtypes, strict=True):
    stop = start + math.prod(shape)
    words = buffer[start:stop].reshape(shape)
    leaves.append(jax.lax.bitcast_convert_type(words, jnp.dtype(dtype)))
    start = stop
  return jax.tree.unflatten(layout.treedef, leaves)


def put(
  batch: batch_lib.Batch, sharding: jax.sharding.NamedSharding | None = None
) -> tuple[jax.Array, PackedLayout]:
  """Sends a host batch on its way, to be unpacked there: to one device, or its parts to all."""
  buffer, layout = pack(batch, sharding)
  if sharding is None:
    return jax.device_put(buffer), layout
  return jax.make_array_from_process_local_data(sharding, buffer), layout


@dataclasses.dataclass
class PrefetchStats:
  """Counts of a run. ``num_ready`` requests found a batch already transferred or in flight."""

  num_batches: int = 0
  num_transfers: int = 0
  num_ready: int = 0
  wait_seconds: float = 0.0


class Prefetcher(Iterator[batch_lib.Batch]):
  """An iterator of device batches, at most ``depth`` of them ahead; made by ``prefetch``.

  Use it as a context manager, or ``close()`` it, to stop its thread, and its input, early; one
  that is dropped stops by itself.
  """

  def __init__(
    self,
    host_batches: Iterable[batch_lib.Batch],
    depth: int,
    sharding: jax.sharding.NamedSharding | None = None,
  ):
    self.stats = PrefetchStats()
    self._host_batches = host_batches
    # The thread holds one more batch than the queue does, while it waits to put it.
    self._queue: queue.Queue[Any] = queue.Queue(maxsize=max(1, depth - 1))
    self._is_closed = threading.Event()
    # The thread knows its queue and not its Prefetcher, which can so be dropped while it runs.
    self._thread = threading.Thread(
      target=_fill,
      args=(host_batches, sharding, self._queue, self._is_closed, self.stats),
      name="jaxrec-prefetch",
      daemon=True,
    )
    self._thread.start()
    weakref.finalize(self, self._is_closed.set)

  def __iter__(self) -> Prefetcher:
    return self

  def __next__(self) -> batch_lib.Batch:
    if self._is_closed.is_set():
      raise StopIteration
    is_ready = not self._queue.empty()
    started = time.perf_counter()
    item = self._queue.get()
    self.stats.wait_seconds += time.perf_counter() - started
    if isinstance(item, BaseException):
      self.close()
      raise item
    self.stats.num_batches += 1
    self.stats.num_ready += is_ready
    return unpack(*item)

  def close(self) -> None:
    """Stops the thread; batches not yet asked for are lost, and were not trained."""
    self._is_closed.set()
    while self._thread.is_alive():
      try:
        self._queue.get_nowait()
      except queue.Empty:
        self._thread.join(timeout=0.01)
    if hasattr(self._host_batches, "close"):  # worker processes end with it
      self._host_batches.close()

  def __enter__(self) -> Prefetcher:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def _fill(
  host_batches: Iterable[batch_lib.Batch],
  sharding: jax.sharding.NamedSharding | None,
  filled: queue.Queue[Any],
  is_closed: threading.Event,
  stats: PrefetchStats,
) -> None:
  def hand_over(item: Any) -> bool:
    while not is_closed.is_set():
      try:
        filled.put(item, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  try:
    for batch in host_batches:
      sent = put(batch, sharding)
      stats.num_transfers += 1
      if not hand_over(sent):
        return
    hand_over(StopIteration())
  except BaseException as error:  # handed to the consumer, who raises it
    hand_over(error)


def prefetch(
  host_batches: Iterable[batch_lib.Batch],
  depth: int = 2,
  sharding: jax.sharding.NamedSharding | None = None,
) -> Prefetcher:
  """Device batches from any iterable of host ``Batch``; up to ``depth`` ahead of the consumer.

  Args:
    host_batches: batches with NumPy leaves, 32 bits each.
    depth: batches on the device or on their way there; at least 2 keeps one in flight.
    sharding: over all axes of a mesh, of batches joined of one part a device
      (``Sharded.batches``); None: one device.

  Raises:
    ValueError: depth < 2.
  """
  if depth < 2:
    raise ValueError(f"prefetch: depth must be at least 2 to keep a batch in flight, got {depth}")
  return Prefetcher(host_batches, depth, sharding)
