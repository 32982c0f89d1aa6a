"""What a plan means for each device and each table, and what other layouts would have meant.

*Read next*: jaxrec/sharding/planner/report.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxrec.sharding import layouts
from jaxrec.sharding import plan as plan_lib
from jaxrec.sharding.planner import cost, device_spec, report, search

_TABLES_ASKED = 64  # of more, only the largest of a stack and layout is asked for its reasons


def describe(
  plan: plan_lib.ShardingPlan,
  device: device_spec.DeviceSpec,
  evaluate: search.Evaluator,
  found: search.Found,
) -> report.PlannedTables:
  """``plan`` and what the search knows of it."""
  names = {sharded.stack.tables[0].name: sharded.stack.name for sharded in plan.sharded}
  stacks, work = [], np.zeros(plan.num_devices)
  stack_of: dict[int, str] = {}
  for members, stack in found.cost.stacks:
    name = names.get(evaluate.demands[members[0]].table.name, "host")
    stack_of |= dict.fromkeys(members, "" if name == "host" else name)
    is_exchanged = name != "host" and plan.of(name).num_shards > 1
    stacks.append(
      report.PlannedStack(
        name,
        stack.capacity if is_exchanged else 0,
        stack.table_bytes,
        stack.buffer_bytes,
        stack.latency,
        stack.links,
        stack.memory,
      )
    )
    work += stack.work if name == "host" else stack.work[_shards_of(plan, plan.of(name))]
  num_plans = evaluate.num_plans
  tables = _tables(evaluate, found, stack_of)
  return report.PlannedTables(
    plan=plan,
    host_tables=tuple(table.name for table in tables if table.layout == "host"),
    device=device,
    available_bytes=evaluate.available_bytes,
    tables=tables,
    stacks=tuple(stacks),
    own_bytes=_own_bytes(plan, evaluate.demands),
    work=tuple(work.tolist()),
    is_exact=found.is_exact,
    num_plans=num_plans,
  )


def _shards_of(plan: plan_lib.ShardingPlan, sharded: plan_lib.ShardedStack) -> np.ndarray:
  """i64[devices]: which shard of the stack each device of the mesh has."""
  sizes = dict(plan.mesh)
  places = dict(zip(sizes, np.indices(tuple(sizes.values())), strict=True))
  shard = np.zeros(tuple(sizes.values()), np.int64)
  for axis in sharded.row_axes:
    shard = shard * sizes[axis] + places[axis]
  return shard.reshape(-1)


def _own_bytes(plan: plan_lib.ShardingPlan, demands: Sequence[cost.Demand]) -> tuple[int, ...]:
  by_name = {demand.table.name: demand for demand in demands}
  own = np.zeros(plan.num_devices, np.int64)
  for sharded in plan.sharded:
    rows = np.zeros(sharded.num_shards, np.int64)
    demand = by_name[sharded.stack.tables[0].name]
    part = sharded.embedding_dim
    for table, spread in zip(sharded.stack.tables, sharded.spreads, strict=True):
      start, step = spread.ids_on(spread.first + np.arange(spread.count))
      rows[spread.first : spread.first + spread.count] += -(-(table.vocab_size - start) // step)
    row_bytes = part * demand.num_width + demand.moments.num_bytes(part)
    own += rows[_shards_of(plan, sharded)] * row_bytes
  return tuple(own.tolist())


def _tables(
  evaluate: search.Evaluator, found: search.Found, stack_of: Mapping[int, str]
) -> tuple[report.PlannedTable, ...]:
  demands, mesh = evaluate.demands, evaluate.links.mesh
  largest: dict[tuple[str, str], int] = {}
  for i in sorted(stack_of, key=lambda i: -demands[i].table.num_bytes):
    largest.setdefault((stack_of[i], name_of(found.choices[i], mesh)[0]), i)
  tables = []
  for i, demand in enumerate(demands):
    table, moments = demand.table, demand.moments
    layout, where = name_of(found.choices[i], mesh)
    example = largest[stack_of[i], layout]
    is_asked = i == example or len(demands) <= _TABLES_ASKED
    tables.append(
      report.PlannedTable(
        name=table.name,
        vocab_size=table.vocab_size,
        stack=stack_of[i],
        layout=layout,
        where=where,
        num_bytes=table.num_bytes + table.vocab_size * moments.num_bytes(table.embedding_dim),
        why=_why(evaluate, found, i) if is_asked else f"as {demands[example].table.name}",
      )
    )
  return tuple(tables)


def name_of(choice: search.Choice, mesh: Mapping[str, int]) -> tuple[str, str]:
  """The layout's name, and which devices it is about, if not all.

  >>> name_of(layouts.table_wise(first=3).on({"data": 8}, ""), {"data": 8})
  ('table_wise', 'on device 3')
  """
  if choice is None:
    return "host", ""
  rows, columns = choice.rows or (), choice.columns or ()
  if columns:
    return "column_wise", f"over {', '.join(columns)}"
  if not rows:
    return "replicated", ""
  first, count = choice.first or 0, choice.num_shards or 1
  if count == layouts.size(mesh, rows):
    whole = len(rows) == len(mesh)
    return ("row_wise", "") if whole else ("grid", f"rows over {', '.join(rows)}")
  if count == 1:
    return "table_wise", f"on device {first}"
  return "table_row_wise", f"on devices {first} to {first + count - 1}"


def _why(evaluate: search.Evaluator, found: search.Found, i: int) -> str:
  """What changing this table alone would do: the least harm, and the least that does not fit."""
  choices, mesh = dict(enumerate(found.choices)), evaluate.links.mesh
  options = search.candidates(evaluate.demands[i], mesh)
  fitting: dict[str, float] = {}
  excess: dict[str, int] = {}
  for choice in search.alternatives(evaluate, options, found.choices, i):
    name = name_of(choice, mesh)[0]
    tried = evaluate(choices | {i: choice})
    if tried.excess_bytes:
      excess[name] = min(tried.excess_bytes, excess.get(name, tried.excess_bytes))
    else:
      more = tried.seconds - found.cost.seconds
      fitting[name] = min(more, fitting.get(name, more))
  parts = []
  if fitting:
    name = min(fitting, key=lambda name: fitting[name])
    parts.append(f"{name} {1e6 * fitting[name]:+,.1f} us")
  if excess.keys() - fitting.keys():
    name = min(excess.keys() - fitting.keys(), key=lambda name: (excess[name], name))
    parts.append(f"{name} is {report.gib(excess[name])} too large")
  return "; ".join(parts) or "one device has everything"
