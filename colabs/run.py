"""Executes the notebooks beside it, headless, from the first cell to the last.

Each runs in a folder of its own, on the CPU, and must finish within a minute. One that raises or
runs over fails the command, after the others have run; the failing cell is printed.

    python colabs/run.py            all of them
    python colabs/run.py 01 07      those whose names begin so
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

import nbclient
import nbformat
from traitlets.config import Config

LIMIT_S = 60.0


def execute(path: pathlib.Path, *, limit_s: float = LIMIT_S) -> str | None:
  """Runs one notebook; returns what went wrong, None if nothing did."""
  notebook = nbformat.read(path, as_version=4)
  deadline = time.monotonic() + limit_s
  with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as sockets:
    # Through files of this user alone; the default is a TCP port open to every user.
    transport = {"transport": "ipc", "ip": f"{sockets}/kernel"}
    client = nbclient.NotebookClient(
      notebook,
      config=Config({"KernelManager": transport}),
      kernel_name="python3",
      resources={"metadata": {"path": folder}},
      timeout_func=lambda cell: max(1.0, deadline - time.monotonic()),
    )
    try:
      client.execute()
    except nbclient.exceptions.CellExecutionError as error:
      return str(error)
    except nbclient.exceptions.CellTimeoutError as error:
      return f"not finished after {limit_s:g} s: {error}"
  return None


def run(folder: pathlib.Path, prefixes: Sequence[str], *, limit_s: float = LIMIT_S) -> int:
  """Runs the notebooks of ``folder`` that begin with any of ``prefixes`` (all, if none is given).

  Returns:
    The exit status: 0 if there were notebooks and all succeeded, otherwise 1.
  """
  paths = [p for p in sorted(folder.glob("*.ipynb")) if p.name.startswith(tuple(prefixes or [""]))]
  if not paths:
    print(f"no notebook in {folder.name}/ begins with any of {list(prefixes) or ['']}")
    return 1
  num_failed = 0
  for path in paths:
    began = time.monotonic()
    problem = execute(path, limit_s=limit_s)
    print(f"{path.name}: {'ok' if problem is None else 'FAILED'}, {time.monotonic() - began:.1f} s")
    if problem is not None:
      print(problem)
      num_failed += 1
  return min(num_failed, 1)


if __name__ == "__main__":
  os.environ["JAX_PLATFORMS"] = "cpu"
  sys.exit(run(pathlib.Path(__file__).resolve().parent, sys.argv[1:]))
