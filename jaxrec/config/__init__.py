"""Holds every value that a user writes: tables, data, models, training.

Read next: jaxrec/config/tables.py, jaxrec/config/experiment.py.
"""

from jaxrec.config.tables import (
  COMBINERS,
  MAX_ROWS_PER_STACK,
  TABLE_DTYPES,
  WIRE_DTYPES,
  ConfigError,
  FeatureConfig,
  Initializer,
  TableConfig,
  check_features,
  did_you_mean,
  require,
)

__all__ = [
  "COMBINERS",
  "MAX_ROWS_PER_STACK",
  "TABLE_DTYPES",
  "WIRE_DTYPES",
  "ConfigError",
  "FeatureConfig",
  "Initializer",
  "TableConfig",
  "check_features",
  "did_you_mean",
  "require",
]
