"""Rows that come as Python objects, a frame or records, as Arrow tables.

Arrow wants one type a column, and refuses or rounds what has another. A frame or a stream to be
learned from is widened where no value changes (whole numbers, then fractions), else refused. Rows
to predict are few and come as they come, so a column of several types is spelt as text, which
column_values.py reads as it would each value alone.

Read next: jaxrec/features/column_values.py.
"""

from __future__ import annotations

import collections
import datetime
import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxrec.data.readers import reader as reader_lib
from jaxrec.features import column_values
from jaxrec.inputs import batch_checks

_RECORDS = 8192  # a chunk
_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError)  # of Arrow, over values


def require_once(names: Iterable[str], what: str) -> None:
  """Raises BadExampleError if a column's name stands there twice."""
  for name, times in collections.Counter(names).items():
    if times > 1:
      raise batch_checks.BadExampleError(
        f"{what}: column {name!r} stands there {times} times, expected once; rename the others or "
        "leave them out"
      )


def of_frame(frame: Any, what: str, expected: str = "a pandas frame") -> pa.Table:
  """A pandas frame without its index.

  Args:
    frame: the rows.
    what: to call it in a message.
    expected: where it is no frame, what should have come.

  Raises:
    BadExampleError: no frame, or a column that cannot be read.
  """
  if not hasattr(frame, "columns"):
    raise batch_checks.BadExampleError(f"{what}: expected {expected}, got {type(frame).__name__}")
  require_once(map(str, frame.columns), what)
  try:
    return pa.Table.from_pandas(frame, preserve_index=False)
  except (*_ERRORS, AttributeError) as error:
    raise batch_checks.BadExampleError(
      f"{what}: a column of several types, or of a type that cannot be read ({error}); convert it, "
      "as with df[name].astype(str), or leave it out"
    ) from error


def of_records(records: Sequence[Mapping[str, Any]], what: str) -> pa.Table:
  """Records whose values may be of several types, as they come from a request.

  >>> of_records([{"user": "7"}, {"user": 8}], "predict")["user"].to_pylist()
  ['7', '8']

  Raises:
    BadExampleError: a column of values that cannot be read; the message names it.
  """
  found = {}
  for name in dict.fromkeys(name for record in records for name in record):
    values = [record.get(name) for record in records]
    try:
      found[name] = _array(values)
    except _ERRORS:
      found[name] = _spelt(values, f"{what}: column {name!r}")
  if records and not found:
    raise batch_checks.BadExampleError(f"{what}: expected records with columns, got empty ones")
  return pa.table(found)


def write_records(
  records: Iterable[Mapping[str, Any]], folder: pathlib.Path
) -> reader_lib.ParquetFiles:
  """Records of a stream, read once to their end, as files in ``folder``: a new one whenever a
  column becomes wider, from whole numbers to fractions.

  Raises:
    BadExampleError: no records, values of several types, or a column that the first do not have.
  """
  iterator, paths, first = iter(records), list[str](), 0
  schema, writer = pa.schema([]), None
  try:
    while chunk := list(itertools.islice(iterator, _RECORDS)):
      where = f"records {first} to {first + len(chunk) - 1}"
      rows = _rows(_dicts(chunk, where), schema if paths else None, where)
      if writer is None or rows.schema != schema:
        if writer is not None:
          writer.close()
        schema = rows.schema
        paths.append(str(folder / f"records_{len(paths):04}.parquet"))
        writer = pq.ParquetWriter(paths[-1], schema)
      writer.write_batch(rows)
      first += len(chunk)
  finally:
    if writer is not None:
      writer.close()
  if not first:
    raise batch_checks.BadExampleError("records: expected at least one, got none")
  return _all_wide(reader_lib.ParquetFiles(tuple(paths)))


def _dicts(chunk: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
  try:
    return [dict(record) for record in chunk]
  except (TypeError, ValueError) as error:
    raise batch_checks.BadExampleError(
      f"{where}: expected mappings from column to value ({error}); make each record a dict"
    ) from error


def _rows(
  chunk: Sequence[Mapping[str, Any]], schema: pa.Schema | None, where: str
) -> pa.RecordBatch:
  """A chunk in the types of ``schema``, or wider ones where its values need them."""
  names = list(dict.fromkeys(name for record in chunk for name in record))
  if schema is not None:
    if new := sorted(set(names) - set(schema.names)):
      raise batch_checks.BadExampleError(
        f"{where}: column {new[0]!r} is not in the first {_RECORDS} records; give it there too, as "
        "None where it is missing"
      )
    names = schema.names
  found = {}
  for name in names:
    try:
      values = _array([record.get(name) for record in chunk])
      if schema is not None:
        both = [pa.schema([schema.field(name)]), pa.schema([(name, values.type)])]
        values = values.cast(pa.unify_schemas(both, promote_options="permissive").field(0).type)
      found[name] = values
    except _ERRORS as error:
      raise _of_another_type(where, name, error) from error
  return pa.RecordBatch.from_pydict(found)


def _all_wide(reader: reader_lib.ParquetFiles) -> reader_lib.ParquetFiles:
  """``reader``, once the values of its earlier files are seen to fit the types of the last."""
  for path in reader.paths[:-1]:
    file = pq.ParquetFile(path)
    wider = [f for f in reader.schema if f.type != file.schema_arrow.field(f.name).type]
    for rows in file.iter_batches(_RECORDS, columns=[field.name for field in wider]):
      for field in wider:
        try:
          rows.column(field.name).cast(field.type)
        except pa.ArrowException as error:
          raise _of_another_type("records", field.name, error) from error
  return reader


def _of_another_type(where: str, name: str, error: Exception) -> batch_checks.BadExampleError:
  return batch_checks.BadExampleError(
    f"{where}: a value of another type than others in column {name!r} ({error}); make each column "
    "of one type"
  )


def _array(values: list[Any]) -> pa.Array:
  """Values as Arrow reads them, but no moment becomes a date."""
  found = pa.array(values)
  if pa.types.is_date(found.type) and any(isinstance(v, datetime.datetime) for v in values):
    raise pa.ArrowInvalid("dates and moments")
  return found


def _spelt(values: list[Any], what: str) -> pa.Array:
  """Values of any types as text, or as lists of text; null is missing."""
  is_list = [isinstance(value, list | tuple | np.ndarray) for value in values]
  if not any(is_list):
    return pa.array(_texts(values, what), pa.string())
  if not all(lists or value is None for lists, value in zip(is_list, values, strict=True)):
    raise batch_checks.BadExampleError(
      f"{what}: expected lists in every row or in none, got both; make the column of one kind, or "
      "leave it out"
    )
  flat = iter(_texts([one for value in values if value is not None for one in value], what))
  lists = [None if v is None else list(itertools.islice(flat, len(v))) for v in values]
  return pa.array(lists, pa.list_(pa.string()))


def _texts(values: list[Any], what: str) -> list[str | None]:
  """Each value as text, as a column of it and its like would be."""
  texts: list[str | None] = [None] * len(values)
  for kind in dict.fromkeys(map(type, values)):
    places = [k for k, value in enumerate(values) if type(value) is kind]
    alike = [str(values[k]) if kind is int else values[k] for k in places]  # of any length
    try:
      found = column_values.to_texts(pa.array(alike, from_pandas=True), "text", what).to_pylist()
    except _ERRORS as error:
      raise batch_checks.BadExampleError(
        f"{what}: expected numbers, text or lists of them, got values of type {kind.__name__} "
        f"({error}); convert the column, or leave it out"
      ) from error
    for k, text in zip(places, found, strict=True):
      texts[k] = text
  return texts
