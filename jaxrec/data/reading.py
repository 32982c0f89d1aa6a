"""Tables from files, in order, a chunk at a time.

A ``Reader`` says which columns there are and yields record batches: rows in file order, files in
order of name, memory bounded by a chunk. CSV is read by DuckDB, which is strict about what a line
may hold and knows its number; Parquet and Arrow by pyarrow. Whatever is wrong with a file becomes a
``BadExampleError`` that names the file and, for text, the line.

Read next: jaxrec/data/preparing.py.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import os
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from jaxrec import config
from jaxrec.data import duck
from jaxrec.features import validate

CHUNK_ROWS = 1 << 16
MISSING_TEXTS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")
_SEPARATORS = (",", "\t", ";", "|")
_SAMPLE_ROWS = 20_480
_MIXED_SHARE = 0.95  # of a text column's values that are numbers: above it, the others are mistakes


class Reader(Protocol):
  """A table that can be read in order, again and again."""

  @property
  def schema(self) -> pa.Schema:
    """Names and types of the columns."""

  @property
  def name(self) -> str:
    """What to call it in a message."""

  def identity(self) -> list[Any]:
    """Plain values that change when the table does."""

  def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows, in chunks of any size."""


@dataclasses.dataclass(frozen=True)
class ArrowTable:
  """A table in memory.

  Attributes:
    table: the rows.
    name: what to call it.
    files: that it was made of; what is prepared from it is found again while these are the same.
  """

  table: pa.Table
  name: str = "the table"
  files: tuple[str, ...] = ()

  @property
  def schema(self) -> pa.Schema:
    return self.table.schema

  def identity(self) -> list[Any]:
    return [self.name, *_identity(self.files)]

  def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    yield from self.table.select(list(columns)).to_batches(max_chunksize=CHUNK_ROWS)


@dataclasses.dataclass(frozen=True)
class ParquetFiles:
  """Parquet files of one schema."""

  paths: tuple[str, ...]

  @property
  def name(self) -> str:
    return _named(self.paths)

  @property
  def schema(self) -> pa.Schema:
    schema = _parquet(self.paths[0]).schema_arrow
    for path in self.paths[1:]:
      other = _parquet(path).schema_arrow
      if other.names != schema.names:
        raise validate.BadExampleError(
          f"{path}: has columns {', '.join(other.names)}, but {self.paths[0]} has "
          f"{', '.join(schema.names)}; files of one table need the same columns"
        )
    return schema.remove_metadata()

  def identity(self) -> list[Any]:
    return _identity(self.paths)

  def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for path in self.paths:
      file = _parquet(path)
      try:
        yield from file.iter_batches(CHUNK_ROWS, columns=list(columns))
      except (OSError, pa.ArrowException) as error:
        raise validate.BadExampleError(f"{path}: cannot be read: {_first_line(error)}") from error


@dataclasses.dataclass(frozen=True)
class CsvFiles:
  """Text files with one row a line, plain or gzipped.

  Attributes:
    paths: the files, of one form.
    separator: what stands between values.
    types: DuckDB's type of each column, in file order.
    has_header: whether each file begins with a line of names.
    skip_bad_rows: whether malformed rows are left out and counted, rather than an error.
    text_columns: columns to read as text although their first values are numbers; None: not yet
      known, all are read as their first values are.
    bad_rows: where each row left out is described; filled while reading.
  """

  paths: tuple[str, ...]
  separator: str
  types: dict[str, str]
  has_header: bool = True
  skip_bad_rows: bool = False
  text_columns: tuple[str, ...] | None = None
  bad_rows: list[str] = dataclasses.field(default_factory=list, compare=False)

  @property
  def name(self) -> str:
    return _named(self.paths)

  @property
  def schema(self) -> pa.Schema:
    connection = duck.connect()
    empty = ", ".join(
      f"CAST(NULL AS {kind}) AS {duck.quoted(name)}" for name, kind in self._read_types().items()
    )
    return connection.sql(f"SELECT {empty} LIMIT 0").to_arrow_table().schema

  def identity(self) -> list[Any]:
    options = [self.separator, list(self.types.items()), list(self.text_columns or ())]
    return [*_identity(self.paths), *options, self.has_header, self.skip_bad_rows]

  def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    self.bad_rows.clear()
    for path in self.paths:
      connection = duck.connect()
      query = f"SELECT {', '.join(map(self._value, columns))} FROM {self._scan(path)}"
      with _naming(path):
        yield from connection.sql(query).to_arrow_reader(CHUNK_ROWS)
      if self.skip_bad_rows:
        rejected = connection.sql(
          "SELECT DISTINCT ON (line) line, error_message FROM reject_errors ORDER BY line"
        )
        self.bad_rows.extend(f"{path}, line {n}: {text}" for n, text in rejected.fetchall())

  def _read_types(self) -> dict[str, str]:
    if self.text_columns is None:
      return self.types
    # As DOUBLE: DuckDB would round a later 3.7 to a whole number without a word.
    wide = {n: "DOUBLE" if kind == "BIGINT" else kind for n, kind in self.types.items()}
    return wide | dict.fromkeys(self.text_columns, "VARCHAR")

  def _value(self, column: str) -> str:
    """The column in SQL: text without blanks around it; whole numbers among it in one spelling."""
    name = duck.quoted(column)
    if self._read_types()[column] != "VARCHAR":
      return name
    text = f"trim({name})"
    if self.types[column] == "BIGINT":
      whole = f"coalesce(CAST(TRY_CAST({text} AS BIGINT) AS VARCHAR), {text})"
      text = f"CASE WHEN regexp_full_match({text}, '[-+]?[0-9]+') THEN {whole} ELSE {text} END"
    return f"{text} AS {name}"

  def _scan(self, path: str) -> str:
    columns = ", ".join(
      f"{duck.literal(n)}: {duck.literal(kind)}" for n, kind in self._read_types().items()
    )
    rejects = "store_rejects = true" if self.skip_bad_rows else "ignore_errors = false"
    return (
      f"read_csv({duck.literal(path)}, auto_detect = false, "
      f"delim = {duck.literal(self.separator)}, "
      f"header = {str(self.has_header).lower()}, columns = {{{columns}}}, {_CSV_FORM}, {rejects})"
    )


def open_files(
  path: str | os.PathLike[str],
  *,
  column_names: Sequence[str] | None = None,
  separator: str | None = None,
  skip_bad_rows: bool = False,
) -> ParquetFiles | CsvFiles:
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
  paths = _files(pathlib.Path(path))
  if paths[0].endswith(".parquet"):
    return ParquetFiles(paths)
  first = _first_text_line(paths[0])
  separator = separator or max(_SEPARATORS, key=first.count)
  names = _split_header(first, separator) if column_names is None else list(column_names)
  _check_names(names, paths[0])
  for other in paths[1:] if column_names is None else ():
    if (found := _split_header(_first_text_line(other), separator)) != names:
      raise validate.BadExampleError(
        f"{other}: begins with columns {', '.join(found)}, but {paths[0]} with "
        f"{', '.join(names)}; files of one table need the same columns"
      )
  has_header = column_names is None
  types = _sniffed(paths, separator, names, has_header)
  return CsvFiles(paths, separator, types, has_header, skip_bad_rows)


_NULLS = ", ".join(f"'{text}'" for text in MISSING_TEXTS)
_CSV_FORM = f"quote = '\"', escape = '\"', nullstr = [{_NULLS}], strict_mode = true"


def _sniffed(
  paths: tuple[str, ...], separator: str, names: list[str], has_header: bool
) -> dict[str, str]:
  """DuckDB's type of each column, from the first rows.

  A column of text nearly all of which are numbers is a column of numbers with a mistake in it, to
  be found when it is read, and not text.
  """
  connection = duck.connect()
  columns = ", ".join(f"{duck.literal(name)}: 'VARCHAR'" for name in names)
  form = (
    f"read_csv({duck.literal(paths[0])}, auto_detect = false, "
    f"delim = {duck.literal(separator)}, header = {str(has_header).lower()}, "
    f"columns = {{{columns}}}, {_CSV_FORM}, ignore_errors = true)"
  )
  with _naming(paths[0]):
    connection.execute(f"CREATE TEMP TABLE sample AS SELECT * FROM {form} LIMIT {_SAMPLE_ROWS}")
  return {name: _type_of(connection, duck.quoted(name)) for name in names}


def _type_of(connection: duckdb.DuckDBPyConnection, column: str) -> str:
  present, whole, real, truth, moment = connection.execute(
    f"SELECT count({column}), count(TRY_CAST({column} AS BIGINT)) FILTER "
    f"(regexp_full_match({column}, '\\s*[-+]?[0-9]+\\s*')), count(TRY_CAST({column} AS DOUBLE)), "
    f"count(*) FILTER (lower({column}) IN ('true', 'false')), "
    f"count(TRY_CAST({column} AS TIMESTAMP)) FROM sample"
  ).fetchone() or (0, 0, 0, 0, 0)
  if present == 0:
    return "VARCHAR"
  if truth == present:
    return "BOOLEAN"
  if whole >= _MIXED_SHARE * present and real == whole:
    return "BIGINT"
  if real >= _MIXED_SHARE * present:
    return "DOUBLE"
  return "TIMESTAMP" if moment == present else "VARCHAR"


def _files(path: pathlib.Path) -> tuple[str, ...]:
  if not path.exists():
    raise validate.BadExampleError(f"{path}: no such file or folder; check --data_dir")
  found = [path] if path.is_file() else sorted(p for p in path.iterdir() if _form(p))
  if not found or not _form(found[0]):
    raise validate.BadExampleError(
      f"{path}: nothing to read; expected a file, or a folder of files, ending in .parquet, .csv, "
      ".tsv, .txt or .dat, text also with .gz"
    )
  forms = {_form(p) for p in found}
  if len(forms) > 1:
    raise validate.BadExampleError(
      f"{path}: holds files of several forms ({', '.join(sorted(map(str, forms)))}); keep those of "
      "one table in a folder of their own"
    )
  for file in found:
    if file.stat().st_size == 0:
      raise validate.BadExampleError(f"{file}: is empty")
  return tuple(map(str, found))


def _form(path: pathlib.Path) -> str | None:
  if path.suffix == ".parquet":
    return "parquet"
  name = path.name.removesuffix(".gz")
  return "text" if name.endswith((".csv", ".tsv", ".txt", ".dat")) else None


def _open_text(path: str) -> Any:
  return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _first_text_line(path: str) -> str:
  try:
    with _open_text(path) as file:
      line = file.readline(1 << 20)
  except (OSError, EOFError, zlib.error) as error:
    raise validate.BadExampleError(f"{path}: cannot be read: {_first_line(error)}") from error
  try:
    text = line.decode("utf-8-sig").rstrip("\r\n")
  except UnicodeDecodeError as error:
    raise validate.BadExampleError(
      f"{path}, line 1: is not UTF-8 text ({error}); convert it, for example with iconv"
    ) from error
  if not text.strip():
    raise validate.BadExampleError(f"{path}, line 1: expected column names, got an empty line")
  return text


def _split_header(line: str, separator: str) -> list[str]:
  return [name.strip() for name in next(csv.reader([line], delimiter=separator))]


def _check_names(names: Sequence[str], path: str) -> None:
  twice = {name for name in names if names.count(name) > 1}
  if twice or "" in names:
    what = f"column {sorted(twice)[0]!r} twice" if twice else "a column without a name"
    raise validate.BadExampleError(f"{path}, line 1: {what}; give each column a name of its own")


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Turns DuckDB's errors into one line that names file and line."""
  try:
    yield
  except duckdb.Error as error:
    raise validate.BadExampleError(_csv_message(str(error), path)) from error


def _csv_message(text: str, path: str) -> str:
  line = re.search(r"CSV Error on Line: (\d+)", text)
  reason = re.search(
    r"^(Expected Number of Columns.*|Error when converting.*|.*[Uu]nicode.*|.*[Qq]uote.*|"
    r".*line size.*)$",
    text,
    re.MULTILINE,
  )
  original = re.search(r"^Original Line: (.*)$", text, re.MULTILINE)
  where = path if line is None else f"{path}, line {line[1]}"
  what = reason[1] if reason else _first_line(text)
  if line is None:
    return f"{path}: {what}; is it damaged or cut off? Fetch it again"
  shown = f" in {original[1][:80]!r}" if original else ""
  return (
    f"{where}: {what.strip().rstrip('.')}{shown}; mend the line, declare the column in "
    "schema.json, or leave such rows out with --on_bad_row=skip"
  )


def _parquet(path: str) -> pq.ParquetFile:
  try:
    return pq.ParquetFile(path, memory_map=True)
  except (OSError, pa.ArrowException) as error:
    raise validate.BadExampleError(
      f"{path}: is damaged, cut off or no Parquet file ({_first_line(error)}); fetch it again"
    ) from error


def _identity(paths: Iterable[str]) -> list[Any]:
  stats = [(path, os.stat(path)) for path in paths]
  return [[os.path.abspath(path), s.st_size, s.st_mtime_ns] for path, s in stats]


def _named(paths: tuple[str, ...]) -> str:
  return paths[0] if len(paths) == 1 else f"{os.path.dirname(paths[0])} ({len(paths)} files)"


def _first_line(error: object) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def require_columns(reader: Reader, names: Iterable[str]) -> None:
  """Raises BadExampleError unless the table has all these columns."""
  for name in names:
    if name not in reader.schema.names:
      raise validate.BadExampleError(
        f"{reader.name}: no column {name!r}; {config.did_you_mean(name, reader.schema.names)}"
      )
