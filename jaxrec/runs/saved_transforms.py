"""The transforms that made a run's numbers, kept in its folder beside the checkpoints.

A row of a table means a value of a column only by the vocabulary that was fitted with it. So the
fitted transforms are saved before the first step, read again by whoever serves or evaluates the
model, and compared when a run is resumed: on data that have changed it would go on with other rows.

Read next: jaxrec/features/transforms.py.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from jaxrec.features import schema as schema_lib
from jaxrec.features import transforms, transforms_io
from jaxrec.inputs import batch as batch_lib
from jaxrec.runs import terminal as terminal_lib
from jaxrec.runs import workdir as workdir_lib


def of(dataset: Any) -> transforms.Transforms | None:
  """The transforms that made the numbers of ``dataset``; None: it has none (the synthetic log)."""
  found = getattr(dataset, "transforms", None)
  return found if isinstance(found, transforms.Transforms) else None


def keep(dataset: Any, workdir: workdir_lib.Workdir, terminal: terminal_lib.Terminal) -> None:
  """Saves the transforms of ``dataset`` in the run's folder, unless they are there.

  Beside them, a copy of an inferred schema, to be edited: the one of the transforms is the run's.
  Malformed rows that were left out are listed anew at each start, as the data may have moved on.
  A data set without transforms (the synthetic log) has nothing to keep.
  """
  fitted = of(dataset)
  if fitted is None:
    return
  _list_bad_rows(dataset, workdir.path / "bad_rows.txt", terminal)
  folder, copy = folder_of(workdir.path), workdir.path / "schema.json"
  if folder.exists():
    return
  is_inferred = getattr(dataset, "is_inferred", False)
  if is_inferred:
    workdir_lib.write_atomically(copy, schema_lib.to_json(fitted.schema))
  temporary = folder.with_name(f"{folder.name}.tmp")
  with workdir_lib.writing(folder):
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    transforms_io.save(fitted, temporary)
    os.rename(temporary, folder)
  if is_inferred:
    terminal.line(
      f"schema, inferred; to change it, edit {copy} and start a new run with --schema={copy}"
    )
    for line in [*fitted.schema.describe().splitlines(), *_left_out(dataset)]:
      terminal.line(line)
  for line in getattr(dataset, "meta", {}).get("crosses", ()):
    terminal.line(f"cross {line}")


def check(dataset: Any, path: str | os.PathLike[str]) -> None:
  """Raises WorkdirError if the run in ``path`` was trained with other transforms than these."""
  fitted, folder = of(dataset), folder_of(path)
  if fitted is None or not folder.exists():
    return
  if transforms_io.digest(transforms_io.load(folder)) != transforms_io.digest(fitted):
    raise workdir_lib.WorkdirError(
      f"{path} was trained with the transforms in {folder}, and the data now give others: has the "
      "file, or the --schema, changed? Restore it, or start in a new folder with --fresh. Nothing "
      "was changed."
    )


def load(path: str | os.PathLike[str]) -> transforms.Transforms:
  """The transforms of the run in the folder ``path``: ``.batch(table)`` makes a Batch of new rows.

  Raises:
    ConfigError: the folder holds none, or they are damaged.
  """
  return transforms_io.load(folder_of(path))


@dataclasses.dataclass(frozen=True, eq=False)
class WithoutRows:
  """A data set that says what its batches would hold and holds none: to rebuild a model by.

  Attributes:
    transforms: of a run.
    embedding_dim: of its model.
  """

  transforms: transforms.Transforms
  embedding_dim: int

  @property
  def spec(self) -> batch_lib.BatchSpec:
    return self.transforms.spec(self.embedding_dim)

  def num_examples(self, split: str) -> int:
    return 0

  def read(self, indices: np.ndarray, split: str = "train") -> batch_lib.Batch:
    raise IndexError(f"split {split!r} holds no examples")


def final_run(path: str | os.PathLike[str]) -> pathlib.Path:
  """The folder of the model that the run in ``path`` has tested: its refit's, if it has one."""
  refit = pathlib.Path(path) / workdir_lib.REFIT
  is_over = (pathlib.Path(path) / "result.json").exists()
  return refit if is_over and refit.is_dir() else pathlib.Path(path)


def folder_of(path: str | os.PathLike[str]) -> pathlib.Path:
  """Where the run in the folder ``path`` keeps its transforms."""
  return pathlib.Path(path) / "features"


def _list_bad_rows(dataset: Any, path: pathlib.Path, terminal: terminal_lib.Terminal) -> None:
  described = getattr(dataset, "bad_rows", ())
  count = getattr(dataset, "num_bad_rows", len(described))
  if count:
    lines = [" ".join(text.splitlines()) for text in described]
    lines += [f"... and {count - len(lines):,} more"] if count > len(lines) else []
    workdir_lib.write_atomically(path, "".join(f"{line}\n" for line in lines))
    terminal.line(f"{count:,} bad rows left out, listed in {path}")
  else:
    with workdir_lib.writing(path):
      path.unlink(missing_ok=True)  # of an earlier start


def _left_out(dataset: Any) -> list[str]:
  return [f"  {name}: left out, {why}" for name, why in dataset.meta.get("left_out", {}).items()]
