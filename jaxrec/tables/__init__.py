"""Embedding tables on the device, their row gradients, and optimizers over touched rows."""

from jaxrec.tables.device_table import (
  DeviceTables,
  Layout,
  RowMajor,
  create,
  read_rows,
  read_words,
  row_plans,
  write_rows,
)
from jaxrec.tables.fingerprints import Fingerprints
from jaxrec.tables.ftrl_proximal import FtrlState, ftrl
from jaxrec.tables.lazy import lazily
from jaxrec.tables.lookup import embed
from jaxrec.tables.row_gradients import (
  RowGradients,
  accumulate,
  add_l2,
  add_noise,
  clip_by_global_norm,
  coalesce,
  freeze,
  global_norm,
  scale,
  value_and_row_grad,
)
from jaxrec.tables.row_init import initial_rows, table_words
from jaxrec.tables.row_optimizer import (
  RowOptimizer,
  RowOptState,
  apply_and_count_bad_rows,
  apply_row_gradients,
  by_label,
  init_row_state,
  rowwise_adagrad,
)
from jaxrec.tables.statistics import TableStatistics, table_statistics
from jaxrec.tables.unique import unique_rows
from jaxrec.tables.whole_tables import with_fingerprints, with_table

__all__ = [
  "DeviceTables",
  "Fingerprints",
  "FtrlState",
  "Layout",
  "RowGradients",
  "RowMajor",
  "RowOptState",
  "RowOptimizer",
  "TableStatistics",
  "accumulate",
  "add_l2",
  "add_noise",
  "apply_and_count_bad_rows",
  "apply_row_gradients",
  "by_label",
  "clip_by_global_norm",
  "coalesce",
  "create",
  "embed",
  "freeze",
  "ftrl",
  "global_norm",
  "init_row_state",
  "initial_rows",
  "lazily",
  "read_rows",
  "read_words",
  "row_plans",
  "rowwise_adagrad",
  "scale",
  "table_statistics",
  "table_words",
  "unique_rows",
  "value_and_row_grad",
  "with_fingerprints",
  "with_table",
  "write_rows",
]
