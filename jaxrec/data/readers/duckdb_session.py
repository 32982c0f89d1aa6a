"""DuckDB in bounded memory, and how names and values are spelt in its SQL.

Read next: jaxrec/data/readers/reader.py, jaxrec/data/prepared/fit_transforms.py.
"""

from __future__ import annotations

from typing import Any

import duckdb


def connect(memory: str = "512MB", temporary: str | None = None) -> duckdb.DuckDBPyConnection:
  """A DuckDB of bounded memory; what does not fit goes to a temporary folder."""
  settings: dict[str, Any] = {"memory_limit": memory, "threads": 2}
  if temporary is not None:
    settings["temp_directory"] = temporary
  return duckdb.connect(":memory:", config=settings)


def quoted(name: str) -> str:
  """A column's name in SQL."""
  return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
  """A text in SQL."""
  return "'" + value.replace("'", "''") + "'"
