"""What a result depends on beside the trained model: how it was tested, and on which files.

``result.json`` holds this, so that a finished run that is asked for something else is tested again.
Files are told apart as ``make`` does, by size and time, at the cost of a look at each. Files that
are gone have not changed: a run outlives its data.

Read next: jaxrec/runs/workdir.py.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import Any

from jaxrec.config import experiment as experiment_lib

# Fields another value of which has the trained model tested again.
FIELDS = ("test_examples", "baseline_steps", "slices")


def tested_with(config: experiment_lib.ExperimentConfig) -> dict[str, Any]:
  """What a test of ``config`` made now would depend on, as it comes back from JSON.

  A data set made in Python has nothing here to tell it by: it is taken to be the same one.
  """
  fields = {name: getattr(config, name) for name in FIELDS}
  return {
    **{name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()},
    "data_dir": _files(config.data.data_dir),
    "test_dir": _files(config.data.test_dir),
    "schema": _digest(config.data.schema),
  }


def is_same(then: dict[str, Any], now: dict[str, Any]) -> bool:
  """Whether a result tested with ``then`` stands for ``now``; an older one may leave things unsaid.

  >>> is_same({"test_examples": 9}, {"test_examples": 9, "slices": []})
  True
  """
  return all(name not in then or _is_same(then[name], now[name]) for name in now)


def _is_same(then: Any, now: Any) -> bool:
  if not (isinstance(then, dict) and isinstance(now, dict)):
    return bool(then == now)
  is_same_path = os.path.abspath(then["path"]) == os.path.abspath(now["path"])
  return is_same_path and now["content"] in (None, then["content"])


def _files(path: str | None) -> dict[str, Any] | None:
  """A file, or those in a folder, as ``content``: name, size and time of each; None: not there."""
  if not path:
    return None
  try:
    here = pathlib.Path(path)
    found = sorted(p for p in here.iterdir() if p.is_file()) if here.is_dir() else [here]
    stats = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in found]
  except OSError:
    return {"path": path, "content": None}
  return {"path": os.path.abspath(path), "content": stats}


def _digest(path: str | None) -> dict[str, Any] | None:
  """A small file as ``content``: a hash of what it holds."""
  if not path:
    return None
  try:
    content = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
  except OSError:
    return {"path": path, "content": None}
  return {"path": os.path.abspath(path), "content": content}
