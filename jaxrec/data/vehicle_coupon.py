"""UCI in-vehicle coupon recommendation: does a driver accept the coupon?

12,684 answers to a survey, 25 columns, all of few values. The split is by chance: 80 % of the rows
train, the seed is the config's.

Source: Wang et al., "A Bayesian framework for learning rule sets for interpretable classification"
(JMLR 2017), UCI Machine Learning Repository, CC BY 4.0.
Read next: jaxrec/data/table.py.
"""

from __future__ import annotations

from jaxrec import experiment
from jaxrec.data import files, reading, stored, table
from jaxrec.features.schema import Column, Schema

FILE = "vehicle_coupon_12684.csv.gz"
_LABEL = "Y"


def load(config: experiment.DataConfig, embedding_dim: int) -> stored.StoredTable:
  """``--dataset=vehicle_coupon``: every column is an id, whatever it holds."""
  reader = reading.open_files(files.find(config, FILE))
  column = Column("categorical", min_count=config.min_count)
  schema = Schema({_LABEL: None}, {n: column for n in reader.schema.names if n != _LABEL})
  return table.make(reader, schema, config, embedding_dim)
