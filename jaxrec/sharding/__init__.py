"""The same tables over many devices: layouts, planner, plan, exchange and placement."""

from jaxrec.sharding.layouts import (
  Layout,
  column_wise,
  replicated,
  row_wise,
  table_row_wise,
  table_wise,
)
from jaxrec.sharding.mesh import make_mesh
from jaxrec.sharding.plan import ShardedStack, ShardingPlan, make_plan
from jaxrec.sharding.planner.cost import (
  ADAGRAD,
  ADAM,
  FTRL,
  ROWWISE_ADAGRAD,
  SGD,
  Moments,
  moments_of,
)
from jaxrec.sharding.planner.device_spec import CPU, H100, H200, V5E, V5P, V6E, DeviceSpec, of_kind
from jaxrec.sharding.planner.id_profile import (
  IdProfile,
  measure_profiles,
  profile_of_counts,
  zipf_profile,
)
from jaxrec.sharding.planner.planner import find_plan
from jaxrec.sharding.planner.report import PlannedTables
from jaxrec.sharding.row_map import RowMap
from jaxrec.sharding.row_map import of as row_map_of
from jaxrec.sharding.rules import shardings
from jaxrec.sharding.sharded import (
  Sharded,
  create,
  each_example,
  over_devices,
  placed,
  placement_of,
  specs_of,
)

__all__ = [
  "ADAGRAD",
  "ADAM",
  "CPU",
  "FTRL",
  "H100",
  "H200",
  "ROWWISE_ADAGRAD",
  "SGD",
  "V5E",
  "V5P",
  "V6E",
  "DeviceSpec",
  "IdProfile",
  "Moments",
  "PlannedTables",
  "find_plan",
  "measure_profiles",
  "moments_of",
  "of_kind",
  "profile_of_counts",
  "zipf_profile",
  "Layout",
  "RowMap",
  "Sharded",
  "ShardedStack",
  "ShardingPlan",
  "column_wise",
  "create",
  "each_example",
  "make_mesh",
  "make_plan",
  "over_devices",
  "placed",
  "placement_of",
  "replicated",
  "row_map_of",
  "row_wise",
  "shardings",
  "specs_of",
  "table_row_wise",
  "table_wise",
]
