"""From tables, a mesh and a device's numbers to a sharding plan, and why it is that one.

``find_plan`` needs no accelerator and starts no JAX backend. It weighs the layouts of ``search`` by
the cost model of ``cost``, and makes the plan of the cheapest that fits: each table's layout and
devices, each stack's capacity, and, where they may, the tables that stay with the host. Print what
it returns. What does not fit is refused with what would make it fit, each way tried first.

*Source*: the planner of TorchRec (Ivchenko et al., RecSys 2022), which proposes and ranks; here
small problems are solved exactly.
*Read next*: jaxrec/sharding/planner/report.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from jaxrec import config
from jaxrec.sharding import plan as plan_lib
from jaxrec.sharding.planner import advice, cost, device_spec, explain, id_profile, report, search
from jaxrec.sharding.planner import problem as problem_lib


def find_plan(
  features: Sequence[config.FeatureConfig],
  mesh: Mapping[str, int],
  device: device_spec.DeviceSpec,
  *,
  batch_size: int,
  moments: cost.Moments | Mapping[str | None, cost.Moments] = cost.ROWWISE_ADAGRAD,
  profiles: Mapping[str, id_profile.IdProfile] | None = None,
  allow_host: bool = False,
  wire_dtype: str | None = None,
) -> report.PlannedTables:
  """The plan with the shortest step that fits into the devices' memory.

  Args:
    features: whose tables to place.
    mesh: sizes of its axes by name, in order; one named ``dcn`` lies between hosts.
    device: what one device of it holds and moves, and what its host holds.
    batch_size: examples a step on all devices together.
    moments: bytes beside each row, of all tables or by ``TableConfig.optimizer``.
    profiles: how often ids are looked up, by table; without one a table's ids follow a Zipf law
      with exponent 1.05.
    allow_host: whether tables may stay with the host where the devices cannot hold all; the hosts'
      memory is ``device.host_memory_bytes`` for each device.
    wire_dtype: as of ``make_plan``; it is never chosen here, since it changes what is computed.

  Raises:
    ConfigError: the tables do not fit; it says by how much, and what would make them fit. Or an
      argument makes no sense: a batch that does not divide, a profile of other rows, ...

  >>> from jaxrec.config import FeatureConfig, TableConfig
  >>> features = [FeatureConfig(n, TableConfig(n, v, 64)) for n, v in [("a", 9), ("b", 10**9)]]
  >>> found = find_plan(features, {"data": 8}, device_spec.H100, batch_size=65536)
  >>> [(table.name, table.layout) for table in found.tables]
  [('a', 'column_wise'), ('b', 'column_wise')]
  """
  problem = problem_lib.Problem(
    features=tuple(features),
    mesh=dict(mesh),
    device=device,
    batch_size=batch_size,
    moments=moments,
    profiles=dict(profiles or {}),
    wire_dtype=wire_dtype,
  )
  problem_lib.check(problem)
  evaluate, found = problem.solve()
  if found.cost.excess_bytes and allow_host:
    evaluate, found = problem.solve(is_host_allowed=True)
  if found.cost.excess_bytes:
    raise config.ConfigError(advice.why_not(problem, found.cost, allow_host=allow_host))
  return explain.describe(_plan(problem, evaluate, found), problem.device, evaluate, found)


def _plan(
  problem: problem_lib.Problem, evaluate: search.Evaluator, found: search.Found
) -> plan_lib.ShardingPlan:
  chosen = {
    demand.table.name: layout
    for demand, layout in zip(evaluate.demands, found.choices, strict=True)
    if layout is not None
  }
  features = [feature for feature in problem.features if feature.table.name in chosen]
  rules = [(re.escape(name), layout) for name, layout in chosen.items()]
  plan = plan_lib.make_plan(
    features,
    problem.mesh,
    rules,
    platform=problem.device.platform,
    wire_dtype=problem.wire_dtype,
  )
  by_tables = {
    tuple(evaluate.demands[i].table.name for i in members): stack.capacity
    for members, stack in found.cost.stacks
  }
  capacities = {
    sharded.stack.name: by_tables[tuple(table.name for table in sharded.stack.tables)]
    for sharded in plan.sharded
    if sharded.num_shards > 1
  }
  return plan.with_capacities(capacities)
