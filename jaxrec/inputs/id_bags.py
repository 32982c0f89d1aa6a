"""The jagged type: the ids of one feature, bag after bag.

All ids lie end to end in one array of static capacity; ``row_splits`` says where each example's bag
begins, and what is past the last one is marked as padding. A single-valued feature needs no splits.
On the host the arrays are NumPy's, inside ``jit`` they are JAX's; nothing else differs.

Ids are int32 row numbers of one table. Raw 64-bit keys stay on the host (or travel as two uint32
words, see hashing.py): JAX would silently truncate an int64, so one that reaches a batch is an
error.

Source: TorchRec's KeyedJaggedTensor and keras-rs's ragged inputs; unlike them, capacity is static
and padding is marked, so the same value works under ``jit``.
Read next: jaxrec/inputs/batch.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

Array = Any  # np.ndarray on the host, jax.Array inside jit
PAD_ID = -1  # a value that stands for no id: reads as a zero row and receives no gradient


def refuse_wide(array: Array, what: str) -> None:
  """Raises TypeError for a NumPy array of 64-bit values, which JAX would truncate."""
  if isinstance(array, np.ndarray) and array.dtype.itemsize == 8:
    instead = "Map raw 64-bit keys to int32 rows first: features.hash_ids, or a vocabulary."
    if array.dtype.kind == "f":
      instead = f"Make them float32: {what.rpartition('.')[2]}.astype(np.float32)."
    raise TypeError(
      f"{what}: expected 32-bit values, got {array.dtype}; JAX would truncate them silently. "
      f"{instead}"
    )


@flax.struct.dataclass
class IdBags:
  """The ids of one feature for B examples.

  Attributes:
    values: i32[N] ids end to end, N the static capacity; past ``row_splits[-1]`` they are PAD_ID.
      For a single-valued feature i32[B], PAD_ID where the id is missing.
    row_splits: i32[B + 1], example b holds values[row_splits[b]:row_splits[b + 1]]; None for a
      single-valued feature.
    weights: f32[N] or None: one weight an id.
  """

  values: Array
  row_splits: Array | None = None
  weights: Array | None = None

  def __post_init__(self) -> None:
    refuse_wide(self.values, "IdBags.values")
    refuse_wide(self.row_splits, "IdBags.row_splits")
    refuse_wide(self.weights, "IdBags.weights")

  @property
  def capacity(self) -> int:
    """N, the most ids these arrays can hold."""
    return self.values.shape[0]

  @property
  def batch_size(self) -> int:
    return self.capacity if self.row_splits is None else self.row_splits.shape[0] - 1

  def lengths(self) -> Array:
    """i32[B]: ids in each bag."""
    if self.row_splits is None:
      return (self.values >= 0).astype(np.int32)
    return self.row_splits[1:] - self.row_splits[:-1]

  def bag_ids(self) -> Array:
    """i32[N]: each value's example; B past the last bag's end. Works under ``jit``."""
    is_host = isinstance(self.values, np.ndarray)
    positions = (np if is_host else jnp).arange(self.capacity, dtype=np.int32)
    if self.row_splits is None:
      return positions
    if is_host:
      return (np.searchsorted(self.row_splits, positions, side="right") - 1).astype(np.int32)
    # How many bags have ended. A binary search is a loop of kernels there.
    ends = jnp.zeros(self.capacity, jnp.int32).at[self.row_splits[1:]].add(1, mode="drop")
    return jnp.cumsum(ends)

  @classmethod
  def single(cls, values: Sequence[int] | np.ndarray) -> IdBags:
    """One id an example (PAD_ID where missing).

    >>> IdBags.single([4, -1, 2]).lengths()
    array([1, 0, 1], dtype=int32)
    """
    return cls(values=_to_int32(values, "IdBags.single"))

  @classmethod
  def from_lists(
    cls,
    bags: Sequence[Sequence[int]],
    *,
    capacity: int | None = None,
    weights: Sequence[Sequence[float]] | None = None,
  ) -> IdBags:
    """Bags given as Python lists, padded to ``capacity`` ids (default: just what they hold).

    >>> IdBags.from_lists([[7, 8], [], [9]], capacity=4).row_splits
    array([0, 2, 2, 3], dtype=int32)
    """
    lengths = np.fromiter(map(len, bags), np.int32)
    flat = _to_int32([i for bag in bags for i in bag], "IdBags.from_lists")
    scales = None
    if weights is not None:
      if [len(bag) for bag in weights] != lengths.tolist():
        raise ValueError(
          f"IdBags.from_lists: expected one weight an id, bags of {lengths.tolist()} ids came with "
          f"{[len(bag) for bag in weights]} weights"
        )
      scales = np.asarray([w for bag in weights for w in bag], np.float32)
    return cls.from_lengths(flat, lengths, capacity=capacity, weights=scales)

  @classmethod
  def from_lengths(
    cls,
    values: np.ndarray,
    lengths: np.ndarray,
    *,
    capacity: int | None = None,
    weights: np.ndarray | None = None,
  ) -> IdBags:
    """Ids already end to end, ``lengths`` i32[B] of them to each example."""
    if np.min(lengths, initial=0) < 0:
      raise ValueError(f"IdBags.from_lengths: a bag of length {np.min(lengths)}")
    row_splits = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=row_splits[1:])
    count = int(row_splits[-1])
    if len(values) and np.min(values) < 0:
      raise ValueError(f"IdBags: a bag holds id {np.min(values)}; leave absent ids out of the bag")
    if count != len(values) or (weights is not None and len(weights) != count):
      raise ValueError(
        f"IdBags.from_lengths: lengths add up to {count}, values or weights to another number"
      )
    capacity = count if capacity is None else capacity
    if count > capacity:
      raise ValueError(
        f"IdBags.from_lengths: {count} ids do not fit the capacity of {capacity}; raise "
        "ids_per_bag of the feature (capacity = batch size x ids_per_bag); ids are never dropped"
      )
    padded = np.full(capacity, PAD_ID, np.int32)
    padded[:count] = _to_int32(values, "IdBags.from_lengths")
    if weights is not None:
      weights = np.concatenate(
        [np.asarray(weights, np.float32), np.zeros(capacity - count, np.float32)]
      )
    return cls(values=padded, row_splits=row_splits, weights=weights)

  @classmethod
  def from_dense(
    cls, ids: np.ndarray, *, capacity: int | None = None, weights: np.ndarray | None = None
  ) -> IdBags:
    """A matrix [B, L] in which negative entries are absent.

    >>> IdBags.from_dense(np.array([[3, -1], [4, 5]], np.int32)).values
    array([ 3,  4,  5, -1], dtype=int32)
    """
    present = ids >= 0
    return cls.from_lengths(
      ids[present],
      present.sum(axis=1, dtype=np.int32),
      capacity=ids.size if capacity is None else capacity,
      weights=None if weights is None else np.asarray(weights, np.float32)[present],
    )

  def to_lists(self) -> list[list[int]]:
    """Host only: the bags as Python lists, without padding."""
    values = np.asarray(self.values)
    if self.row_splits is None:
      return [[int(v)] if v >= 0 else [] for v in values]
    splits = np.asarray(self.row_splits)
    return [values[a:b].tolist() for a, b in zip(splits[:-1], splits[1:], strict=True)]


def _to_int32(values: Sequence[int] | np.ndarray, what: str) -> np.ndarray:
  array = np.asarray(values)
  if array.size == 0:
    return array.astype(np.int32)
  if array.dtype.kind not in "iu":
    raise TypeError(f"{what}: expected integer ids, got {array.dtype}")
  if array.dtype != np.int32:
    refuse_wide(values, what)
    if array.max() > np.iinfo(np.int32).max or array.min() < np.iinfo(np.int32).min:
      raise TypeError(
        f"{what}: id {array.max()} does not fit int32; hash or look up raw keys first"
      )
  return array.astype(np.int32, copy=False)
