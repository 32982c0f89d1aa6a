"""Online Retail: does a customer buy this item now, given what was bought before?

397,924 purchases of 4,339 customers and 3,665 items of a British gift shop, 2010-12 to 2011-12. A
purchase is an example of label 1; beside it stands one of label 0, an item drawn by popularity that
the customer did not buy at that moment. The history is the customer's last items at *strictly
earlier* moments: the lines of one basket share a timestamp, and would leak the answer. Only
customers with a history of some length make examples. The latest fifth of the time tests.

Source: Chen, "Online Retail" (2015), UCI Machine Learning Repository, CC BY 4.0.
Read next: jaxrec/data/table.py.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxrec import experiment
from jaxrec.data import counter_rng, files, reading, stored, table
from jaxrec.features.schema import Column, Schema

FILE = "online_retail_events_397924.parquet"
HISTORY = 50
MIN_HISTORY = 5


def examples(events: pa.Table, *, seed: int, history: int = HISTORY) -> pa.Table:
  """Purchases and as many negatives, in order of time, each with the customer's history.

  Args:
    events: ``user``, ``item``, ``ts``, ``country``, sorted by user, then time.
    seed: of the negatives; the one of a purchase is a function of (seed, its row).
    history: the most items of a history, the latest.
  """
  users = events["user"].to_numpy()
  times = events["ts"].to_numpy()
  codes = events["item"].combine_chunks().dictionary_encode()
  items, names = codes.indices.to_numpy(), codes.dictionary
  is_new_user = np.diff(users, prepend=users[0] - 1) != 0
  begins = np.maximum.accumulate(np.where(is_new_user, np.arange(len(users)), 0))
  is_new_moment = is_new_user | (np.diff(times, prepend=times[0] - 1) != 0)
  ends = np.maximum.accumulate(np.where(is_new_moment, np.arange(len(users)), 0))
  rows = np.flatnonzero(ends - begins >= MIN_HISTORY)
  starts = np.maximum(begins, ends - history)[rows]
  lengths = ends[rows] - starts
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
  past = pa.LargeListArray.from_arrays(pa.array(offsets), names.take(pa.array(items[places])))
  baskets = _baskets(users, times, items)
  negatives = _negatives(rows, users, times, items, baskets, seed)
  found = [
    pa.table({
      "user": users[rows],
      "item": names.take(pa.array(chosen)),
      "country": events["country"].take(pa.array(rows)),
      "history": past,
      "ts": times[rows],
      "bought": np.full(len(rows), label, np.int8),
    })
    for label, chosen in ((1, items[rows]), (0, negatives))
  ]  # fmt: skip
  both = pa.concat_tables(found)
  # By time; a purchase and its negative side by side.
  order = np.lexsort([np.tile(rows, 2), np.tile(times[rows], 2)])
  return both.take(pa.array(order)).combine_chunks()


def schema(config: experiment.DataConfig) -> Schema:
  """The candidate and the history share their items' table."""
  item = Column("categorical", table="items", min_count=config.min_count)
  past = Column("sequence", table="items", min_count=config.min_count, max_length=HISTORY)
  return Schema(
    {"bought": None},
    {
      "user": Column("categorical"),
      "item": item,
      "country": Column("categorical"),
      "history": past,
    },
    groups=("user",),
    time="ts",
  )


def load(config: experiment.DataConfig, embedding_dim: int) -> stored.StoredTable:
  """``--dataset=online_retail``: ``config.seed`` draws the negatives."""
  path = files.find(config, FILE)
  made = examples(pq.read_table(path), seed=config.seed)
  reader = reading.ArrowTable(made, f"online_retail, negatives of seed {config.seed}", (path,))
  return table.make(reader, schema(config), config, embedding_dim)


def _baskets(users: np.ndarray, times: np.ndarray, items: np.ndarray) -> set[tuple[int, int, int]]:
  """What was bought by whom at which moment."""
  return set(zip(users.tolist(), times.tolist(), items.tolist(), strict=True))


def _negatives(
  rows: np.ndarray,
  users: np.ndarray,
  times: np.ndarray,
  items: np.ndarray,
  baskets: set[tuple[int, int, int]],
  seed: int,
) -> np.ndarray:
  """i32[n]: for each purchase an item that is not in its basket, drawn by popularity so far: the
  item of an earlier purchase of anybody, any of them being as likely.
  """
  key = counter_rng.stream_key("online_retail", "negatives", seed)
  chosen = np.full(len(rows), -1, np.int64)
  order = np.argsort(times, kind="stable")
  num_earlier = np.searchsorted(times[order], times[rows])
  for attempt in range(100):
    left = np.flatnonzero(chosen < 0)
    if not len(left):
      break
    draws = counter_rng.uniform(key, rows[left] * 100 + attempt)
    drawn = items[order[(draws * num_earlier[left]).astype(np.int64)]]
    where = zip(users[rows[left]].tolist(), times[rows[left]].tolist(), drawn.tolist(), strict=True)
    is_bought = np.array([bought in baskets for bought in where])
    chosen[left[~is_bought]] = drawn[~is_bought]
  return chosen.astype(np.int32)
