"""Files and folders of tables: found, named in messages, told apart from what they were before.

Read next: jaxrec/data/readers/reader.py.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable
from typing import Any

from jaxrec import config as config_lib
from jaxrec.config import experiment
from jaxrec.inputs import batch_checks

CHUNK_ROWS = 1 << 16  # rows of a table that are read at a time
SAMPLE_ROWS = 50_000  # from the first of a table, by which its columns are guessed
PARQUET, TEXT = "parquet", "text"
_TEXT_ENDINGS = (".csv", ".tsv", ".txt", ".dat")


def find(config: experiment.DataConfig, name: str) -> str:
  """The file ``name`` of a known data set, in ``config.data_dir``.

  Raises:
    ConfigError: no folder was named, or the file is not there.
  """
  config_lib.require(
    bool(config.data_dir),
    f"dataset {config.dataset}: --data_dir names the folder that holds {name}",
  )
  path = pathlib.Path(config.data_dir or "") / name
  config_lib.require(path.is_file(), f"dataset {config.dataset}: {path}: no such file")
  return str(path)


def of_one_table(path: pathlib.Path) -> tuple[tuple[str, ...], str]:
  """The file, or the folder's files in order of name; and their form, PARQUET or TEXT.

  Raises:
    BadExampleError: there is nothing to read, files of both forms, or an empty one.
  """
  if not path.exists():
    raise batch_checks.BadExampleError(f"{path}: no such file or folder; check --data_dir")
  found = [path] if path.is_file() else sorted(p for p in path.iterdir() if _form(p))
  forms = sorted({_form(file) or "" for file in found})
  if not found or not forms[0]:
    raise batch_checks.BadExampleError(
      f"{path}: nothing to read; expected a file, or a folder of files, ending in .parquet, .csv, "
      ".tsv, .txt or .dat, text also with .gz"
    )
  if len(forms) > 1:
    raise batch_checks.BadExampleError(
      f"{path}: holds files of several forms ({', '.join(forms)}); keep those of one table in a "
      "folder of their own"
    )
  for file in found:
    if file.stat().st_size == 0:
      raise batch_checks.BadExampleError(f"{file}: is empty")
  return tuple(map(str, found)), forms[0]


def identity(paths: Iterable[str]) -> list[Any]:
  """Plain values that change when the files do."""
  stats = [(path, os.stat(path)) for path in paths]
  return [[os.path.abspath(path), s.st_size, s.st_mtime_ns] for path, s in stats]


def named(paths: tuple[str, ...]) -> str:
  """What to call files of one table in a message."""
  return paths[0] if len(paths) == 1 else f"{os.path.dirname(paths[0])} ({len(paths)} files)"


def first_line(error: object) -> str:
  """Of an error's text."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _form(path: pathlib.Path) -> str | None:
  if path.suffix == ".parquet":
    return PARQUET
  return TEXT if path.name.removesuffix(".gz").endswith(_TEXT_ENDINGS) else None
