"""Tables in text files, one row a line, cut into values by DuckDB.

It is strict about what a line may hold; what the values mean is said elsewhere, in training and
serving alike, so all of them are read as text (features/column_values.py spells them). Here are
their kinds, guessed from the first rows, and the lines on which rows stand.

Read next: jaxrec/features/column_values.py.
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

from jaxrec.data.readers import duckdb_session, files
from jaxrec.features import column_values
from jaxrec.inputs import batch_checks

SEPARATORS = (",", "\t", ";", "|")
_MIXED_SHARE = 0.95  # of a text column's values that are numbers: above it, the others are mistakes
_MOMENT = r"\d{4}[-/]\d\d?[-/]\d\d?([ T]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[-+]\d\d(:?\d\d)?)?)?"
_MISSING = ", ".join(f"'{text}'" for text in column_values.MISSING_TEXTS)
_FORM = "quote = '\"', escape = '\"', nullstr = [''], strict_mode = true"


@dataclasses.dataclass(frozen=True)
class CsvFiles:
  """Text files with one row a line, plain or gzipped; every value is read as text.

  Attributes:
    paths: the files, of one form.
    separator: what stands between values.
    kinds: of each column's values, in file order.
    has_header: whether each file begins with a line of names.
    skip_bad_rows: whether malformed lines are left out and counted, rather than an error.
    bad_lines: those left out, with the reason, by file; filled while reading.
  """

  paths: tuple[str, ...]
  separator: str
  kinds: dict[str, str]
  has_header: bool = True
  skip_bad_rows: bool = False
  bad_lines: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict, compare=False)

  @property
  def name(self) -> str:
    return files.named(self.paths)

  @property
  def schema(self) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in self.kinds])

  @property
  def bad_rows(self) -> list[str]:
    """What was left out, for people."""
    return [
      f"{path}, line {line}: {why}"
      for path, lines in self.bad_lines.items()
      for line, why in lines.items()
    ]

  def identity(self) -> list[Any]:
    options = [self.separator, list(self.kinds.items()), self.has_header, self.skip_bad_rows]
    return [*files.identity(self.paths), *options]

  def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    self.bad_lines.clear()
    names = list(self.kinds)
    wanted = ", ".join(f"c{names.index(name)}" for name in columns)
    errors = "store_rejects = true" if self.skip_bad_rows else "ignore_errors = false"
    for path in self.paths:
      connection = duckdb_session.connect()
      scan = _scan(path, self.separator, len(names), self.has_header, errors)
      with self._naming(path):
        for rows in connection.sql(f"SELECT {wanted} FROM {scan}").to_arrow_reader(
          files.CHUNK_ROWS
        ):
          yield rows.rename_columns(list(columns))
      if self.skip_bad_rows:
        self.bad_lines[path] = _rejected(connection, path)

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
    for number, (line, record) in enumerate(_records(path, self.separator)):
      is_row = bool(record) and not (self.has_header and number == 0)
      if is_row and line not in self.bad_lines.get(path, {}):
        yield path, line

  @contextlib.contextmanager
  def _naming(self, path: str) -> Iterator[None]:
    """Turns an error of DuckDB's, which may come through Arrow, into one that names the line."""
    try:
      yield
    except (duckdb.Error, OSError, pa.ArrowException) as error:
      raise batch_checks.BadExampleError(_message(str(error), path, self.separator)) from error


def open_csv(
  paths: tuple[str, ...],
  *,
  column_names: Sequence[str] | None,
  separator: str | None,
  skip_bad_rows: bool,
) -> CsvFiles:
  """The text files ``paths`` as one table; arguments and errors as ``reader.open_files``."""
  first = _first_text_line(paths[0])
  separator = separator or max(SEPARATORS, key=first.count)
  names = _names(first, separator, paths[0]) if column_names is None else list(column_names)
  _check_names(names, paths[0])
  for other in paths[1:] if column_names is None else ():
    if (found := _names(_first_text_line(other), separator, other)) != names:
      raise batch_checks.BadExampleError(
        f"{other}: begins with columns {', '.join(found)}, but {paths[0]} with "
        f"{', '.join(names)}; files of one table need the same columns"
      )
  reader = CsvFiles(
    paths, separator, dict.fromkeys(names, "text"), column_names is None, skip_bad_rows
  )
  return dataclasses.replace(reader, kinds=_sniffed(reader))


def _scan(path: str, separator: str, num_columns: int, has_header: bool, errors: str) -> str:
  """A file as a table in SQL, its columns c0, c1, ...: names there are blind to case."""
  columns = ", ".join(f"c{k}: 'VARCHAR'" for k in range(num_columns))
  file, delimiter = duckdb_session.literal(path), duckdb_session.literal(separator)
  return (
    f"read_csv({file}, auto_detect = false, delim = {delimiter}, "
    f"header = {str(has_header).lower()}, columns = {{{columns}}}, {_FORM}, {errors})"
  )


def _sniffed(reader: CsvFiles) -> dict[str, str]:
  """The kind of each column, from the first rows.

  A column of text nearly all of which are numbers is a column of numbers with a mistake in it, to
  be found when it is read, and not text.
  """
  names, path = list(reader.kinds), reader.paths[0]
  connection = duckdb_session.connect()
  scan = _scan(path, reader.separator, len(names), reader.has_header, "ignore_errors = true")
  present = ", ".join(
    f"CASE WHEN trim(c{k}) IN ({_MISSING}) THEN NULL ELSE trim(c{k}) END AS c{k}"
    for k in range(len(names))
  )
  with reader._naming(path):
    connection.execute(
      f"CREATE TEMP TABLE sample AS SELECT {present} FROM (FROM {scan} LIMIT {files.SAMPLE_ROWS})"
    )
  counts = ", ".join(
    f"count(c{k}), count(*) FILTER (regexp_full_match(c{k}, '{column_values.NUMBER}')), "
    f"count(*) FILTER (lower(c{k}) IN ('true', 'false')), "
    f"count(*) FILTER (regexp_full_match(c{k}, '{_MOMENT}'))"
    for k in range(len(names))
  )
  found = connection.execute(f"SELECT {counts} FROM sample").fetchone() or ()
  quadruples = zip(*(iter(found),) * 4, strict=True)
  return {name: _kind(*four) for name, four in zip(names, quadruples, strict=True)}


def _kind(present: int, numbers: int, truths: int, moments: int) -> str:
  if present == 0:
    return "text"
  if truths == present:
    return "truth"
  if numbers >= _MIXED_SHARE * present:
    return "number"
  return "time" if moments == present else "text"


def _rejected(connection: duckdb.DuckDBPyConnection, path: str) -> dict[int, str]:
  """The lines of ``path`` that were left out, and why.

  Raises:
    BadExampleError: a quote that is not closed on its line, as it takes whatever follows with it.
  """
  found = connection.sql(
    "SELECT DISTINCT ON (line_byte_position) line_byte_position, error_type, csv_line, "
    "error_message FROM reject_errors ORDER BY line_byte_position"
  ).fetchall()
  rejected: dict[int, str] = {}
  lines = _lines_at(path, [position for position, *_ in found])
  for line, (_, kind, text, reason) in zip(lines, found, strict=True):
    span = (text or "").strip("\r\n").count("\n")  # empty lines before it come with it
    if kind == "UNQUOTED VALUE" and span:
      raise batch_checks.BadExampleError(
        f"{path}, line {line}: a quote that is not closed on its line takes {span} more with it, "
        "too many to leave out in silence; mend the line"
      )
    rejected |= dict.fromkeys(range(line, line + span + 1), _first_sentence(reason))
  return rejected


def _lines_at(path: str, positions: Sequence[int]) -> list[int]:
  """The numbers of the lines that begin at these bytes, ascending."""
  found, line, position = [], 1, 0
  with _opened(path) as file:
    for wanted in positions:
      while position < wanted:
        piece = file.read(min(1 << 20, wanted - position))
        if not piece:
          break
        line, position = line + piece.count(b"\n"), position + len(piece)
      found.append(line)
  return found


def _records(path: str, separator: str) -> Iterator[tuple[int, list[str]]]:
  """The records of a file, each with the line on which it begins; an empty line is an empty one."""
  with _opened(path) as file, _long_fields():
    text = io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="")
    reader, line = csv.reader(text, delimiter=separator), 1
    for record in reader:
      yield line, record
      line = reader.line_num + 1


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
  """Lets the csv module read values of any length, as DuckDB does."""
  before = csv.field_size_limit(2**31 - 1)
  try:
    yield
  finally:
    csv.field_size_limit(before)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
  """The bytes of a file, whose errors name it: gzip's checksum is read at the end, by us alone."""
  try:
    with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
      yield file
  except (OSError, EOFError, zlib.error) as error:
    raise batch_checks.BadExampleError(
      f"{path}: cannot be read: {files.first_line(error)}; is it damaged or cut off? Fetch it again"
    ) from error


def _first_text_line(path: str) -> str:
  with _opened(path) as file:
    line = file.readline(1 << 20)
  try:
    text = line.decode("utf-8-sig").rstrip("\r\n")
  except UnicodeDecodeError as error:
    raise batch_checks.BadExampleError(
      f"{path}, line 1: is not UTF-8 text ({error}); convert it, for example with iconv"
    ) from error
  if not text.strip():
    raise batch_checks.BadExampleError(f"{path}, line 1: expected column names, got an empty line")
  return text


def _names(line: str, separator: str, path: str) -> list[str]:
  try:
    return [name.strip() for name in next(csv.reader([line], delimiter=separator))]
  except csv.Error as error:
    raise batch_checks.BadExampleError(
      f"{path}, line 1: cannot be read as column names ({error}); end lines as Unix or Windows do, "
      "and leave line ends out of names"
    ) from error


def _check_names(names: Sequence[str], path: str) -> None:
  twice = {name for name in names if names.count(name) > 1}
  if twice or "" in names:
    what = f"column {sorted(twice)[0]!r} twice" if twice else "a column without a name"
    raise batch_checks.BadExampleError(
      f"{path}, line 1: {what}; give each column a name of its own"
    )


def _message(text: str, path: str, separator: str) -> str:
  number = re.search(r"CSV Error on Line: (\d+)", text)
  reason = re.search(
    r"^(Expected Number of Columns.*|.*[Uu]nicode.*|.*[Qq]uote.*|.*line size.*)$",
    text,
    re.MULTILINE,
  )
  original = re.search(r"^Original Line: (.*)$", text, re.MULTILINE)
  what = _first_sentence(reason[1] if reason else files.first_line(text))
  if number is None:
    return f"{path}: {what}; is it damaged or cut off? Fetch it again"
  # DuckDB counts records, of which one may have several lines.
  records = itertools.islice(_records(path, separator), int(number[1]) - 1, None)
  line = next(records, (number[1], []))[0]
  shown = f" in {original[1][:80]!r}" if original else ""
  return (
    f"{path}, line {line}: {what}{shown}; mend the line, or leave such rows out with "
    "--on_bad_row=skip"
  )


def _first_sentence(text: str) -> str:
  return text.strip().splitlines()[0].strip().rstrip(".")
