"""jaxrec: recommendation models in JAX whose embedding tables outgrow the accelerator.

One alphabet throughout, in shapes and in names: B examples, T tables, L ids per bag or sequence
length, N ids in a batch, U unique ids, V rows, D embedding dim, C cache slots, S shards, I dense
inputs, W look-ahead batches.
"""

from jaxrec import data, features, layers, models, tables, training
from jaxrec.config import ConfigError, FeatureConfig, Initializer, TableConfig

__version__ = "0.1.0"

__all__ = [
  "ConfigError",
  "FeatureConfig",
  "Initializer",
  "TableConfig",
  "data",
  "features",
  "layers",
  "models",
  "tables",
  "training",
]
