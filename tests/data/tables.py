"""Tables for tests, and what their columns become."""

from __future__ import annotations

import gzip
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from jaxrec.features.schema import Column, Schema

SCHEMA = Schema(
  {"click": None, "like": "yes"},
  {
    "age": Column("numeric", dense=("cdf",), buckets=8),
    "price": Column("numeric", dense=("log", "standardise"), buckets=0),
    "city": Column("categorical", min_count=2, oov_buckets=2),
    "item": Column("categorical", table="items"),
    "tags": Column("list", max_length=4),
    "history": Column("sequence", table="items", max_length=3, combiner="mean"),
    "agent": Column("categorical", encoding="hash", num_hash_buckets=50),
  },
  weight="weight",
  groups=("user",),
  time="ts",
)


def clicks(num_rows: int = 500, seed: int = 0) -> pa.Table:
  """Rows of all kinds of columns, with missing values, ties, and values seen once."""
  rng = np.random.default_rng(seed)

  def some(values, share=0.1):
    mask = rng.random(num_rows) < share
    return pa.array(values, mask=mask)

  age = rng.integers(18, 40, num_rows).astype(np.float64)
  age[::17] = np.nan
  history = [
    rng.integers(0, 30, rng.integers(0, 6)).tolist() if rng.random() < 0.9 else None
    for _ in range(num_rows)
  ]
  tags = ["|".join(rng.choice(list("abcde"), rng.integers(0, 4), False)) for _ in range(num_rows)]
  return pa.table({
    "user": rng.integers(0, 20, num_rows),
    "ts": rng.permutation(num_rows) // 3,
    "age": age,
    "price": some(rng.lognormal(1, 2, num_rows) - 1),
    "city": some([f"city {k}" for k in rng.zipf(1.3, num_rows) % 90]),
    "item": rng.integers(0, 40, num_rows),
    "tags": pa.array(tags),
    "history": pa.array(history, pa.list_(pa.int64())),
    "agent": some([f"agent/{k}" for k in rng.integers(0, 300, num_rows)]),
    "weight": rng.random(num_rows).round(3),
    "click": (rng.random(num_rows) < 0.3).astype(np.int64),
    "like": pa.array(rng.choice(["yes", "no"], num_rows)),
  })  # fmt: skip


def write(table: pa.Table, path: pathlib.Path) -> pathlib.Path:
  """``table`` as a file of the form that the name ends in; lists become text in a CSV."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == ".parquet":
    pq.write_table(table, path, row_group_size=64)
    return path
  for place, name in enumerate(table.column_names):
    if pa.types.is_list(table.schema.types[place]):
      texts = ["|".join(map(str, values or [])) for values in table[name].to_pylist()]
      table = table.set_column(place, name, pa.array(texts))
  sink = pa.BufferOutputStream()
  pa_csv.write_csv(table, sink)
  data = sink.getvalue().to_pybytes()
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return path
