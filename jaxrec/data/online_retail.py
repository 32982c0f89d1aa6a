"""Online Retail: does a customer buy this item now, given what was bought before?

397,924 purchases of 4,339 customers and 3,665 items of a British gift shop, 2010-12 to 2011-12. A
purchase is an example of label 1; beside it stands one of label 0, an item drawn by popularity that
the customer did not buy at that moment. The history is the customer's last items at *strictly
earlier* moments. Only customers with a history of some length make examples. The latest fifth of
the time tests.

Source: Chen, "Online Retail" (2015), UCI Machine Learning Repository, CC BY 4.0.
Read next: jaxrec/data/events.py.
"""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq

from jaxrec import experiment
from jaxrec.data import events, files, reading, stored, table
from jaxrec.features.schema import Column, Schema

FILE = "online_retail_events_397924.parquet"


def examples(
  purchases: pa.Table, config: experiment.DataConfig, paths: tuple[str, ...] = ()
) -> reading.ArrowTable:
  """Purchases and their negatives, in order of time, each with the customer's history."""
  how = config.events
  name = f"online_retail, seed {config.seed}, {dataclasses.astuple(how)}"
  log = events.Log(purchases, "user", "item", "ts", name, paths)
  return events.examples(
    log,
    label="bought",
    histories={"history": "item"},
    context=("country",),
    min_history=how.min_history,
    negatives=events.Negatives(
      kind=how.negatives,
      number=how.num_negatives,
      excluding=how.excluding,
      name="online_retail",
      seed=config.seed,
    ),
  )


def schema(config: experiment.DataConfig) -> Schema:
  """The candidate and the history share their items' table."""
  past = Column(
    "sequence",
    table="items",
    min_count=config.min_count,
    max_length=config.events.history_length,
    combiner=config.combiner or "mean",
  )
  return Schema(
    {"bought": None},
    {
      "user": Column("categorical"),
      "item": Column("categorical", table="items", min_count=config.min_count),
      "country": Column("categorical"),
      "history": past,
    },
    groups=("user",),
    time="ts",
  )


def load(config: experiment.DataConfig, embedding_dim: int) -> stored.StoredTable:
  """``--dataset=online_retail``: ``config.seed`` draws the negatives."""
  path = files.find(config, FILE)
  reader = examples(pq.read_table(path), config, (path,))
  return table.make(reader, schema(config), config, embedding_dim)
