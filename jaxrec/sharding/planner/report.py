"""A plan that explains itself: what each device holds and does, and why each table lies so.

*Read next*: jaxrec/sharding/planner/explain.py, where that is found out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jaxrec.sharding import plan as plan_lib
from jaxrec.sharding.planner import device_spec

_DEVICES_SHOWN = 8
_TABLES_NAMED = 3


@dataclasses.dataclass(frozen=True)
class PlannedTable:
  """One table.

  Attributes:
    name: of the table.
    vocab_size: its rows.
    stack: the stack it is in; empty with the host.
    layout: ``row_wise``, ``replicated``, ..., ``host``.
    where: the devices that share it, as a reader would say it.
    num_bytes: of its rows and moments, once.
    why: the next best layout and what it would cost, and one that does not fit.
  """

  name: str
  vocab_size: int
  stack: str
  layout: str
  where: str
  num_bytes: int
  why: str


@dataclasses.dataclass(frozen=True)
class PlannedStack:
  """One stack; seconds are a step's, of its busiest device.

  Attributes:
    name: of the stack; ``host`` for tables in the host's memory.
    capacity: rows a device asks of one shard in a round; 0: nothing is exchanged.
    table_bytes: each device reserves for rows and moments.
    buffer_bytes: and for the exchange.
    latency, links, memory: seconds.
  """

  name: str
  capacity: int
  table_bytes: int
  buffer_bytes: int
  latency: float
  links: float
  memory: float

  @property
  def seconds(self) -> float:
    return self.latency + self.links + self.memory


@dataclasses.dataclass(frozen=True)
class PlannedTables:
  """What ``find_plan`` found; ``print`` it.

  Attributes:
    plan: for ``Sharded``; of the tables on devices.
    host_tables: names of the tables that stay with the host.
    device: the device planned for.
    available_bytes: of its memory, without the reserve.
    tables: of all, in the order of declaration.
    stacks: of the plan, then the host's.
    own_bytes: of each device, rows that are its own, with moments; it reserves ``table_bytes``.
    work: of each device, seconds a step without latency, waiting and padding.
    is_exact: whether no candidate plan is better; else the best of a bounded search.
    num_plans: that were weighed.
  """

  plan: plan_lib.ShardingPlan
  host_tables: tuple[str, ...]
  device: device_spec.DeviceSpec
  available_bytes: int
  tables: tuple[PlannedTable, ...]
  stacks: tuple[PlannedStack, ...]
  own_bytes: tuple[int, ...]
  work: tuple[float, ...]
  is_exact: bool
  num_plans: int

  @property
  def seconds(self) -> float:
    """Of a step, for tables alone."""
    return sum(stack.seconds for stack in self.stacks)

  @property
  def held_bytes(self) -> int:
    """Of each device, reserved for rows, moments and the exchange; the same on all."""
    return sum(stack.table_bytes + stack.buffer_bytes for stack in self.stacks)

  @property
  def balance(self) -> float:
    """Work of the busiest device over the mean."""
    return max(self.work) * len(self.work) / sum(self.work)

  def as_dict(self) -> dict[str, Any]:
    """Plain values, figures to four digits: for golden files and logs."""
    stacks = [dataclasses.asdict(stack) for stack in self.stacks]
    for stack in stacks:
      for part in ("latency", "links", "memory"):
        stack[f"{part}_us"] = _round(1e6 * stack.pop(part))
    return {
      "mesh": dict(self.plan.mesh),
      "device": self.device.name,
      "step_us": _round(1e6 * self.seconds),
      "balance": _round(self.balance),
      "held_bytes": self.held_bytes,
      "available_bytes": self.available_bytes,
      "own_bytes": {"least": min(self.own_bytes), "most": max(self.own_bytes)},
      "work_us": {"least": _round(1e6 * min(self.work)), "most": _round(1e6 * max(self.work))},
      "is_exact": self.is_exact,
      "host_tables": list(self.host_tables),
      "stacks": stacks,
      "tables": [dataclasses.asdict(table) for table in self.tables],
    }

  def __str__(self) -> str:
    return "\n".join([self._headline(), *_aligned(self._layout_lines()), *self._device_lines()])

  def _headline(self) -> str:
    mesh = " x ".join(f"{name}={size}" for name, size in self.plan.mesh)
    how = "exact" if self.is_exact else f"best of {self.num_plans:,} plans"
    return (
      f"{len(self.tables)} tables on {self.plan.num_devices} {self.device.name} ({mesh}): "
      f"{_ms(self.seconds)} a step, {gib(self.held_bytes)} of {gib(self.available_bytes)} a "
      f"device, max/mean load {self.balance:.2f}; {how}"
    )

  def _layout_lines(self) -> Iterator[tuple[str, ...]]:
    yield ("layout", "tables", "rows", "a device", "a step", "capacity", "why")
    for stack in self.stacks:
      members = [table for table in self.tables if (table.stack or "host") == stack.name]
      kinds = dict.fromkeys((table.layout, table.where) for table in members)
      figures = [
        gib(stack.table_bytes + stack.buffer_bytes),
        _ms(stack.seconds),
        f"{stack.capacity:,}" if stack.capacity else "-",
      ]
      for kind in _by_layout(kinds, _TABLES_NAMED):
        some = [table for table in members if (table.layout, table.where) in kind]
        largest = max(some, key=lambda table: table.vocab_size)
        layout = largest.layout if len(kind) > 1 else f"{largest.layout} {largest.where}".strip()
        names = ", ".join(table.name for table in some[:_TABLES_NAMED])
        more = f", ... {len(some)}" if len(some) > _TABLES_NAMED else ""
        rows = f"{sum(table.vocab_size for table in some):,}"
        yield (layout, names + more, rows, *figures, f"{largest.name}: {largest.why}")
        figures = ['"'] * 3  # the same stack

  def _device_lines(self) -> Iterator[str]:
    """A line for each device, or for neighbours that are alike, or for three of many."""
    figures = [(gib(own), _ms(work)) for own, work in zip(self.own_bytes, self.work, strict=True)]
    runs: list[list[int]] = []
    for i, figure in enumerate(figures):
      if runs and figures[runs[-1][0]] == figure:
        runs[-1].append(i)
      else:
        runs.append([i])
    note = ""
    if len(runs) > _DEVICES_SHOWN:
      order = sorted(range(len(figures)), key=lambda i: (self.work[i], i))
      runs = [[order[0]], [order[len(order) // 2]], [order[-1]]]
      note = "  (least, middle and most work)"
    rows: list[Sequence[str]] = [("device", "own rows", "work a step")]
    for run in runs:
      name = f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0])
      rows.append((name, *figures[run[0]]))
    header, *lines = _aligned(rows)
    yield from (header + note, *lines)


def _by_layout(kinds: Iterable[tuple[str, str]], most: int) -> list[list[tuple[str, str]]]:
  """A line for each place, or one for each layout where there are many places."""
  grouped: dict[str, list[tuple[str, str]]] = {}
  for kind in kinds:
    grouped.setdefault(kind[0], []).append(kind)
  return [
    some
    for group in grouped.values()
    for some in ([[kind] for kind in group] if len(group) <= most else [group])
  ]


def _aligned(lines: Iterable[Sequence[str]]) -> Iterator[str]:
  rows = list(lines)
  widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
  for row in rows:
    yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _round(value: float) -> float:
  return float(f"{value:.4g}")


def gib(num_bytes: float) -> str:
  """``12.3 GiB``; of little, ``4.5 MiB`` or ``6.7 KiB``."""
  for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
    if num_bytes >= size / 10:
      return f"{num_bytes / size:,.1f} {unit}"
  return f"{num_bytes / 2**10:,.1f} KiB"


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:.3g} ms"
