"""Where rows lie, as text: what a checkpoint says of its arrays.

Arrays are saved as they lie in memory, whatever the layout. This map says which row of which array
an id is, so that whoever reads them, under another mesh or plan, finds every row.

*Read next*: jaxrec/runs/checkpoints/restore_rows.py, which brings rows from one map to another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxrec.inputs import table_plan
from jaxrec.sharding import plan as plan_lib
from jaxrec.sharding import sharded as sharded_lib
from jaxrec.tables import placement
from jaxrec.tables.layouts import packed_rows


@dataclasses.dataclass(frozen=True)
class MappedTable:
  """A table in the arrays of its stack.

  Attributes:
    stack: its name.
    num_shards: of the stack.
    rows_per_shard: that each shard has.
    columns: that each device has of a row.
    in_lines: whether rows share lines of 128 lanes (``tables.Lines``).
    vocab_size: rows of the table.
    spread: where they are.
  """

  stack: str
  num_shards: int
  rows_per_shard: int
  columns: int
  in_lines: bool
  vocab_size: int
  spread: plan_lib.Spread

  def rows_of(self, ids: np.ndarray) -> np.ndarray:
    """i64[N] row numbers of ids."""
    return self.spread.rows_of(ids.astype(np.int64), self.rows_per_shard)

  def pieces(self, most_rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row number, ids i64[n]) of all runs of up to ``most_rows`` rows that lie together."""
    spread = self.spread
    for shard in range(spread.first, spread.first + spread.count):
      first, step = spread.ids_on(shard)
      ids = np.arange(first, self.vocab_size, step, dtype=np.int64)
      for start in range(0, len(ids), most_rows):
        yield shard * self.rows_per_shard + spread.base + start, ids[start : start + most_rows]


@dataclasses.dataclass(frozen=True)
class RowMap:
  """All tables by name."""

  tables: dict[str, MappedTable]

  def to_json(self) -> dict[str, Any]:
    return {name: dataclasses.asdict(table) for name, table in self.tables.items()}

  @classmethod
  def from_json(cls, found: dict[str, Any]) -> RowMap:
    return cls(
      {
        name: MappedTable(**{**table, "spread": plan_lib.Spread(**table["spread"])})
        for name, table in found.items()
      }
    )


def of(plan: table_plan.TablePlan, where: placement.Placement) -> RowMap:
  """The map of tables as they lie now."""
  found = {}
  for stack in plan.stacks:
    is_in_lines = isinstance(where.layout(stack.name), packed_rows.Lines)
    for table, offset in zip(stack.tables, stack.offsets, strict=True):
      shape = (1, stack.num_rows, stack.embedding_dim)  # shards, rows of each, columns
      spread = plan_lib.Spread(first=0, count=1, shift=0, base=offset, rows=table.vocab_size)
      if isinstance(where, sharded_lib.Sharded):
        sharded = where.plan.of(stack.name)
        shape = (sharded.num_shards, sharded.rows_per_shard, sharded.embedding_dim)
        spread = sharded.spread(table)
      found[table.name] = MappedTable(stack.name, *shape, is_in_lines, table.vocab_size, spread)
  return RowMap(found)
