"""The same tables over many devices: layouts, plan, exchange and placement."""

from jaxrec.sharding.layouts import (
  Layout,
  column_wise,
  replicated,
  row_wise,
  table_row_wise,
  table_wise,
)
from jaxrec.sharding.mesh import make_mesh
from jaxrec.sharding.placement import (
  Sharded,
  create,
  each_example,
  init_row_state,
  over_devices,
  placement_of,
  specs_of,
)
from jaxrec.sharding.plan import ShardedStack, ShardingPlan, make_plan

__all__ = [
  "Layout",
  "Sharded",
  "ShardedStack",
  "ShardingPlan",
  "column_wise",
  "create",
  "each_example",
  "init_row_state",
  "make_mesh",
  "make_plan",
  "over_devices",
  "placement_of",
  "replicated",
  "row_wise",
  "specs_of",
  "table_row_wise",
  "table_wise",
]
