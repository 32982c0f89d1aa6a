"""The folder of a run: its config, its metrics, its result.

``config.json`` is written first and says what the folder may be resumed as. ``metrics.jsonl`` grows
a line at a time and is cut back to the checkpoint on resume, so that an interrupted run leaves the
same file as an undisturbed one. ``result.json`` appears last, whole, and means done.

Read next: jaxrec/runs/checkpoints/checkpoint.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxrec.config import experiment as experiment_lib
from jaxrec.runs import test_inputs

# What may differ when a run is resumed: how long, how data is fetched, where tables lie, and how it
# is tested.
_MAY_CHANGE = (
  "steps", "epochs", "early_stop_patience", "data.num_workers", "data.prefetch_depth",
  "data.data_dir", "sharding.mesh", "sharding.rules", "sharding.capacity", *test_inputs.FIELDS,
)  # fmt: skip
# What may be another, but neither begin nor cease: without files to test on, rows are held out.
_MAY_BE_ANOTHER = ("data.test_dir",)

REFIT = "refit"  # folder inside a run's: the run that val has trained too


class WorkdirError(RuntimeError):
  """A folder that cannot be used for this run; the message says why and what to do."""


class Workdir:
  """One run's folder."""

  def __init__(self, path: str | os.PathLike[str], *, shared: pathlib.Path | None = None):
    """``shared``: another folder that has the checkpoints, if this one is a process's own."""
    self.path, self._shared = pathlib.Path(path), shared
    self.config_path = self.path / "config.json"
    self.metrics_path = self.path / "metrics.jsonl"
    self.result_path = self.path / "result.json"
    self.checkpoints_path = (shared or self.path) / "checkpoints"

  def folder(self, name: str) -> Workdir:
    """Of a run inside this one."""
    return Workdir(self.path / name, shared=self._shared and self._shared / name)

  def check(self, config: experiment_lib.ExperimentConfig) -> None:
    """Makes sure, changing nothing, that the folder is new or was made for ``config``.

    Raises:
      WorkdirError: it is something else, or belongs to another configuration.
    """
    if self.path.exists() and not self.path.is_dir():
      raise WorkdirError(f"{self.path} is a file, not a folder; choose another --workdir")
    if self.config_path.exists():
      self._check_same(_flatten(read_json(self.config_path)), flat(config))
    # A run that was killed as it began may have left a run.lock and a config.json.tmp.
    elif self.path.is_dir() and any(
      found.suffix not in (".tmp", ".lock") for found in self.path.iterdir()
    ):
      raise WorkdirError(
        f"{self.path} holds other files and no config.json: not a run of jaxrec; choose another "
        "--workdir, or add --fresh"
      )

  def open(self, config: experiment_lib.ExperimentConfig) -> None:
    """Creates the folder for ``config``, after ``check``.

    Raises:
      WorkdirError: as ``check``, or it cannot be written.
    """
    self.check(config)
    write_atomically(self.config_path, json.dumps(_plain(config), indent=2) + "\n")

  def _check_same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = sorted(
        key for key in old.keys() | new.keys()
        if old.get(key) != new.get(key) and key not in _MAY_CHANGE
        and not (key in _MAY_BE_ANOTHER and old.get(key) and new.get(key))
    )  # fmt: skip
    if changed:
      shown = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} asked for" for k in changed)
      raise WorkdirError(
        f"{self.path} holds a run of another configuration ({shown}). Use the same settings to "
        "resume it, another --workdir, or --fresh for a new folder beside it. Nothing was changed."
      )

  def check_steps(self, done: int, steps: int) -> None:
    """Raises WorkdirError if a checkpoint is already past the ``steps`` asked for."""
    if done > steps:
      raise WorkdirError(
        f"{self.path} is at step {done} already, past --steps={steps}: ask for at least {done}, or "
        "add --fresh for a new folder"
      )

  def result(self, config: experiment_lib.ExperimentConfig) -> dict[str, Any] | None:
    """The result of a finished run as long, and tested as, ``config`` asks for, or None."""
    if not self.result_path.exists():
      return None
    found = read_json(self.result_path)
    result = found.get("result")
    if not isinstance(result, dict) or "steps" not in result:
      raise WorkdirError(
        f"{self.result_path} holds no result of jaxrec; move it away to have it made again"
      )
    wanted = length_asked(config)
    made_only = {**wanted, "steps": result["steps"], "epochs": 0.0, "early_stop_patience": 0}
    is_same = found.get("asked", made_only) == wanted
    then = {"slices": list(found.get("slices", {})), **found.get("tested_with", {})}
    return (
      result if is_same and test_inputs.is_same(then, test_inputs.tested_with(config)) else None
    )

  def write_result(
    self, config: experiment_lib.ExperimentConfig, result: dict[str, Any], **details: Any
  ) -> None:
    """Writes ``result``, the line that train.py prints, and what stands behind it.

    How long ``config`` wanted the run to be goes with it: stopped early, it is done all the same.
    So does what it was ``tested_with``, as of now unless ``details`` say.
    """
    made_with = {"asked": length_asked(config), "tested_with": test_inputs.tested_with(config)}
    text = json.dumps({"result": result, **(made_with | details)}, indent=2)
    write_atomically(self.result_path, text + "\n")

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Makes the folder and keeps other processes out of it.

    The kernel holds the lock: it ends with this process, however that ends, and a worker process,
    which outlives a kill for a moment, does not inherit it.

    Raises:
      WorkdirError: another process is running in it.
    """
    with writing(self.path):
      self.path.mkdir(parents=True, exist_ok=True)
      descriptor = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
      with contextlib.suppress(OSError):  # where a file system has no locks, it goes without
        try:
          fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
          raise WorkdirError(
            f"{self.path} is in use by another process, and two would write over each other: wait "
            "for it or end it, or choose another --workdir or --fresh. Nothing was changed."
          ) from None
      yield
    finally:
      os.close(descriptor)

  def keep_metrics_until(self, step: int) -> None:
    """Cuts ``metrics.jsonl`` back to the lines of steps <= ``step``; a torn last line goes too.

    So does a final test: the run is not over, or it would not be opened again.
    """
    if not self.metrics_path.exists():
      return
    kept = []
    for line in self.metrics_path.read_text(errors="replace").splitlines():
      try:
        found = json.loads(line)
        if found["step"] <= step and found["split"] != "test":
          kept.append(line + "\n")
      except (ValueError, KeyError, TypeError):
        continue
    write_atomically(self.metrics_path, "".join(kept))

  def append_metrics(self, line: dict[str, Any]) -> None:
    """Adds one line, on disk before this returns; all of it or nothing."""
    size = self.metrics_path.stat().st_size if self.metrics_path.exists() else 0
    with writing(self.metrics_path):
      try:
        with self.metrics_path.open("a") as file:
          file.write(json.dumps(line) + "\n")
          file.flush()
          os.fsync(file.fileno())
      except OSError:
        os.truncate(self.metrics_path, size)
        raise


def length_asked(config: experiment_lib.ExperimentConfig) -> dict[str, Any]:
  """The fields that decide when a run is done, before the data says how long an epoch is."""
  return {
    "steps": None if config.epochs else config.steps,
    "epochs": config.epochs,
    "early_stop_patience": config.early_stop_patience,
  }


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
  with writing(path):
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    except OSError:
      with contextlib.suppress(OSError):
        temporary.unlink()
      raise


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Turns an OSError into a WorkdirError that names ``path`` and says what to do."""
  try:
    yield
  except OSError as error:
    raise WorkdirError(
      f"cannot write {path}: {error.strerror or error}. Make room or choose another --workdir, "
      "then run the same command again; finished checkpoints are intact"
    ) from error


def flat(config: experiment_lib.ExperimentConfig) -> dict[str, Any]:
  """By dotted name, each field of ``config`` as it comes back from JSON."""
  return _flatten(_plain(config))


def _plain(config: experiment_lib.ExperimentConfig) -> dict[str, Any]:
  """``config`` as it comes back from JSON, where tuples are lists."""
  return json.loads(json.dumps(experiment_lib.to_dict(config)))


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in the file ``path``; WorkdirError if there is none."""
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise WorkdirError(f"cannot read {path}: {error}; move it away or use --fresh") from error
  if not isinstance(found, dict):
    raise WorkdirError(f"{path} does not hold a JSON object; move it away or use --fresh")
  return found


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat.update(_flatten(value, f"{prefix}{key}."))
    else:
      flat[f"{prefix}{key}"] = value
  return flat
