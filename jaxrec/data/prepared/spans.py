"""Lists that are spans of one long list: histories kept once and not once an example.

An example's history is a piece of its user's events, and the next example's is nearly the same
piece. So a reader may give a column of lists as *spans*: a begin and an end in a log of values that
it holds beside the table. What is spooled, prepared and stored of an example is those two numbers;
the log is encoded once. A column of spans is a sequence: of a long one the latest values count.

Read next: jaxrec/data/prepared/prepared_table.py, which reads them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxrec import config
from jaxrec.features import column_values
from jaxrec.features import schema as schema_lib
from jaxrec.inputs import batch_checks

VALUE, IS_SEEN = "value", "is_seen"  # columns of a log's file: the text, whether training sees it


def column(begins: np.ndarray, ends: np.ndarray) -> pa.StructArray:
  """Spans i64[N], as a column of a table."""
  return pa.StructArray.from_arrays(
    [pa.array(begins, pa.int64()), pa.array(ends, pa.int64())], ["begin", "end"]
  )


def bounds(values: pa.Array) -> np.ndarray:
  """i64[N, 2]: the begin and the end of each span."""
  return np.stack([values.field(name).to_numpy() for name in ("begin", "end")], axis=1)


def plain(schema: schema_lib.Schema, logs: Iterable[str]) -> schema_lib.Schema:
  """``schema`` without the columns ``logs``, which are spans.

  Raises:
    ConfigError: one of them is no sequence, or is crossed.
  """
  for name in logs:
    if name not in schema.columns:
      continue
    config.require(
      schema.columns[name].kind == "sequence",
      f"schema: column {name!r} is a history, so its kind must be 'sequence', got "
      f"{schema.columns[name].kind!r}",
    )
    for cross_name, cross in schema.crosses.items():
      config.require(
        name not in cross.columns,
        f"schema: cross {cross_name!r}: column {name!r} is a history kept once for all examples, "
        "and cannot be crossed",
      )
  columns = {n: c for n, c in schema.columns.items() if n not in set(logs)}
  return dataclasses.replace(schema, columns=columns)


def check(name: str, values: pa.Array, log: pa.Array) -> pa.Array:
  """``values``, once each is seen to be a span of ``log``."""
  found = bounds(values)
  if (
    len(found)
    and not ((found[:, 0] >= 0) & (found[:, 0] <= found[:, 1]) & (found[:, 1] <= len(log))).all()
  ):
    raise batch_checks.BadExampleError(
      f"column {name!r}: expected spans of a log of {len(log)} values, got {found.min()} to "
      f"{found.max()}"
    )
  return values


def write_logs(
  logs: Mapping[str, pa.Array],
  kinds: Mapping[str, str],
  train_spans: Mapping[str, Iterable[np.ndarray]],
  folder: pathlib.Path,
) -> dict[str, str]:
  """Writes each log as text, with what of it training sees; the paths, by column.

  Args:
    logs: values, by column.
    kinds: of those values (column_values.py).
    train_spans: by column, the spans i64[n, 2] of the training rows, in chunks.
    folder: where.
  """
  paths = {}
  for number, (name, values) in enumerate(logs.items()):
    edges = np.zeros(len(values) + 1, np.int64)
    for chunk in train_spans[name]:
      edges += np.bincount(chunk[:, 0], minlength=len(edges))
      edges -= np.bincount(chunk[:, 1], minlength=len(edges))
    is_seen = np.cumsum(edges[:-1]) > 0
    texts = column_values.to_texts(values, kinds[name], f"column {name!r}").cast(pa.string())
    paths[name] = str(folder / f"log_{number}.parquet")
    pq.write_table(pa.table({VALUE: texts, IS_SEEN: is_seen}), paths[name], compression="zstd")
  return paths
