"""Online Retail: does a customer buy this item now, given what was bought before?

397,924 purchases of 4,339 customers and 3,665 items of a British gift shop, 2010-12 to 2011-12. A
purchase is an example of label 1; beside it stands one of label 0, an item drawn by popularity that
the customer did not buy at that moment. The history is the customer's last items at *strictly
earlier* moments. Only customers with a history of some length make examples. The latest fifth of
the time tests.

Source: Chen, "Online Retail" (2015), UCI Machine Learning Repository, CC BY 4.0.
Read next: jaxrec/data/events/event_log.py.
"""

from __future__ import annotations

import dataclasses

from jaxrec.config import experiment
from jaxrec.data.events import event_log
from jaxrec.data.prepared import prepared_table
from jaxrec.data.readers import files
from jaxrec.data.readers import reader as reader_lib

FILE = "online_retail_events_397924.parquet"


def roles(config: experiment.DataConfig) -> experiment.DataConfig:
  """``config`` with the columns of the log of purchases."""
  how = dataclasses.replace(config.events, user="user", item="item", context=("country",))
  return dataclasses.replace(config, labels=("bought",), time="ts", events=how)


def load(config: experiment.DataConfig, embedding_dim: int) -> prepared_table.StoredTable:
  """``--dataset=online_retail``: ``config.seed`` draws the negatives."""
  reader = reader_lib.open_files(files.find(config, FILE))
  found = event_log.make(reader, roles(config), embedding_dim)
  return dataclasses.replace(found, is_inferred=False)  # it reads no other schema
