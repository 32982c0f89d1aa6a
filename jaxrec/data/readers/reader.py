"""Tables, in order, a chunk at a time.

A ``Reader`` says which columns there are and yields record batches: rows in file order, files in
order of name, memory bounded by a chunk. Parquet and Arrow are read by pyarrow, text by DuckDB
(csv_files.py). Whatever is wrong with a file becomes a ``BadExampleError`` that names the file and,
for text, the line.

Read next: jaxrec/data/prepared/prepare.py.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from jaxrec import config
from jaxrec.data.readers import csv_files, files
from jaxrec.features import column_values
from jaxrec.inputs import batch_checks

_DAMAGED = (OSError, pa.ArrowException, UnicodeDecodeError)  # what a broken Parquet file raises


class Reader(Protocol):
  """A table that can be read in order, again and again."""

  @property
  def schema(self) -> pa.Schema:
    """Names and types of the columns as they are read."""

  @property
  def kinds(self) -> dict[str, str]:
    """The kind of each column's values (column_values.py)."""

  @property
  def name(self) -> str:
    """What to call it in a message."""

  def identity(self) -> list[Any]:
    """Plain values that change when the table does."""

  def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows, in chunks of any size."""

  def places(self, rows: Sequence[int]) -> list[str]:
    """Where rows stand, for people, by their ascending numbers; may read the table anew."""


@dataclasses.dataclass(frozen=True)
class ArrowTable:
  """A table in memory.

  Attributes:
    table: the rows.
    name: what to call it.
    files: that it was made of; what is prepared from it is found again while these are the same.
    logs: of columns that are spans (spans.py), the values that they are spans of.
    recipe: how it was made of them, in plain values; the same while this is the same.
    kinds_of: the kinds of columns whose type does not tell (numbers as text).
    bad_rows: what was left out of it, for people.
  """

  table: pa.Table
  name: str = "the table"
  files: tuple[str, ...] = ()
  logs: Mapping[str, pa.Array] = dataclasses.field(default_factory=dict)
  recipe: tuple[Any, ...] = ()
  kinds_of: Mapping[str, str] = dataclasses.field(default_factory=dict)
  bad_rows: Sequence[str] = ()

  @property
  def schema(self) -> pa.Schema:
    return self.table.schema

  @property
  def kinds(self) -> dict[str, str]:
    of_logs = {name: column_values.kind_of(values.type) for name, values in self.logs.items()}
    return {**_kinds(self.schema), **of_logs, **self.kinds_of}

  def identity(self) -> list[Any]:
    return [self.name, *self.recipe, *files.identity(self.files)]

  def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    yield from self.table.select(list(columns)).to_batches(max_chunksize=files.CHUNK_ROWS)

  def places(self, rows: Sequence[int]) -> list[str]:
    return [f"{self.name}, row {row}" for row in rows]


@dataclasses.dataclass(frozen=True)
class ParquetFiles:
  """Parquet files of the same columns; types may be wider in one than in another."""

  paths: tuple[str, ...]

  @property
  def name(self) -> str:
    return files.named(self.paths)

  @functools.cached_property
  def schema(self) -> pa.Schema:
    schema = _parquet(self.paths[0]).schema_arrow.remove_metadata()
    for path in self.paths[1:]:
      other = _parquet(path).schema_arrow.remove_metadata()
      if other.names != schema.names:
        raise batch_checks.BadExampleError(
          f"{path}: has columns {', '.join(other.names)}, but {self.paths[0]} has "
          f"{', '.join(schema.names)}; files of one table need the same columns"
        )
      try:
        schema = pa.unify_schemas([schema, other], promote_options="permissive")
      except pa.ArrowException as error:
        raise batch_checks.BadExampleError(
          f"{path}: a column is of another type than in {self.paths[0]} "
          f"({files.first_line(error)}); files of one table need the same columns"
        ) from error
    return schema

  @property
  def kinds(self) -> dict[str, str]:
    return _kinds(self.schema)

  def identity(self) -> list[Any]:
    return files.identity(self.paths)

  def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    wanted = pa.schema([self.schema.field(name) for name in columns])
    for path in self.paths:
      file = _parquet(path)
      try:
        for rows in file.iter_batches(files.CHUNK_ROWS, columns=list(columns)):
          yield rows.select(wanted.names).cast(wanted)
      except _DAMAGED as error:
        raise batch_checks.BadExampleError(
          f"{path}: cannot be read: {files.first_line(error)}"
        ) from error

  def places(self, rows: Sequence[int]) -> list[str]:
    sizes = [_parquet(path).metadata.num_rows for path in self.paths]
    firsts = [0, *itertools.accumulate(sizes)]
    files_of = [sum(first <= row for first in firsts) - 1 for row in rows]
    return [f"{self.paths[k]}, row {n - firsts[k]}" for k, n in zip(files_of, rows, strict=True)]


def open_files(
  path: str | os.PathLike[str],
  *,
  column_names: Sequence[str] | None = None,
  separator: str | None = None,
  skip_bad_rows: bool = False,
) -> ParquetFiles | csv_files.CsvFiles:
  """A reader of a file or of a folder of files: ``.parquet``, or ``.csv``, ``.tsv``, ``.txt``,
  ``.dat``, plain or ``.gz``.

  Args:
    path: the file or folder.
    column_names: of text files without a line of names.
    separator: of text files; None: what stands most often in the first line.
    skip_bad_rows: of text files: malformed rows are counted and left out.

  Raises:
    BadExampleError: there is nothing to read, files of several forms, an empty or damaged file.
  """
  paths, form = files.of_one_table(pathlib.Path(path))
  if form == files.PARQUET:
    return ParquetFiles(paths)
  return csv_files.open_csv(
    paths, column_names=column_names, separator=separator, skip_bad_rows=skip_bad_rows
  )


def require_columns(reader: Reader, names: Iterable[str]) -> None:
  """Raises BadExampleError unless the table has all these columns."""
  known = reader.schema.names
  for name in names:
    if name not in known:
      raise batch_checks.BadExampleError(
        f"{reader.name}: no column {name!r}; {config.did_you_mean(name, known)}"
      )


def _kinds(schema: pa.Schema) -> dict[str, str]:
  return {field.name: column_values.kind_of(field.type) for field in schema}


def _parquet(path: str) -> pq.ParquetFile:
  try:
    file = pq.ParquetFile(path, memory_map=True)
    _ = file.schema_arrow.names
    return file
  except _DAMAGED as error:
    raise batch_checks.BadExampleError(
      f"{path}: is damaged, cut off or no Parquet file ({files.first_line(error)}); fetch it again"
    ) from error
