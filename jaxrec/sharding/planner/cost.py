"""What a step costs with the tables laid out so: the model that a plan minimizes.

It is that of exchange.py, stack by stack. A stack lies on S shards times K column parts, with P
copies; G = S K devices exchange, D' = D / K columns each. In one step a device looks up n ids of a
table, u different ones (id_profile.py; bags are taken to be full), and the shard asked most is
asked for mean m, variance v:

    C = m + 5 sqrt(v), up to a multiple of 8; at most U = min(sum n, all rows), at most a shard's
    sent = G C (4 + 4 + D' w + 4 D') bytes: twice the row numbers, rows of w bytes a number, f32
           gradients (2 D' + 2 D' where both travel as bfloat16); padding travels too
    copies = all_reduce of a shard's rows (4 D' + 4 bytes each) or, if G C P / 2 rows are fewer,
             all_gather of G C of them
    links = all_to_all(sent) + copies                                                       seconds
    memory = (4 sent + 8 G C D' + 4 copies + random) / memory_bandwidth                     seconds
    latency = collective_latency x (4 if G > 1, + 2 if C can overflow, + 2 if P > 1)        seconds

``random`` are the accesses to rows: the shard asked most reads G m rows, and reads and writes,
moments too, each row that the whole batch touches; every access moves whole units of
``access_bytes``. Steps are synchronous, so a stack takes links + memory + latency of its busiest
device, and the stacks follow each other. A table in the host's memory moves its u rows and
gradients at ``host_bandwidth``.

A device holds of each stack the rows of the fullest shard (all reserve as many) and their moments,
on a TPU padded to lines of 128 lanes or to a power of two below, and buffers: U (w + 4) D for rows
and gradients, G C 4 D' for their sums, G C (8 + 2 w D' + 8 D') for the exchange, three times what
``copies`` moves. All stacks' buffers are added, as if none were reused. Of XLA:CPU's own count they
are 1.0 to 1.4 times (tests/sharding/planner/cost_test.py).

Left out, as no layout changes it: dense layers, pooling, the input pipeline. Left out, though it
does: sorting the requests, and how XLA overlaps stacks.

*Source*: jaxrec/sharding/exchange.py; the estimators of TorchRec's planner (RecSys 2022) count the
same parts, without padding and duplicates.
*Read next*: jaxrec/sharding/planner/search.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import config, tables
from jaxrec.sharding import layouts
from jaxrec.sharding import plan as plan_lib
from jaxrec.sharding.planner import device_spec, id_profile
from jaxrec.tables.layouts import packed_rows


@dataclasses.dataclass(frozen=True)
class Moments:
  """Bytes that a row optimizer keeps beside each row.

  Attributes:
    per_row: whatever the row's width.
    per_column: more for each of its numbers.
    is_by_column: whether a row's columns may be on several devices.
  """

  per_row: int = 0
  per_column: int = 0
  is_by_column: bool = True

  def num_bytes(self, embedding_dim: int) -> int:
    return self.per_row + self.per_column * embedding_dim


def moments_of(
  optimizers: tables.RowOptimizer | Mapping[Any, tables.RowOptimizer],
  *,
  with_whole_rows: bool = False,
) -> Moments | dict[Any, Moments]:
  """What row optimizers keep, of one or of several by ``TableConfig.optimizer``.

  Args:
    optimizers: of the tables.
    with_whole_rows: whether something else needs a row's columns together: fingerprints do.

  >>> moments_of(tables.rowwise_adagrad(0.1))
  Moments(per_row=4, per_column=0, is_by_column=True)
  """
  if isinstance(optimizers, tables.RowOptimizer):
    return _kept_by(optimizers, with_whole_rows)
  return {label: _kept_by(one, with_whole_rows) for label, one in optimizers.items()}


def _kept_by(optimizer: tables.RowOptimizer, with_whole_rows: bool) -> Moments:
  def num_bytes(dim: int) -> int:
    row = {"row": jax.ShapeDtypeStruct((1, dim), jnp.float32)}
    leaves = jax.eval_shape(optimizer.init, row).rows["row"]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

  per_column = num_bytes(2) - num_bytes(1)
  is_by_column = optimizer.over_columns is not None and not with_whole_rows
  return Moments(num_bytes(1) - per_column, per_column, is_by_column)


SGD = Moments()
ROWWISE_ADAGRAD = Moments(per_row=4)
ADAGRAD = Moments(per_column=4)
ADAM = FTRL = Moments(per_column=8)


@dataclasses.dataclass(frozen=True)
class Demand:
  """What one step asks of a table.

  Attributes:
    table: the table.
    moments: of its row optimizer.
    num_ids: n, look-ups of one device.
    unique: u, mean number of different rows among them.
    unique_squares: sum of q^2 over the rows, q being the chance to be among them.
    touched: mean number of different rows in the whole batch.
    wire_dtype: in which float32 travels, as ``make_plan`` has it.
  """

  table: config.TableConfig
  moments: Moments
  num_ids: int
  unique: float
  unique_squares: float
  touched: float
  wire_dtype: str | None = None

  @property
  def num_width(self) -> int:
    """w: bytes of one number of a row."""
    return 4 if self.table.dtype == "float32" else 2

  @property
  def sent_width(self) -> int:
    """Bytes on the links of one number of a row and one of its gradient."""
    return self.num_width + 4 if self.wire_dtype is None else 4


@dataclasses.dataclass(frozen=True)
class StackCost:
  """Of one stack, or of the tables in the host's memory. Seconds are a step's.

  Attributes:
    latency, links, memory: seconds, of the busiest device.
    capacity: rows that a device asks of one shard in a round.
    table_bytes: that each device reserves for rows and moments.
    buffer_bytes: for the exchange.
    sent_bytes: of the all_to_all's of one round, the part to itself included.
    copied_bytes: that the sum over copies handles.
    excess_rows: row numbers above those that an int32 counts.
    work: f64[S] seconds of each shard without latency and padding.
    host_bytes: rows and moments in the host's memory, a device's share.
  """

  latency: float
  links: float
  memory: float
  capacity: int
  table_bytes: int
  buffer_bytes: int
  sent_bytes: int
  copied_bytes: int
  excess_rows: int
  work: np.ndarray
  host_bytes: int = 0

  @property
  def seconds(self) -> float:
    return self.latency + self.links + self.memory


def demands_of(
  features: Sequence[config.FeatureConfig],
  *,
  batch_size: int,
  num_devices: int,
  moments: Moments | Mapping[str | None, Moments],
  profiles: Mapping[str, id_profile.IdProfile],
  wire_dtype: str | None = None,
) -> tuple[Demand, ...]:
  """One for each table, in the order of declaration."""
  ids: dict[config.TableConfig, int] = {}
  for feature in features:
    ids[feature.table] = ids.get(feature.table, 0) + feature.ids_per_bag
  found = []
  for table, per_example in ids.items():
    num_ids = per_example * -(-batch_size // num_devices)
    profile = profiles.get(table.name) or id_profile.zipf_profile(table.vocab_size)
    unique, squares = profile.unique(num_ids)
    touched, _ = profile.unique(per_example * batch_size)
    kept = _moments_of(table, moments)
    most = max(unique, touched)
    found.append(Demand(table, kept, num_ids, unique, squares, most, wire_dtype))
  return tuple(found)


def _moments_of(
  table: config.TableConfig, moments: Moments | Mapping[str | None, Moments]
) -> Moments:
  if isinstance(moments, Moments):
    return moments
  known = [str(key) for key in moments]
  config.require(
    table.optimizer in moments,
    f"planner: table {table.name!r} has the optimizer {table.optimizer!r}, which moments does not "
    f"name; {config.did_you_mean(str(table.optimizer), known)}",
  )
  return moments[table.optimizer]


Member = tuple[Demand, layouts.Layout]


def stack_cost(links: device_spec.Links, members: Sequence[Member]) -> StackCost:
  """Of tables that share a stack, in the order of declaration; layouts resolved by ``on``."""
  device, mesh, layout = links.device, links.mesh, members[0][1]
  rows, columns = layout.rows or (), layout.columns or ()
  copy_axes = tuple(axis for axis in mesh if axis not in rows + columns)
  num_shards, num_columns, num_copies = (
    layouts.size(mesh, axes) for axes in (rows, columns, copy_axes)
  )
  group, first = num_shards * num_columns, members[0][0]
  width, dim = first.num_width, first.table.embedding_dim
  part = dim // num_columns
  spreads, rows_per_shard = plan_lib.spread_tables([(d.table, at) for d, at in members], num_shards)
  asked, variance, touched = _by_shard([d for d, _ in members], spreads, num_shards)
  num_ids = min(sum(d.num_ids for d, _ in members), num_shards * rows_per_shard)
  most = min(num_ids, rows_per_shard)
  capacity = _capacity(asked, variance)
  slots = group * (min(capacity, most) if num_shards > 1 else num_ids)
  per_row = 8 + part * first.sent_width
  sent = slots * per_row if group > 1 else 0
  copied, copies = _copies(links, copy_axes, rows_per_shard, slots, 4 * part + 4)
  access = _accesses(first, part, device.access_bytes)
  random = group * asked * access[0] + touched * 2 * (access[0] + access[1])
  static = 4 * sent + 8 * slots * part + 4 * copied
  can_overflow = num_shards > 1 and capacity < most
  num_collectives = 4 * (group > 1) + 2 * can_overflow + 2 * (num_copies > 1)
  useful = links.all_to_all(1.0, rows + columns) * per_row if group > 1 else 0.0
  return StackCost(
    latency=device.collective_latency * num_collectives,
    links=links.all_to_all(sent, rows + columns) + copies,
    memory=(static + float(random.max())) / device.memory_bandwidth,
    capacity=capacity,
    table_bytes=rows_per_shard * _kept_bytes(first, part, device.platform),
    buffer_bytes=num_ids * dim * (width + 4)
    + slots * 4 * part
    + (slots * (8 + part * (2 * width + 8)) if group > 1 else 0)
    + 3 * copied,
    sent_bytes=sent,
    copied_bytes=copied,
    excess_rows=max(0, num_shards * rows_per_shard - plan_lib.MAX_ROW_NUMBERS),
    work=random / device.memory_bandwidth + group * asked * useful,
  )


def _kept_bytes(demand: Demand, part: int, platform: str) -> int:
  """Of a row of ``part`` columns and its moments in a device's memory, padding included."""
  if packed_rows.are_worth_it(platform, part):
    part = packed_rows.width_of(part)
  elif platform == "tpu":
    part = -(-part // packed_rows.LANES) * packed_rows.LANES
  return part * demand.num_width + demand.moments.num_bytes(part)


def _by_shard(
  demands: Sequence[Demand], spreads: Sequence[plan_lib.Spread], num_shards: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """f64[S] rows that one device asks each shard for, their variance, rows the batch touches there.

  Where the popular rows of a table lie is not asked: each row is on a shard with equal chance.
  """
  vocab, unique, squares, touched = np.array(
    [(d.table.vocab_size, d.unique, d.unique_squares, d.touched) for d in demands]
  ).T[:, :, None]
  first, count, shift = np.array([(s.first, s.count, s.shift) for s in spreads]).T[:, :, None]
  place = np.arange(num_shards) - first  # [T, S]
  rows = vocab // count + ((place - shift) % count < vocab % count)
  share = np.where((place >= 0) & (place < count), rows / vocab, 0.0)
  variance = share * unique - share**2 * squares
  return (share * unique).sum(axis=0), variance.sum(axis=0), (share * touched).sum(axis=0)


def _capacity(asked: np.ndarray, variance: np.ndarray) -> int:
  """Mean and five sigma of the shard where they are most, up to a multiple of 8."""
  most = float((asked + 5 * np.sqrt(np.maximum(variance, 0))).max())
  return max(8, 8 * math.ceil(round(most, 6) / 8))


def _copies(
  links: device_spec.Links, axes: tuple[str, ...], num_rows: int, slots: int, row_bytes: int
) -> tuple[int, float]:
  """Bytes that the sum over copies handles, and its seconds; ``exchange`` decides by this rule."""
  num_copies = layouts.size(links.mesh, axes)
  if num_copies == 1:
    return 0, 0.0
  if num_rows < num_copies * slots / 2:
    return num_rows * row_bytes, links.all_reduce(num_rows * row_bytes, axes)
  return num_copies * slots * row_bytes, links.all_gather(slots * row_bytes, axes)


def _accesses(demand: Demand, part: int, unit: int) -> tuple[int, int]:
  """Bytes that an access to one row moves, and to its moments."""
  arrays = [demand.moments.per_row] * (demand.moments.per_row > 0)
  arrays += [4 * part] * -(-demand.moments.per_column // 4)
  row, *moments = (-(-size // unit) * unit for size in (part * demand.num_width, *arrays))
  return row, sum(moments)


def host_cost(links: device_spec.Links, demands: Sequence[Demand]) -> StackCost:
  """Of tables in the host's memory, whose rows and gradients cross to it and back."""
  moved = sum(min(d.unique, d.num_ids) * d.table.embedding_dim * (d.num_width + 4) for d in demands)
  seconds = float(moved) / links.device.host_bandwidth
  most = sum(
    min(d.num_ids, d.table.vocab_size) * d.table.embedding_dim * (d.num_width + 4) for d in demands
  )
  kept = sum(
    d.table.num_bytes + d.table.vocab_size * d.moments.num_bytes(d.table.embedding_dim)
    for d in demands
  )
  return StackCost(
    latency=2 * links.device.collective_latency,
    links=seconds,
    memory=0.0,
    capacity=0,
    table_bytes=0,
    buffer_bytes=int(most),
    sent_bytes=0,
    copied_bytes=0,
    excess_rows=0,
    work=np.full(1, seconds),
    host_bytes=-(-kept // math.prod(links.mesh.values())),
  )
