"""Tables in text files, one row a line, read by DuckDB.

It is strict about what a line may hold and knows its number. Numbers are read as numbers, which is
fast and finds mistakes early; all else as the text that it is.

Read next: jaxrec/features/canonical.py, which spells the values.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from jaxrec.data import duck, files
from jaxrec.features import canonical, validate

SEPARATORS = (",", "\t", ";", "|")
_SAMPLE_ROWS = 20_480
_MIXED_SHARE = 0.95  # of a text column's values that are numbers: above it, the others are mistakes
_KINDS = {
  "BIGINT": "number",
  "DOUBLE": "number",
  "BOOLEAN": "truth",
  "TIMESTAMP": "time",
  "VARCHAR": "text",
}
_MOMENT = r"\s*\d{4}[-/]\d\d?[-/]\d\d?([ T]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[-+]\d\d(:?\d\d)?)?)?\s*"
_NULLS = ", ".join(f"'{blank}{text}'" for text in canonical.MISSING_TEXTS for blank in ("", " "))
_FORM = f"quote = '\"', escape = '\"', nullstr = [{_NULLS}], strict_mode = true"


@dataclasses.dataclass(frozen=True)
class CsvFiles:
  """Text files with one row a line, plain or gzipped.

  Attributes:
    paths: the files, of one form.
    separator: what stands between values.
    types: DuckDB's type of each column by its first values, in file order.
    has_header: whether each file begins with a line of names.
    skip_bad_rows: whether malformed rows are left out and counted, rather than an error.
    text_columns: columns of ids, read as text whatever their first values are; None: not yet known.
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
    return files.named(self.paths)

  @property
  def schema(self) -> pa.Schema:
    arrow = {"BIGINT": pa.int64(), "DOUBLE": pa.float64()}
    types = self._read_types().items()
    return pa.schema([(name, arrow.get(kind, pa.string())) for name, kind in types])

  @property
  def kinds(self) -> dict[str, str]:
    return {name: _KINDS[kind] for name, kind in self.types.items()}

  def identity(self) -> list[Any]:
    options = [self.separator, list(self.types.items()), list(self.text_columns or ())]
    return [*files.identity(self.paths), *options, self.has_header, self.skip_bad_rows]

  def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    self.bad_rows.clear()
    wanted = ", ".join(map(duck.quoted, columns))
    for path in self.paths:
      connection = duck.connect()
      rejects = "store_rejects = true" if self.skip_bad_rows else "ignore_errors = false"
      scan = _scan(path, self.separator, self._read_types(), self.has_header, rejects)
      with _naming(path):
        yield from connection.sql(f"SELECT {wanted} FROM {scan}").to_arrow_reader(files.CHUNK_ROWS)
      if self.skip_bad_rows:
        rejected = connection.sql(
          "SELECT DISTINCT ON (line) line, error_message FROM reject_errors ORDER BY line"
        )
        self.bad_rows.extend(f"{path}, line {n}: {text}" for n, text in rejected.fetchall())

  def places(self, rows: Sequence[int]) -> list[str]:
    """File and line of rows that ``batches`` has read, by their ascending numbers."""
    lines = itertools.chain.from_iterable(map(self._row_lines, self.paths))
    found, number = [], -1
    for row in rows:
      for path, line in lines:
        number += 1
        if number == row:
          found.append(f"{path}, line {line}")
          break
    return found

  def _row_lines(self, path: str) -> Iterator[tuple[str, int]]:
    """The line on which each row begins, but for those that were left out."""
    begin = f"{path}, line "
    bad = [text for text in self.bad_rows if text.startswith(begin)]
    left_out = {int(text[len(begin) :].split(":", 1)[0]) for text in bad}
    with _open_text(path) as file:
      text = io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="")
      reader = csv.reader(text, delimiter=self.separator)
      line = 1
      for number, record in enumerate(reader):
        is_row = bool(record) and not (self.has_header and number == 0)
        if is_row and line not in left_out:
          yield path, line
        line = reader.line_num + 1

  def _read_types(self) -> dict[str, str]:
    if self.text_columns is None:
      types = self.types
    else:
      # As DOUBLE: DuckDB would round a later 3.7 to a whole number without a word.
      types = {n: "DOUBLE" if kind == "BIGINT" else kind for n, kind in self.types.items()}
      types |= dict.fromkeys(self.text_columns, "VARCHAR")
    return {n: "VARCHAR" if _KINDS[kind] != "number" else kind for n, kind in types.items()}


def open_csv(
  paths: tuple[str, ...],
  *,
  column_names: Sequence[str] | None,
  separator: str | None,
  skip_bad_rows: bool,
) -> CsvFiles:
  """The text files ``paths`` as one table; arguments and errors as ``reading.open_files``."""
  first = _first_text_line(paths[0])
  separator = separator or max(SEPARATORS, key=first.count)
  names = _split_header(first, separator) if column_names is None else list(column_names)
  _check_names(names, paths[0])
  for other in paths[1:] if column_names is None else ():
    if (found := _split_header(_first_text_line(other), separator)) != names:
      raise validate.BadExampleError(
        f"{other}: begins with columns {', '.join(found)}, but {paths[0]} with "
        f"{', '.join(names)}; files of one table need the same columns"
      )
  has_header = column_names is None
  types = _sniffed(paths[0], separator, names, has_header)
  return CsvFiles(paths, separator, types, has_header, skip_bad_rows)


def _scan(path: str, separator: str, types: dict[str, str], has_header: bool, errors: str) -> str:
  """A file as a table in SQL."""
  columns = ", ".join(f"{duck.literal(n)}: {duck.literal(kind)}" for n, kind in types.items())
  return (
    f"read_csv({duck.literal(path)}, auto_detect = false, delim = {duck.literal(separator)}, "
    f"header = {str(has_header).lower()}, columns = {{{columns}}}, {_FORM}, {errors})"
  )


def _sniffed(path: str, separator: str, names: list[str], has_header: bool) -> dict[str, str]:
  """DuckDB's type of each column, from the first rows.

  A column of text nearly all of which are numbers is a column of numbers with a mistake in it, to
  be found when it is read, and not text.
  """
  connection = duck.connect()
  scan = _scan(path, separator, dict.fromkeys(names, "VARCHAR"), has_header, "ignore_errors = true")
  with _naming(path):
    connection.execute(f"CREATE TEMP TABLE sample AS SELECT * FROM {scan} LIMIT {_SAMPLE_ROWS}")
  return {name: _type_of(connection, duck.quoted(name)) for name in names}


def _type_of(connection: duckdb.DuckDBPyConnection, column: str) -> str:
  present, whole, real, truth, moment = connection.execute(
    f"SELECT count({column}), count(TRY_CAST({column} AS BIGINT)) FILTER "
    f"(regexp_full_match({column}, '\\s*[-+]?[0-9]+\\s*')), count(TRY_CAST({column} AS DOUBLE)), "
    f"count(*) FILTER (lower(trim({column})) IN ('true', 'false')), "
    f"count(*) FILTER (regexp_full_match({column}, '{_MOMENT}')) FROM sample"
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


def _open_text(path: str) -> Any:
  return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _first_text_line(path: str) -> str:
  try:
    with _open_text(path) as file:
      line = file.readline(1 << 20)
  except (OSError, EOFError, zlib.error) as error:
    raise validate.BadExampleError(f"{path}: cannot be read: {files.first_line(error)}") from error
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
    raise validate.BadExampleError(_message(str(error), path)) from error


def _message(text: str, path: str) -> str:
  line = re.search(r"CSV Error on Line: (\d+)", text)
  reason = re.search(
    r"^(Expected Number of Columns.*|Error when converting.*|.*[Uu]nicode.*|.*[Qq]uote.*|"
    r".*line size.*)$",
    text,
    re.MULTILINE,
  )
  original = re.search(r"^Original Line: (.*)$", text, re.MULTILINE)
  what = reason[1] if reason else files.first_line(text)
  if line is None:
    return f"{path}: {what}; is it damaged or cut off? Fetch it again"
  shown = f" in {original[1][:80]!r}" if original else ""
  return (
    f"{path}, line {line[1]}: {what.strip().rstrip('.')}{shown}; mend the line, declare the column "
    "in the schema, or leave such rows out with --on_bad_row=skip"
  )
