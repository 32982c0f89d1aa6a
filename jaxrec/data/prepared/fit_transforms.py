"""Transforms fitted by streaming.

Every transform here is a function of one thing: the distinct values of a column in training, and
how often each occurs. That is one query, which DuckDB answers in bounded memory, on disk where it
must; so the fit is exact whatever the size, and no chunk, order or thread can change a bit of it.

Source: NVTabular and tf.Transform fit by several passes of their own; a database's GROUP BY does.
Read next: jaxrec/data/prepared/prepare.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import types
import zlib
from collections.abc import Iterator, Mapping, Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxrec.data.prepared import spans
from jaxrec.data.readers import duckdb_session, files
from jaxrec.features import crosses, numeric, quantiles, transforms, vocabulary
from jaxrec.features import schema as schema_lib

SPLIT = "split"  # column of the spool: 0 train, 1 val, 2 test
_CHUNK_VALUES = 1 << 16
_MOST_COMBINATIONS = 1 << 22  # of a cross, that are in memory together


class Counts:
  """The distinct values of columns of the training rows, and how often each occurs.

  Iterating asks the database anew, so it may be done as often as wanted.
  """

  def __init__(
    self,
    connection: duckdb.DuckDBPyConnection,
    path: str,
    columns: Sequence[str],
    lists: Sequence[str] = (),
    *,
    where: str = f"{SPLIT} = 0",
    logs: Sequence[str] = (),
  ):
    """``columns`` of single values and ``lists`` of several, counted together, of rows ``where``;
    and what training sees of the ``logs`` at these paths (spans.py).
    """
    self._connection = connection
    values = [duckdb_session.quoted(name) for name in columns]
    values += [f"unnest({duckdb_session.quoted(name)})" for name in lists]
    self._parts = [
      f"SELECT {value} AS v FROM {duckdb_session.literal(path)} WHERE {where}" for value in values
    ]
    self._parts += [
      f"SELECT {spans.VALUE} AS v FROM {duckdb_session.literal(log)} WHERE {spans.IS_SEEN}"
      for log in logs
    ]

  def texts(
    self, *, min_count: int = 1, most: int | None = None
  ) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """(string[K], i64[K]) of values seen ``min_count`` times, the ``most`` frequent of them."""
    for values, number in self._frequent(min_count, most):
      yield values.cast(pa.string()), number

  def keys(
    self, *, min_count: int = 1, most: int | None = None
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(u64[K], i64[K]), as ``texts``."""
    for values, number in self._frequent(min_count, most):
      yield values.to_numpy(zero_copy_only=False), number

  def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(f64[K], i64[K]) in ascending order; missing values are not counted."""
    for values, number in self._read("ORDER BY v"):
      yield values.to_numpy(zero_copy_only=False), number

  def _frequent(self, min_count: int, most: int | None) -> Iterator[tuple[pa.Array, np.ndarray]]:
    order = "" if most is None else f" ORDER BY n DESC, v LIMIT {most}"
    return self._read(f"HAVING n >= {min_count}{order}")

  def _read(self, more: str) -> Iterator[tuple[pa.Array, np.ndarray]]:
    query = (
      f"SELECT v, count(*) AS n FROM ({' UNION ALL '.join(self._parts)}) WHERE v IS NOT NULL "
      f"GROUP BY v {more}"
    )
    found = self._connection.cursor().sql(query)
    for chunk in found.to_arrow_reader(_CHUNK_VALUES):
      yield chunk.column(0), chunk.column(1).to_numpy(zero_copy_only=False)


# The spool names columns by their number: names may differ in case alone, which SQL does not see.


def feature_columns(schema: schema_lib.Schema) -> dict[str, str]:
  """The spool's names of the columns that are learned from, by their own."""
  return {name: f"feature_{number}" for number, name in enumerate(schema.columns)}


def group_column(schema: schema_lib.Schema, name: str) -> str:
  """The spool's name of a group column."""
  return f"group_{schema.groups.index(name)}"


def features_of(rows: pa.RecordBatch, schema: schema_lib.Schema) -> dict[str, pa.Array]:
  """The columns that are learned from, of rows of the spool, by their own names."""
  return {name: rows.column(spooled) for name, spooled in feature_columns(schema).items()}


def fit(
  path: str | os.PathLike[str],
  schema: schema_lib.Schema,
  kinds: Mapping[str, str],
  logs: Mapping[str, str] = types.MappingProxyType({}),
) -> tuple[transforms.Transforms, dict[str, crosses.Sharing]]:
  """The transforms of ``schema`` on the training rows of the spool at ``path``, and of each cross
  how its combinations there share rows.

  The spool is a Parquet file of the schema's columns as ``column_values.features`` makes them of
  values of ``kinds``, with a SPLIT.
  """
  connection = duckdb_session.connect(temporary=f"{os.path.dirname(path)}/duckdb")
  spooled = feature_columns(schema)
  numbers = {name: column for name, column in schema.columns.items() if column.is_numeric}
  counts = {name: Counts(connection, str(path), [spooled[name]]) for name in numbers}
  fitted = transforms.Transforms(
    schema=schema,
    kinds={name: kinds[name] for name in schema.columns},
    rows={
      table: _rows(connection, str(path), table, schema, names, logs)
      for table, names in schema.tables().items()
    },
    steps={
      name: numeric.fit(column.dense, counts[name])
      for name, column in numbers.items()
      if column.dense
    },
    quantiles={
      name: quantiles.fit(counts[name], num_buckets=column.buckets)
      for name, column in numbers.items()
      if column.buckets
    },
    max_lengths={
      name: _max_length(connection, str(path), spooled[name], column, is_span=name in logs)
      for name, column in schema.columns.items()
      if column.is_bag
    },
  )
  if not schema.crosses:
    return fitted, {}
  crossed = dataclasses.replace(fitted, schema=spans.plain(schema, logs))
  crossed, shared = _with_crosses(crossed, connection, str(path), spooled)
  return dataclasses.replace(crossed, schema=schema), shared


def _with_crosses(
  fitted: transforms.Transforms,
  connection: duckdb.DuckDBPyConnection,
  path: str,
  spooled: Mapping[str, str],
) -> tuple[transforms.Transforms, dict[str, crosses.Sharing]]:
  """``fitted`` with its crosses: one more pass, as they combine the rows that it knows of."""
  schema, folder = fitted.schema, f"{os.path.dirname(path)}/crosses"
  lengths = _max_combinations(connection, path, schema, spooled)
  fitted = dataclasses.replace(fitted, max_lengths={**fitted.max_lengths, **lengths})
  _write_keys(fitted, path, folder, spooled)
  found: dict[str, crosses.CrossRows] = {}
  shared: dict[str, crosses.Sharing] = {}
  for number, (name, cross) in enumerate(schema.crosses.items()):
    counts = Counts(connection, f"{folder}/{number}.parquet", ["key"], where="true")
    if cross.encoding == "hash":
      found[name] = crosses.HashedCross(cross.num_hash_buckets, salt=zlib.crc32(name.encode()))
    else:
      found[name] = crosses.fit(
        counts.keys(min_count=cross.min_count, most=cross.max_size),
        min_count=cross.min_count,
        max_size=cross.max_size,
        oov_buckets=cross.oov_buckets,
      )
    shared[name] = crosses.sharing(counts.keys, found[name])
  shutil.rmtree(folder)
  return dataclasses.replace(fitted, crosses=found), shared


def _max_combinations(
  connection: duckdb.DuckDBPyConnection,
  path: str,
  schema: schema_lib.Schema,
  spooled: Mapping[str, str],
) -> dict[str, int]:
  """Of each cross of lists its own, or else the most combinations of an example of all splits."""
  found = {}
  for name, cross in schema.crosses.items():
    bags = [column for column in cross.columns if schema.columns[column].is_bag]
    if bags and cross.max_length is not None:
      found[name] = cross.max_length
    elif bags:
      lengths = " * ".join(f"len({duckdb_session.quoted(spooled[column])})" for column in bags)
      query = f"SELECT max({lengths}) FROM {duckdb_session.literal(path)}"
      ((most,),) = connection.sql(query).fetchall()
      found[name] = max(1, most or 1)
  return found


def rows_at_once(fitted: transforms.Transforms) -> int:
  """How many rows to encode together: fewer where an example has many combinations."""
  longest = [fitted.max_lengths.get(name, 1) for name in fitted.schema.crosses]
  return max(1, min(files.CHUNK_ROWS, _MOST_COMBINATIONS // max(longest, default=1)))


def _write_keys(
  fitted: transforms.Transforms, path: str, folder: str, spooled: Mapping[str, str]
) -> None:
  """Writes the combinations in the training rows, cross by cross, to ``<folder>/<k>.parquet``."""
  os.makedirs(folder, exist_ok=True)
  names = list(fitted.schema.crosses)
  schema = pa.schema([("key", pa.uint64())])
  with contextlib.ExitStack() as stack:
    writers = [
      stack.enter_context(pq.ParquetWriter(f"{folder}/{number}.parquet", schema))
      for number in range(len(names))
    ]
    for rows in pq.ParquetFile(path).iter_batches(rows_at_once(fitted)):
      train = rows.filter(pc.equal(rows.column(SPLIT), 0))
      ids = fitted.ids({name: train.column(spooled[name]) for name in fitted.schema.columns})
      for name, writer in zip(names, writers, strict=True):
        writer.write_batch(pa.record_batch([fitted.cross_keys(name, ids).values], schema))


def group_values(
  path: str | os.PathLike[str], schema: schema_lib.Schema
) -> dict[str, vocabulary.Vocabulary]:
  """Of each group column, value to number: of all rows, as a group is what it is in every split."""
  connection = duckdb_session.connect(temporary=f"{os.path.dirname(path)}/duckdb")
  return {
    name: vocabulary.fit(
      Counts(connection, str(path), [group_column(schema, name)], where="true").texts()
    )
    for name in schema.groups
  }


def _rows(
  connection: duckdb.DuckDBPyConnection,
  path: str,
  table: str,
  schema: schema_lib.Schema,
  names: Sequence[str],
  logs: Mapping[str, str],
) -> vocabulary.Vocabulary | vocabulary.HashedRows:
  coding = schema.columns[names[0]]  # the same for all: the schema saw to it
  if coding.encoding == "hash":
    return vocabulary.HashedRows(coding.num_hash_buckets, salt=zlib.crc32(table.encode()))
  spooled = feature_columns(schema)
  counts = Counts(
    connection,
    path,
    [spooled[name] for name in names if not schema.columns[name].is_bag],
    [spooled[name] for name in names if schema.columns[name].is_bag and name not in logs],
    logs=[logs[name] for name in names if name in logs],
  )
  return vocabulary.fit(
    counts.texts(min_count=coding.min_count, most=coding.max_size),
    min_count=coding.min_count,
    max_size=coding.max_size,
    oov_buckets=coding.oov_buckets,
  )


def _max_length(
  connection: duckdb.DuckDBPyConnection,
  path: str,
  spooled: str,
  column: schema_lib.Column,
  *,
  is_span: bool,
) -> int:
  """The column's own, or else that of the longest list of all splits."""
  if column.max_length is not None:
    return column.max_length
  name = duckdb_session.quoted(spooled)
  length = f"{name}.end - {name}.begin" if is_span else f"len({name})"
  query = f"SELECT max({length}) FROM {duckdb_session.literal(path)}"
  ((longest,),) = connection.sql(query).fetchall()
  return max(1, longest or 1)
