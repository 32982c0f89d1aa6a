"""UCI in-vehicle coupon recommendation: does a driver accept the coupon?

12,684 answers to a survey, 25 columns, all of few values. The split is by chance: 80 % of the rows
train, the seed is the config's.

Source: Wang et al., "A Bayesian framework for learning rule sets for interpretable classification"
(JMLR 2017), UCI Machine Learning Repository, CC BY 4.0.
Read next: jaxrec/data/prepared/from_table.py.
"""

from __future__ import annotations

from jaxrec.config import experiment
from jaxrec.data.prepared import from_table, prepared_table
from jaxrec.data.readers import files
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features.schema import Column, Schema

FILE = "vehicle_coupon_12684.csv.gz"
_LABEL = "Y"


def load(config: experiment.DataConfig, embedding_dim: int) -> prepared_table.StoredTable:
  """``--dataset=vehicle_coupon``: every column is an id, whatever it holds."""
  reader = reader_lib.open_files(files.find(config, FILE))
  column = Column("categorical", min_count=config.min_count)
  schema = Schema({_LABEL: None}, {n: column for n in reader.schema.names if n != _LABEL})
  return from_table.make(reader, schema, config, embedding_dim)
