"""The folder of a run: its config, its metrics, its result.

``config.json`` is written first and says what the folder may be resumed as. ``metrics.jsonl`` grows a
line at a time and is cut back to the checkpoint on resume, so that an interrupted run leaves the same
file as an undisturbed one. ``result.json`` appears last, whole, and means done.

Read next: jaxrec/training/checkpoint.py.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from jaxrec import config as config_lib

# What may differ when a run is resumed: how long, how often to look, and how data is fetched.
_MAY_CHANGE = (
    "steps", "data.num_workers", "data.prefetch_depth", "data.data_dir", "test_examples",
    "baseline_steps",
)  # fmt: skip


class WorkdirError(RuntimeError):
  """A folder that cannot be used for this run; the message says why and what to do."""


class Workdir:
  """One run's folder."""

  def __init__(self, path: str | os.PathLike[str]):
    self.path = pathlib.Path(path)
    self.config_path = self.path / "config.json"
    self.metrics_path = self.path / "metrics.jsonl"
    self.result_path = self.path / "result.json"
    self.checkpoints_path = self.path / "checkpoints"

  def open(self, config: config_lib.ExperimentConfig) -> None:
    """Creates the folder for ``config``, or makes sure that it was made for the same one.

    Raises:
      WorkdirError: it belongs to another configuration, or cannot be written.
    """
    wanted = json.loads(json.dumps(config_lib.to_dict(config)))
    if self.config_path.exists():
      self._check_same(_read_json(self.config_path), wanted)
    elif self.path.is_dir() and any(self.path.iterdir()):
      raise WorkdirError(
          f"{self.path} holds other files and no config.json: not a run of jaxrec; choose another "
          "--workdir, or add --fresh"
      )
    write_atomically(self.config_path, json.dumps(wanted, indent=2) + "\n")

  def _check_same(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    old, new = _flatten(found), _flatten(wanted)
    changed = sorted(
        key for key in old.keys() | new.keys()
        if old.get(key) != new.get(key) and key not in _MAY_CHANGE
    )  # fmt: skip
    if changed:
      shown = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} asked for" for k in changed)
      raise WorkdirError(
          f"{self.path} holds a run of another configuration ({shown}). Use the same settings to "
          "resume it, another --workdir, or --fresh for a new folder beside it. Nothing was changed."
      )

  def result(self, steps: int) -> dict[str, Any] | None:
    """The result of a finished run of ``steps`` steps, or None."""
    if not self.result_path.exists():
      return None
    result = _read_json(self.result_path)["result"]
    return result if result["steps"] == steps else None

  def write_result(self, result: dict[str, Any], **details: Any) -> None:
    """Writes ``result``, the line that train.py prints, and what stands behind it."""
    text = json.dumps({"result": result, **details}, indent=2)
    write_atomically(self.result_path, text + "\n")

  def keep_metrics_until(self, step: int) -> None:
    """Cuts ``metrics.jsonl`` back to the lines of steps <= ``step``; a torn last line goes too."""
    if not self.metrics_path.exists():
      return
    kept = []
    for line in self.metrics_path.read_text().splitlines():
      try:
        if json.loads(line)["step"] <= step:
          kept.append(line + "\n")
      except (ValueError, KeyError):
        continue
    write_atomically(self.metrics_path, "".join(kept))

  def append_metrics(self, line: dict[str, Any]) -> None:
    """Adds one line, on disk before this returns."""
    try:
      with self.metrics_path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      raise WorkdirError(_cannot_write(self.metrics_path, error)) from error


def fresh_path(path: str) -> str:
  """``path``, or the first of ``path-2``, ``path-3``, ... that does not exist.

  >>> fresh_path("/no/such/run")
  '/no/such/run'
  """
  if not os.path.exists(path):
    return path
  number = 2
  while os.path.exists(f"{path.rstrip('/')}-{number}"):
    number += 1
  return f"{path.rstrip('/')}-{number}"


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes ``text`` so that ``path`` holds all of it or what it held before."""
  temporary = path.with_name(path.name + ".tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("w") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise WorkdirError(_cannot_write(path, error)) from error


def _cannot_write(path: pathlib.Path, error: OSError) -> str:
  return (
      f"cannot write {path}: {error.strerror or error}. Make room or choose another --workdir, then run "
      "the same command again; finished checkpoints are intact"
  )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise WorkdirError(f"{path} is not JSON ({error}); move it away or use --fresh") from error


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat.update(_flatten(value, f"{prefix}{key}."))
    else:
      flat[f"{prefix}{key}"] = value
  return flat
