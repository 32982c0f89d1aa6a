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
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jaxrec.config import experiment
from jaxrec.data.prepared import column_roles
from jaxrec.data.readers import files
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features import column_values
from jaxrec.features import schema as schema_lib

_FEW_VALUES = 32
_LIST_SHARE = 0.2  # of values with a separator in them, from which on text is a list
_FREE_TEXT_LENGTH = 40
_WHOLE_SHARE = 0.95  # of a column of ids: texts among them are values
_MANY_ROWS = 1000
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


def infer(reader: reader_lib.Reader, config: experiment.DataConfig) -> Guess:
  """A schema for ``reader`` with the labels, weight, group and time that ``config`` names.

  Raises:
    BadExampleError: one of these columns does not exist.
    ConfigError: no label is named, or nothing is left to learn from.
  """
  groups = () if config.group is None else (config.group,)
  slices = () if config.weight is None else (config.weight,)
  labels = column_roles.labels_of(config.labels, reader.schema.names)
  named = [*labels, *slices, *groups, *([config.time] if config.time else [])]
  reader_lib.require_columns(reader, named)
  sample = pa.Table.from_batches(_first(reader), schema=reader.schema)
  kinds = reader.kinds
  columns: dict[str, schema_lib.Column] = {}
  left_out: dict[str, str] = {}
  for name in reader.schema.names:
    if name in labels or name in (config.weight, config.time):
      continue
    found = _guess(name, sample.column(name).combine_chunks(), kinds[name], config)
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


def _first(reader: reader_lib.Reader) -> Iterator[pa.RecordBatch]:
  left = files.SAMPLE_ROWS
  for rows in reader.batches(reader.schema.names):
    yield rows.slice(0, left)
    left -= rows.num_rows
    if left <= 0:
      return


def _guess(
  name: str, values: pa.Array, kind: str, config: experiment.DataConfig
) -> schema_lib.Column | str:
  """The column, or why it is left out."""
  if isinstance(values, pa.ChunkedArray):
    values = values.combine_chunks() if values.num_chunks else pa.array([], values.type)
  stored = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
  is_list = column_values.is_list(stored)
  if not _is_read(stored.value_type if is_list else stored):
    return f"of a type that is not read ({stored})"
  if is_list:
    return _list_column(name, config, {})
  if values.null_count == len(values):
    return "empty"
  texts = column_values.to_texts(values, kind, f"column {name!r}").cast(pa.string()).drop_null()
  num_values = pc.count_distinct(texts).as_py()
  if num_values <= 1:
    return "has one value only" if num_values else "empty"
  if kind == "time":
    return schema_lib.Column("numeric", buckets=config.num_buckets)
  if kind == "text":
    if _share(texts, re.escape(_SEPARATOR)) >= _LIST_SHARE:
      return _list_column(name, config, {"separator": _SEPARATOR})
    length = pc.mean(pc.utf8_length(texts)).as_py()
    if length > _FREE_TEXT_LENGTH and num_values > 0.9 * len(texts):
      return "free text: nearly every value is another"
  whole = _share(texts, column_values.WHOLE)
  is_whole = (
    kind == "number" and whole >= _WHOLE_SHARE and whole == _share(texts, column_values.NUMBER)
  )
  is_number = kind in ("number", "float32")
  if is_number and not (is_whole and (num_values <= _FEW_VALUES or _ID_NAME.search(name))):
    return schema_lib.Column("numeric", buckets=config.num_buckets)
  if num_values == len(texts) >= _MANY_ROWS:
    return "no value occurs twice, so nothing can be learned of one"
  return _categorical(config)


def _share(texts: pa.Array, pattern: str) -> float:
  """Of texts that match a regular expression."""
  return pc.mean(pc.match_substring_regex(texts, pattern).cast(pa.float64())).as_py()


def _is_read(stored: pa.DataType) -> bool:
  """Whether values of this type can be ids, numbers or moments."""
  tests = (
    pa.types.is_null,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_temporal,
  )
  return any(test(stored) for test in tests) and not pa.types.is_interval(stored)


def _categorical(config: experiment.DataConfig) -> schema_lib.Column:
  most = config.max_rows_per_table
  return schema_lib.Column("categorical", min_count=config.min_count, max_size=most)


def _list_column(
  name: str, config: experiment.DataConfig, more: dict[str, Any]
) -> schema_lib.Column:
  kind = "sequence" if _SEQUENCE_NAME.search(name) else "list"
  most = config.max_rows_per_table
  return schema_lib.Column(kind, min_count=config.min_count, max_size=most, **more)
