"""A first schema, guessed from the first rows: right for most columns, and a file to edit for the
rest.

Types decide where they can: text is categorical, fractions are numeric, lists are lists. A whole
number may be either; it is an id if its column is named like one or has few values. Text with the
same separator in many values is a list. Columns that cannot help (one value only, free text) are
left out, and said to be.

Read next: jaxrec/features/schema.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jaxrec import experiment
from jaxrec.data import csv_files, reading
from jaxrec.features import canonical
from jaxrec.features import schema as schema_lib

SAMPLE_ROWS = 50_000
_FEW_VALUES = 32
_LIST_SHARE = 0.2  # of values with a separator in them, from which on text is a list
_FREE_TEXT_LENGTH = 40
_SEPARATOR = "|"
_ID_NAME = re.compile(
  r"(^|_)(id|ids|user|item|movie|product|sku|customer|ad|ads|campaign|advertiser|publisher|site|app|"
  r"device|category|brand|shop|store|video|song|artist|track|page|query|merchant|city|country|"
  r"region|code|zip|zipcode|key|hash|label|type|class)s?($|_)",
  re.IGNORECASE,
)
_SEQUENCE_NAME = re.compile(r"hist|seq|last_|recent|past", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Guess:
  """A schema, and what was left out of it.

  Attributes:
    schema: the guess.
    left_out: by column, why.
  """

  schema: schema_lib.Schema
  left_out: Mapping[str, str]


def infer(reader: reading.Reader, config: experiment.DataConfig) -> Guess:
  """A schema for ``reader`` with the labels, weight, group and time that ``config`` names.

  Raises:
    BadExampleError: one of these columns does not exist.
    ConfigError: no label is named, or nothing is left to learn from.
  """
  groups = () if config.group is None else (config.group,)
  slices = () if config.weight is None else (config.weight,)
  labels = dict(_label(text, reader.schema.names) for text in config.labels)
  roles = [*labels, *slices, *groups, *([config.time] if config.time else [])]
  reading.require_columns(reader, roles)
  reader = _with_likely_ids(reader)
  sample = pa.Table.from_batches(_first(reader), schema=reader.schema)
  columns: dict[str, schema_lib.Column] = {}
  left_out: dict[str, str] = {}
  for name in reader.schema.names:
    if name in labels or name in (config.weight, config.time):
      continue
    found = _guess(name, sample.column(name).combine_chunks(), reader.kinds[name], config)
    if isinstance(found, str):
      left_out[name] = found
    else:
      columns[name] = found
  schema = schema_lib.Schema(
    labels=labels,
    columns=columns,
    weight=config.weight,
    groups=groups,
    time=config.time,
  )
  return Guess(schema, left_out)


def _first(reader: reading.Reader) -> Iterator[pa.RecordBatch]:
  left = SAMPLE_ROWS
  for rows in reader.batches(reader.schema.names):
    yield rows.slice(0, left)
    left -= rows.num_rows
    if left <= 0:
      return


def _label(text: str, names: Sequence[str]) -> tuple[str, str | None]:
  """A label column, and the value of it that counts as 1 if there is one: ``income=rich``."""
  name, equals, positive = text.partition("=")
  return (text, None) if text in names or not equals else (name, positive)


def _with_likely_ids(reader: reading.Reader) -> reading.Reader:
  """``reader``, told that columns named like ids are such: a text among them is a value."""
  if not isinstance(reader, csv_files.CsvFiles):
    return reader
  likely = tuple(n for n, t in reader.types.items() if t == "BIGINT" and _ID_NAME.search(n))
  return dataclasses.replace(reader, text_columns=likely)


def _guess(
  name: str, values: pa.Array, kind_of_values: str, config: experiment.DataConfig
) -> schema_lib.Column | str:
  """The column, or why it is left out."""
  if isinstance(values, pa.ChunkedArray):
    values = values.combine_chunks() if values.num_chunks else pa.array([], values.type)
  if pa.types.is_dictionary(values.type):
    values = values.cast(values.type.value_type)
  kind = values.type
  if canonical.is_list(kind):
    return _list_column(name, config, {})
  if pa.types.is_null(kind):
    return "empty"
  num_values = pc.count_distinct(values, mode="only_valid").as_py()
  if num_values <= 1:
    return "has one value only"
  if kind_of_values == "time":
    return schema_lib.Column("numeric", buckets=config.num_buckets)
  if _is_text(kind):
    texts = values.cast(pa.string())
    is_list = pc.mean(pc.match_substring(texts, _SEPARATOR).cast(pa.float64())).as_py() or 0.0
    if is_list >= _LIST_SHARE:
      return _list_column(name, config, {"separator": _SEPARATOR})
    length = pc.mean(pc.utf8_length(texts)).as_py() or 0.0
    if length > _FREE_TEXT_LENGTH and num_values > 0.9 * (len(values) - values.null_count):
      return "free text: nearly every value is another"
    return _categorical(config)
  if pa.types.is_boolean(kind):
    return _categorical(config)
  if pa.types.is_integer(kind) and (num_values <= _FEW_VALUES or _ID_NAME.search(name)):
    return _categorical(config)
  if kind_of_values in ("number", "float32"):
    return schema_lib.Column("numeric", buckets=config.num_buckets)
  return f"of a type that is not read ({kind})"


def _categorical(config: experiment.DataConfig) -> schema_lib.Column:
  most = config.max_rows_per_table
  return schema_lib.Column("categorical", min_count=config.min_count, max_size=most)


def _list_column(
  name: str, config: experiment.DataConfig, more: dict[str, Any]
) -> schema_lib.Column:
  kind = "sequence" if _SEQUENCE_NAME.search(name) else "list"
  most = config.max_rows_per_table
  return schema_lib.Column(kind, min_count=config.min_count, max_size=most, **more)


def _is_text(kind: pa.DataType) -> bool:
  return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def as_declared(reader: reading.Reader, schema: schema_lib.Schema) -> reading.Reader:
  """``reader``, told which columns of a text file are ids; others need not be told."""
  if not isinstance(reader, csv_files.CsvFiles):
    return reader
  ids = {*schema.groups, *(n for n, column in schema.columns.items() if not column.is_numeric)}
  ids |= {name for name, positive in schema.labels.items() if positive is not None}
  return dataclasses.replace(reader, text_columns=tuple(n for n in reader.types if n in ids))
