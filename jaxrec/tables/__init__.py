"""Embedding tables on the device, their row gradients, and optimizers over touched rows."""

from jaxrec.tables.bulk_ops import laid_out, with_fingerprints, with_table
from jaxrec.tables.device_table import (
  DeviceTables,
  create,
  fetch,
  read_rows,
  write_rows,
)
from jaxrec.tables.fingerprints import Fingerprints
from jaxrec.tables.gradients import local_value_and_row_grad, value_and_row_grad
from jaxrec.tables.layouts.layout import Layout, RowMajor
from jaxrec.tables.layouts.packed_rows import Lines
from jaxrec.tables.lookup import embed
from jaxrec.tables.optimizers.ftrl import FtrlState, ftrl
from jaxrec.tables.optimizers.lazy import lazily
from jaxrec.tables.optimizers.row_optimizer import (
  Counts,
  RowOptimizer,
  RowOptState,
  apply_and_count,
  apply_row_gradients,
  by_label,
  init_row_state,
  rowwise_adagrad,
)
from jaxrec.tables.placement import OneDevice, Placement, one_device, own_key, total
from jaxrec.tables.row_gradient_transforms import (
  accumulate,
  add_l2,
  add_noise,
  clip_by_global_norm,
  freeze,
  global_norm,
  scale,
)
from jaxrec.tables.row_gradients import RowGradients, coalesce, fold_rounds, map_rows
from jaxrec.tables.row_init import initial_rows, table_words
from jaxrec.tables.statistics import TableStatistics, table_statistics
from jaxrec.tables.unique import row_plans, unique_rows

__all__ = [
  "Counts",
  "DeviceTables",
  "Fingerprints",
  "FtrlState",
  "Layout",
  "Lines",
  "OneDevice",
  "Placement",
  "RowGradients",
  "RowMajor",
  "RowOptState",
  "RowOptimizer",
  "TableStatistics",
  "accumulate",
  "add_l2",
  "add_noise",
  "apply_and_count",
  "apply_row_gradients",
  "by_label",
  "clip_by_global_norm",
  "coalesce",
  "create",
  "embed",
  "fetch",
  "fold_rounds",
  "freeze",
  "ftrl",
  "global_norm",
  "init_row_state",
  "initial_rows",
  "laid_out",
  "lazily",
  "local_value_and_row_grad",
  "map_rows",
  "one_device",
  "own_key",
  "read_rows",
  "row_plans",
  "rowwise_adagrad",
  "scale",
  "table_statistics",
  "table_words",
  "total",
  "unique_rows",
  "value_and_row_grad",
  "with_fingerprints",
  "with_table",
  "write_rows",
]
