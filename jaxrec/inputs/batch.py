"""What one training step reads.

A ``Batch`` is a frozen pytree of fixed shapes: dense numbers, jagged bags of ids, labels and
weights. On the host its leaves are NumPy arrays; inside ``jit`` they are JAX arrays; nothing else
differs.

Source: design section 4.
Read next: jaxrec/inputs/row_plan.py, or jaxrec/inputs/id_bags.py for what a bag is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import config
from jaxrec.inputs import id_bags

Array = Any  # np.ndarray on the host, jax.Array inside jit


@flax.struct.dataclass
class RowPlan:
  """Which rows of one stack a batch touches, each once.

  Attributes:
    rows: i32[U] stacked row numbers, unique, in order of first occurrence; U is the number of ids
      or of the stack's rows, whichever is less. Slots past ``num_rows`` hold distinct numbers past
      the end of the table: they read zeros and write nothing.
    inverse: i32[N]: for each id of the stack's features, end to end in declaration order, its place
      in ``rows``; U (past the end) for padding.
    num_rows: i32[]: how many of ``rows`` are real.
    stack: ``TablePlan.signature`` of the stack it was made for; static.
  """

  rows: Array
  inverse: Array
  num_rows: Array
  stack: str = flax.struct.field(pytree_node=False, default="")


@flax.struct.dataclass
class Batch:
  """B examples.

  Attributes:
    dense: f32[B, I] numeric features.
    ids: the categorical features by name.
    labels: f32[B] in {0, 1} by task name.
    weights: f32[B]; 0 marks padding.
    groups: i32[B] by name, for GAUC and slices; never a model input.
    rows: one RowPlan a stack, made on the host ahead of the step; None: duplicates are removed in
    jit.
  """

  dense: Array
  ids: dict[str, id_bags.IdBags]
  labels: dict[str, Array]
  weights: Array
  groups: dict[str, Array] = flax.struct.field(default_factory=dict)
  rows: dict[str, RowPlan] | None = None

  def __post_init__(self) -> None:
    id_bags.refuse_wide(self.dense, "Batch.dense")
    id_bags.refuse_wide(self.weights, "Batch.weights")
    for field in ("labels", "groups"):
      for name, array in getattr(self, field).items():
        id_bags.refuse_wide(array, f"Batch.{field}[{name!r}]")

  @property
  def batch_size(self) -> int:
    return self.weights.shape[0]


@dataclasses.dataclass(frozen=True)
class BatchSpec:
  """What every batch of a data set holds: all that a model and its tables need to be built."""

  features: tuple[config.FeatureConfig, ...]
  num_dense: int
  labels: tuple[str, ...] = ("click",)
  groups: tuple[str, ...] = ()
  dense_names: tuple[str, ...] = ()
  crosses: tuple[str, ...] = ()  # which of the features are crosses of others

  def __post_init__(self) -> None:
    config.check_features(self.features)


def stack_batches(batches: Sequence[Batch]) -> Batch:
  """Joins host batches of one shape along a new leading axis, for gradient accumulation."""
  return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def join_parts(parts: Sequence[Batch]) -> Batch:
  """One batch of host batches, each the part of one device: all arrays end to end.

  Bags and row plans count within their part, so only devices that have a part each can read it.
  """
  return jax.tree.map(lambda *leaves: np.concatenate([np.atleast_1d(a) for a in leaves]), *parts)


def is_real(batch: Batch, feature: str) -> Array:
  """bool[N]: which ids of a feature belong to an example of weight > 0, so touch rows.

  An example of weight 0 is padding: it must not move a row, nor age a row's moments.
  """
  bags = batch.ids[feature]
  xp = np if isinstance(bags.values, np.ndarray) else jnp
  weighs = xp.asarray(batch.weights) > 0
  if bags.row_splits is None:
    return weighs
  return xp.append(weighs, False)[bags.bag_ids()]
