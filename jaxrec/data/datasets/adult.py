"""UCI Adult: does a person of the 1994 census earn more than 50,000 dollars a year?

48,842 people, 14 columns; the first 16,281 rows are the official test split. Numbers of years,
hours and dollars are read by their quantiles, each bucket with an embedding of its own.

Source: Becker and Kohavi (1996), UCI Machine Learning Repository, CC BY 4.0.
Read next: jaxrec/data/prepared/from_table.py.
"""

from __future__ import annotations

from jaxrec.config import experiment
from jaxrec.data.prepared import from_table, prepared_table, splits
from jaxrec.data.readers import files
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features.schema import Column, Schema

FILE = "adult_48842.csv.gz"
_NUM_TEST = 16_281
_NUMERIC = ("age", "capital-gain", "capital-loss", "hours-per-week", "educational-num")
_CATEGORICAL = (
  "workclass", "education", "marital-status", "occupation", "relationship", "race", "gender",
  "native-country",
)  # fmt: skip


def schema(config: experiment.DataConfig) -> Schema:
  """All columns but ``fnlwgt``, a weight of the census itself."""
  numbers = {name: Column("numeric", buckets=config.num_buckets) for name in _NUMERIC}
  values = {name: Column("categorical", min_count=config.min_count) for name in _CATEGORICAL}
  return Schema({"income": ">50K"}, numbers | values)


def load(config: experiment.DataConfig, embedding_dim: int) -> prepared_table.StoredTable:
  """``--dataset=adult``: the official split, with ``val_fraction`` of the training rows to choose
  by.
  """
  reader = reader_lib.open_files(files.find(config, FILE))
  splitter = splits.ByChance(config.seed, config.val_fraction, num_test=_NUM_TEST)
  return from_table.make(reader, schema(config), config, embedding_dim, splitter=splitter)
