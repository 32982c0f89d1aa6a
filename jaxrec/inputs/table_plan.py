"""Which row of which array an id is.

Tables of one width, dtype and row optimizer are stacked into one array, so a batch costs one gather
a stack and not one a table. The plan is a value computed from the specs; it writes nothing back.

Source: the fused tables of TorchRec and jax-tpu-embedding. Unlike theirs, a stack here also stays
below 2^31 rows, so that row numbers are int32.
Read next: jaxrec/inputs/row_plan.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxrec import config


@dataclasses.dataclass(frozen=True)
class Stack:
  """Tables that share one array of ``num_rows`` x ``embedding_dim``.

  Table ``tables[k]`` occupies rows [offsets[k], offsets[k] + tables[k].vocab_size).
  """

  name: str
  tables: tuple[config.TableConfig, ...]
  offsets: tuple[int, ...]

  @property
  def embedding_dim(self) -> int:
    return self.tables[0].embedding_dim

  @property
  def dtype(self) -> str:
    return self.tables[0].dtype

  @property
  def optimizer(self) -> str | None:
    return self.tables[0].optimizer

  @property
  def num_rows(self) -> int:
    return self.offsets[-1] + self.tables[-1].vocab_size


class Place(NamedTuple):
  """A table in its stack, where its rows begin at ``offset``."""

  stack: Stack
  table: config.TableConfig
  offset: int


class Numbering(Protocol):
  """Which number a feature's id has as a row of its stack. A ``TablePlan`` is one."""

  @property
  def stacks(self) -> tuple[Stack, ...]:
    """All of them."""

  @property
  def is_sorted(self) -> bool:
    """Whether row plans list rows by number; otherwise as a batch first names them."""

  def features_of(self, stack: Stack) -> tuple[config.FeatureConfig, ...]:
    """The features that read the stack, in the order of its ``RowPlan.inverse``."""

  def num_rows(self, stack: Stack) -> int:
    """Numbers from there on are padding."""

  def rows_of(self, feature: config.FeatureConfig, ids: Any) -> Any:
    """Row numbers i32[N] of a feature's ids, NumPy's or JAX's."""

  def signature(self, stack: Stack) -> str:
    """Row plans of equal signatures are compatible."""


@dataclasses.dataclass(frozen=True)
class TablePlan:
  """Where every feature finds its rows: hashable, so it can be static in a jitted program."""

  features: tuple[config.FeatureConfig, ...]
  stacks: tuple[Stack, ...]

  @property
  def is_sorted(self) -> bool:
    return False

  def features_of(self, stack: Stack) -> tuple[config.FeatureConfig, ...]:
    """The stack's features in declaration order, the order of its ``RowPlan.inverse``."""
    names = {table.name for table in stack.tables}
    return tuple(f for f in self.features if f.table.name in names)

  def num_rows(self, stack: Stack) -> int:
    return stack.num_rows

  def rows_of(self, feature: config.FeatureConfig, ids: Any) -> Any:
    return ids + np.int32(self.offset(feature))

  def signature(self, stack: Stack) -> str:
    """Tables and features in order: row plans of equal signatures are compatible."""
    tables = (f"{t.name}@{o}" for t, o in zip(stack.tables, stack.offsets, strict=True))
    features = (feature.name for feature in self.features_of(stack))
    return f"{' '.join(tables)} <- {' '.join(features)}"

  def offset(self, feature: config.FeatureConfig) -> int:
    """The stacked row number of the feature's id 0."""
    place = self.place(feature.table.name)
    if place is None:
      raise KeyError(f"feature {feature.name!r}: table {feature.table.name!r} is in no stack")
    return place.offset

  def place(self, name: str) -> Place | None:
    """Where the table of this name lies; None: there is none."""
    for stack in self.stacks:
      for table, offset in zip(stack.tables, stack.offsets, strict=True):
        if table.name == name:
          return Place(stack, table, offset)
    return None

  def known_place(self, name: str) -> Place:
    """The same of a table that must be there: a KeyError names those that are."""
    place = self.place(name)
    if place is None:
      known = [table.name for stack in self.stacks for table in stack.tables]
      raise KeyError(f"no table {name!r}; known: {', '.join(known)}")
    return place


def plan_tables(
  features: Sequence[config.FeatureConfig],
  *,
  max_rows: int = config.MAX_ROWS_PER_STACK,
  kinds: Mapping[str, str] | None = None,
) -> TablePlan:
  """Stacks the tables of ``features``, first declared first.

  ``kinds`` keeps tables apart that are otherwise alike, by table a part of the stack's name.

  >>> from jaxrec.config import FeatureConfig, TableConfig
  >>> plan = plan_tables([FeatureConfig(n, TableConfig(n, v, 16)) for n, v in [("a", 3), ("b", 5)]])
  >>> [(s.name, s.offsets, s.num_rows) for s in plan.stacks]
  [('d16_float32', (0, 3), 8)]
  """
  config.check_features(features)
  tables = tuple({f.table.name: f.table for f in features}.values())
  groups: dict[str, list[list[config.TableConfig]]] = {}
  for table in tables:
    parts = [table.dtype, table.optimizer, (kinds or {}).get(table.name)]
    key = "_".join([f"d{table.embedding_dim}", *(part for part in parts if part)])
    stacks = groups.setdefault(key, [[]])
    if sum(t.vocab_size for t in stacks[-1]) + table.vocab_size > max_rows:
      stacks.append([])
    stacks[-1].append(table)
  return TablePlan(
    features=tuple(features),
    stacks=tuple(
      _stack(key if i == 0 else f"{key}_{i}", members)
      for key, stacks in groups.items()
      for i, members in enumerate(stacks)
      if members
    ),
  )


def _stack(name: str, members: list[config.TableConfig]) -> Stack:
  offsets, total = [], 0
  for table in members:
    offsets.append(total)
    total += table.vocab_size
  return Stack(name=name, tables=tuple(members), offsets=tuple(offsets))
