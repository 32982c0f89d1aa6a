"""Which device holds which row: a value, made of specs, a mesh and rules.

Within a stack, row r of a table is on the (r + shift) mod S-th of the S shards that share it, at a
place that all of them have reserved for the table. So any vocabulary divides, hot rows (small ids,
where vocabularies are sorted by popularity) are on different devices, and which row is where is
arithmetic: nothing is looked up, on the host or in ``jit``.

*Source*: row-wise and table-wise sharding as in TorchRec, which cuts tables into ranges of ids.
*Read next*: jaxrec/sharding/exchange.py.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrec import config
from jaxrec.inputs import table_plan
from jaxrec.sharding import layouts
from jaxrec.tables.layouts import packed_rows

Rules = Sequence[tuple[str, layouts.Layout | str]] | Mapping[str, layouts.Layout | str]
DEFAULT_RULES: Rules = ((".*", layouts.row_wise()),)
MAX_ROW_NUMBERS = config.MAX_ROWS_PER_STACK + 2**26  # of all shards of a stack, padding included


@dataclasses.dataclass(frozen=True)
class Spread:
  """Where the rows of one table are among the shards of its stack.

  Row r is on shard ``first + (r + shift) % count``, at ``base + r // count``.
  """

  first: int
  count: int
  shift: int
  base: int
  rows: int  # reserved on each of these shards

  def rows_of(self, ids: Any, rows_per_shard: int) -> Any:
    """Row numbers of ``ids``: shard * rows_per_shard + place on the shard."""
    shard = self.first + (ids + self.shift) % self.count
    return shard * rows_per_shard + self.base + ids // self.count

  def is_on(self, shard: Any) -> Any:
    """Whether a shard has some of the table's rows."""
    return (shard >= self.first) & (shard < self.first + self.count)

  def ids_on(self, shard: Any) -> tuple[Any, int]:
    """Of a shard that has some of the table: its first id, and the step from each to the next."""
    return (shard - self.first - self.shift) % self.count, self.count


@dataclasses.dataclass(frozen=True)
class ShardedStack:
  """A stack over the devices of a mesh.

  Attributes:
    stack: its tables.
    row_axes: mesh axes whose devices share its rows.
    column_axes: those whose devices share its columns.
    copy_axes: those along which devices hold copies.
    num_shards: S, devices along ``row_axes``.
    num_columns: devices along ``column_axes``.
    num_copies: devices along ``copy_axes``.
    spreads: of ``stack.tables``, in order.
    rows_per_shard: rows that every shard has, padding included.
    busiest_share: of a device's ids, the share that the shard asked most is asked for, if ids are
      spread evenly over each table.
    capacity: rows a device can ask of one shard in a round; None: by ``busiest_share``.
    gradient_capacity: rows whose gradients it can send there in a round, where a step sums several
      micro-batches before it sends them; None: ``capacity``.
    in_lines: whether several rows of a device share a line of 128 lanes (``tables.Lines``).
    wire_dtype: what float32 rows and row gradients are rounded to while they travel; None: nothing.
  """

  stack: table_plan.Stack
  row_axes: tuple[str, ...]
  column_axes: tuple[str, ...]
  copy_axes: tuple[str, ...]
  num_shards: int
  num_columns: int
  num_copies: int
  spreads: tuple[Spread, ...]
  rows_per_shard: int
  busiest_share: float
  capacity: int | None = None
  gradient_capacity: int | None = None
  in_lines: bool = False
  wire_dtype: str | None = None

  @property
  def num_rows(self) -> int:
    """Rows of all shards together: the row numbers of a row plan lie below."""
    return self.num_shards * self.rows_per_shard

  @property
  def embedding_dim(self) -> int:
    """Columns that one device has of each row."""
    return self.stack.embedding_dim // self.num_columns

  @property
  def stored_columns(self) -> int:
    """Columns of the array that one device keeps its rows in."""
    return packed_rows.LANES if self.in_lines else self.embedding_dim

  @property
  def is_exchanged(self) -> bool:
    """Whether devices hold different parts; otherwise each has all of it."""
    return self.num_shards * self.num_columns > 1

  def spread(self, table: config.TableConfig) -> Spread:
    return self.spreads[self.stack.tables.index(table)]

  def rows_of(self, table: config.TableConfig, ids: Any) -> Any:
    """Row numbers of ``ids``, NumPy's or JAX's."""
    return self.spread(table).rows_of(ids, self.rows_per_shard)

  @property
  def for_gradients(self) -> ShardedStack:
    """The same, with the capacity of the way back."""
    if self.gradient_capacity is None:
      return self
    return dataclasses.replace(self, capacity=self.gradient_capacity)

  def capacity_for(self, num_ids: int) -> int:
    """Rows a device with ``num_ids`` unique ids can ask of one shard in one round."""
    if self.num_shards == 1:
      return num_ids
    mean = num_ids * self.busiest_share
    chosen = -(-math.ceil(mean + 5 * math.sqrt(mean) + 1) // 8) * 8
    wanted = chosen if self.capacity is None else self.capacity
    return min(wanted, num_ids, self.rows_per_shard)

  def always_fits(self, num_ids: int) -> bool:
    """Whether no batch of ``num_ids`` unique ids a device needs a second round."""
    return self.capacity_for(num_ids) >= min(num_ids, self.rows_per_shard)


@dataclasses.dataclass(frozen=True)
class ShardingPlan:
  """All tables on a mesh: hashable, so it can be static in a jitted program.

  Attributes:
    mesh: names and sizes of the mesh's axes, in order.
    tables: features and stacks; tables of one layout share a stack.
    sharded: the same stacks over the mesh.
  """

  mesh: tuple[tuple[str, int], ...]
  tables: table_plan.TablePlan
  sharded: tuple[ShardedStack, ...]

  @property
  def axes(self) -> tuple[str, ...]:
    return tuple(name for name, _ in self.mesh)

  @property
  def num_devices(self) -> int:
    return math.prod(size for _, size in self.mesh)

  def of(self, stack: str) -> ShardedStack:
    """The stack of this name."""
    # A scan: there are few, and to look one up by the plan would hash the plan each time.
    return next(sharded for sharded in self.sharded if sharded.stack.name == stack)

  def with_capacities(
    self, rows: Mapping[str, int], gradients: Mapping[str, int] | None = None
  ) -> ShardingPlan:
    """The same, but for how many rows a device can ask of one shard in a round, by stack, and the
    gradients of how many it can send there; None: of as many.
    """
    sharded = (
      dataclasses.replace(
        one,
        capacity=rows.get(one.stack.name, one.capacity),
        gradient_capacity=(gradients or {}).get(one.stack.name),
      )
      for one in self.sharded
    )
    return dataclasses.replace(self, sharded=tuple(sharded))

  # A table_plan.Numbering, so row plans are made of it as they are of a TablePlan.

  @property
  def stacks(self) -> tuple[table_plan.Stack, ...]:
    return self.tables.stacks

  @property
  def is_sorted(self) -> bool:
    return True

  def features_of(self, stack: table_plan.Stack) -> tuple[config.FeatureConfig, ...]:
    return self.tables.features_of(stack)

  def num_rows(self, stack: table_plan.Stack) -> int:
    return self.of(stack.name).num_rows

  def rows_of(self, feature: config.FeatureConfig, ids: Any) -> Any:
    place = self.tables.known_place(feature.table.name)
    return self.of(place.stack.name).rows_of(feature.table, ids)

  def signature(self, stack: table_plan.Stack) -> str:
    sharded = self.of(stack.name)
    where = ",".join(f"{s.first}+{s.count}@{s.base}>>{s.shift}" for s in sharded.spreads)
    shape = f"{sharded.num_shards}x{sharded.rows_per_shard}"
    return f"{self.tables.signature(stack)} on {shape}: {where}"


def make_plan(
  features: Sequence[config.FeatureConfig],
  mesh: Mapping[str, int],
  rules: Rules = DEFAULT_RULES,
  *,
  capacity: int | Mapping[str, int] | None = None,
  platform: str = "cpu",
  wire_dtype: str | None = None,
) -> ShardingPlan:
  """Gives each table the layout of the first rule whose pattern matches its whole name.

  Tables that are whole on one device, or on a few, go where most room is left, the largest first.

  Args:
    features: whose tables to place.
    mesh: sizes of its axes by name, in order (``mesh.shape`` of a JAX mesh).
    rules: pairs of a regular expression and a layout, or its text, ``row_wise(model)``.
    capacity: rows a device can ask of one shard in a round, of all stacks or of some by name; None:
      chosen by stack.
    platform: JAX's name for the devices, by which rows lie in their memory.
    wire_dtype: ``bfloat16``: float32 rows, and gradients of rows, are rounded to the nearest such
      number where devices exchange them, and are float32 again on arrival; each device's sums for a
      row are so rounded once, and their sum over devices is in float32. None: all bits travel.

  Raises:
    ConfigError: a rule that is none; a table that no rule matches, or whose layout does not fit the
      mesh or the table; a capacity below 1, or of a stack that there is not; another
      ``wire_dtype``.

  >>> from jaxrec.config import FeatureConfig, TableConfig
  >>> user = FeatureConfig("user", TableConfig("user", 10, 4))
  >>> (stack,) = make_plan([user], {"data": 2, "model": 2}).sharded
  >>> stack.num_shards, stack.rows_per_shard, [stack.rows_of(user.table, r) for r in range(5)]
  (4, 3, [0, 3, 6, 9, 1])
  """
  config.check_features(features)
  config.require(
    wire_dtype in config.WIRE_DTYPES,
    f"sharding: wire_dtype must be one of {config.WIRE_DTYPES}, got {wire_dtype!r}",
  )
  mesh = dict(mesh)
  tables = {feature.table.name: feature.table for feature in features}
  patterns = layouts.compiled(rules)
  found = {name: _layout_of(table, mesh, patterns) for name, table in tables.items()}
  kinds = {name: kind_of(layout, mesh) for name, layout in found.items()}
  plan = table_plan.plan_tables(features, kinds=kinds)
  capacities = _capacities(capacity, [stack.name for stack in plan.stacks])
  sharded = (_shard(plan, stack, found, mesh, capacities.get(stack.name)) for stack in plan.stacks)
  return ShardingPlan(
    mesh=tuple(mesh.items()),
    tables=plan,
    sharded=tuple(
      dataclasses.replace(
        one, in_lines=packed_rows.are_worth_it(platform, one.embedding_dim), wire_dtype=wire_dtype
      )
      for one in sharded
    ),
  )


def _layout_of(
  table: config.TableConfig,
  mesh: Mapping[str, int],
  rules: Sequence[tuple[re.Pattern, layouts.Layout]],
) -> layouts.Layout:
  where = f"sharding: table {table.name!r}"
  for pattern, layout in rules:
    if pattern.fullmatch(table.name):
      resolved = layout.on(mesh, where)
      num_columns = layouts.size(mesh, resolved.columns or ())
      config.require(
        table.embedding_dim % num_columns == 0,
        f"{where}: {table.embedding_dim} columns cannot be shared by {num_columns} devices; choose "
        f"an embedding_dim that {num_columns} divides, or another layout",
      )
      return resolved
  patterns = ", ".join(pattern.pattern for pattern, _ in rules)
  raise config.ConfigError(
    f"{where}: no rule matches it; the patterns are {patterns}; end them with ('.*', row_wise())"
  )


def _capacities(
  capacity: int | Mapping[str, int] | None, stacks: Sequence[str]
) -> Mapping[str, int]:
  if capacity is None:
    return {}
  found = capacity if isinstance(capacity, Mapping) else dict.fromkeys(stacks, capacity)
  for name, rows in found.items():
    config.require(
      name in stacks,
      f"sharding: capacity of no stack {name!r}; {config.did_you_mean(name, stacks)}",
    )
    config.require(
      rows >= 1, f"sharding: stack {name!r}: capacity must be >= 1 row, or None, got {rows}"
    )
  return found


def kind_of(layout: layouts.Layout, mesh: Mapping[str, int]) -> str:
  """What tables must have in common to share a stack, as part of its name."""
  if layout.rows == tuple(mesh):
    return ""
  rows, columns = ("_".join(axes or ()) for axes in (layout.rows, layout.columns))
  parts = [f"rows_{rows}" if rows else "", f"columns_{columns}" if columns else ""]
  return "_".join(part for part in parts if part) or "replicated"


def _shard(
  plan: table_plan.TablePlan,
  stack: table_plan.Stack,
  found: Mapping[str, layouts.Layout],
  mesh: Mapping[str, int],
  capacity: int | None,
) -> ShardedStack:
  layout = found[stack.tables[0].name]
  rows, columns = layout.rows or (), layout.columns or ()
  copies = tuple(axis for axis in mesh if axis not in rows + columns)
  num_shards = layouts.size(mesh, rows)
  spreads, rows_per_shard = spread_tables(
    [(table, found[table.name]) for table in stack.tables], num_shards
  )
  config.require(
    num_shards * rows_per_shard <= MAX_ROW_NUMBERS,
    f"sharding: stack {stack.name!r} needs {rows_per_shard} rows on each of {num_shards} devices, "
    "which is more than row numbers count; spread its tables over all devices, row_wise()",
  )
  return ShardedStack(
    stack=stack,
    row_axes=rows,
    column_axes=columns,
    copy_axes=copies,
    num_shards=num_shards,
    num_columns=layouts.size(mesh, columns),
    num_copies=layouts.size(mesh, copies),
    spreads=spreads,
    rows_per_shard=rows_per_shard,
    busiest_share=_busiest_share(plan, stack, spreads, num_shards),
    capacity=capacity,
  )


def spread_tables(
  tables: Sequence[tuple[config.TableConfig, layouts.Layout]], num_shards: int
) -> tuple[tuple[Spread, ...], int]:
  """Places for all tables, the widest spread first, and the rows that every shard then has."""
  filled, spreads, shift = [0] * num_shards, {}, 0
  for table, layout in sorted(
    tables, key=lambda pair: (-(pair[1].num_shards or num_shards), -pair[0].vocab_size)
  ):
    count = layout.num_shards or num_shards
    rows = -(-table.vocab_size // count)
    first = layout.first
    if first is None:
      first = min(range(0, num_shards - count + 1, count), key=lambda s: max(filled[s : s + count]))
    base = max(filled[first : first + count])
    filled[first : first + count] = [base + rows] * count
    spreads[table.name] = Spread(first, count, shift % count, base, rows)
    shift += table.vocab_size
  return tuple(spreads[table.name] for table, _ in tables), max(filled)


def _busiest_share(
  plan: table_plan.TablePlan, stack: table_plan.Stack, spreads: Sequence[Spread], num_shards: int
) -> float:
  asked = [0.0] * num_shards
  for feature in plan.features_of(stack):
    spread = spreads[stack.tables.index(feature.table)]
    for shard in range(spread.first, spread.first + spread.count):
      asked[shard] += feature.ids_per_bag / spread.count
  return max(asked) / sum(asked)
