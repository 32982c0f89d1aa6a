"""Raw files as a stream of parsed blocks, in bounded memory.

A file is read ``chunk_bytes`` at a time; a line that a chunk cuts in two is carried over to the
next, so the rows are the same whatever the chunk. A block that does not parse is looked at line by
line: the first bad line ends the reading with its file, number and reason, or, with
``on_bad_row="skip"``, bad lines are left out and counted.

Source: the layout of Criteo's two releases, see schema.py.
Read next: jaxrec/data/criteo/recipes.py, what becomes of the rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from jaxrec import config
from jaxrec.data.criteo import fields
from jaxrec.inputs import batch_checks

CHUNK_BYTES = 1 << 20  # the temporaries of a block stay in the processor's cache
_MAX_LINE_BYTES = 1 << 16  # a line of Criteo has at most 392


@dataclasses.dataclass(frozen=True)
class Place:
  """Where reading begins: at byte ``byte``, which is line ``line`` (from 0)."""

  byte: int = 0
  line: int = 0


@dataclasses.dataclass(frozen=True)
class Block:
  """Consecutive good rows of a file.

  Attributes:
    rows: the rows.
    start: where in the file the block begins. Of a gzipped file, in its text.
    num_bad: bad lines left out between these rows.
    first_bad: what was wrong with the first of them, with its line.
  """

  rows: fields.RawRows
  start: Place
  num_bad: int = 0
  first_bad: str = ""


def read_blocks(
  path: pathlib.Path,
  *,
  chunk_bytes: int = CHUNK_BYTES,
  on_bad_row: str = "error",
  start: Place = Place(),
) -> Iterator[Block]:
  """The rows of a plain or gzipped raw file, block after block.

  Args:
    path: the file.
    chunk_bytes: text read at a time; a block holds about that much, and memory about ten times.
    on_bad_row: ``error`` or ``skip``.
    start: where to begin, the start of a line.

  Raises:
    BadExampleError: a bad line, with ``error``; a gzip stream that is cut off; an empty file.
    ConfigError: the file cannot be read.
  """
  line, byte = start.line, start.byte
  carried = b""
  with _reading(path, start) as (stream, where):
    while True:
      where.line = line
      chunk = stream.read(chunk_bytes)
      cut = chunk.rfind(b"\n") + 1
      if not chunk:  # the last line may lack its newline
        lines, carried = carried + (b"\n" if carried else b""), b""
      elif not cut:
        carried += chunk
        _check_length(carried, path, line)
        continue
      else:
        lines, carried = carried + chunk[:cut], chunk[cut:]
      if lines:
        yield _block(lines, path, Place(byte, line), on_bad_row)
        line += lines.count(b"\n")
        byte += len(lines)
      if not chunk:
        break
  if not byte:
    raise batch_checks.BadExampleError(f"{path}: is empty; expected Criteo's tab-separated lines")


def _block(lines: bytes, path: pathlib.Path, start: Place, on_bad_row: str) -> Block:
  rows = fields.parse(fields.PADDING + lines + fields.PADDING)
  if rows is not None:
    return Block(rows, start)
  good: list[bytes] = []
  first_bad, num_bad = "", 0
  for number, text in enumerate(lines[:-1].split(b"\n"), start.line):
    _check_length(text, path, number)
    problem = fields.problem(text)
    if problem is None:
      good.append(text)
      continue
    message = f"line {number + 1}: {problem}"
    if on_bad_row == "error":
      raise batch_checks.BadExampleError(
        f"{path}, {message}; mend the file, or leave such rows out with --set data.on_bad_row=skip"
      )
    first_bad, num_bad = first_bad or message, num_bad + 1
  kept = b"".join(text + b"\n" for text in good)
  rows = fields.parse(fields.PADDING + kept + fields.PADDING)
  assert rows is not None, f"{path}: the two parsers disagree after line {start.line}"
  return Block(rows, start, num_bad, first_bad)


def _check_length(text: bytes, path: pathlib.Path, number: int) -> None:
  if len(text) > _MAX_LINE_BYTES:
    raise batch_checks.BadExampleError(
      f"{path}, line {number + 1}: is longer than {_MAX_LINE_BYTES} bytes; is this one of Criteo's "
      "text files?"
    )


@dataclasses.dataclass
class _Where:
  line: int = 0


@contextlib.contextmanager
def _reading(path: pathlib.Path, start: Place) -> Iterator[tuple[Any, _Where]]:
  """The file opened at a place; what goes wrong in reading it becomes an error with its line."""
  where = _Where(start.line)
  try:
    with open(path, "rb") as stream:
      is_gzipped = stream.read(2) == b"\x1f\x8b"
      stream.seek(0)
      text: Any = gzip.GzipFile(fileobj=stream) if is_gzipped else stream
      text.seek(start.byte)
      yield text, where
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise batch_checks.BadExampleError(
      f"{path}, after line {where.line}: the gzip stream is truncated or damaged ({error}); fetch "
      "the file again"
    ) from error
  except OSError as error:
    raise config.ConfigError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
