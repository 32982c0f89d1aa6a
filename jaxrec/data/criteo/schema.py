"""Criteo's raw files: which they are and what their columns mean.

Two releases share one form, tab-separated lines without a header. *Kaggle* is one ``train.txt``
whose rows are seven days in the order of time; *Terabyte* is a file a day, ``day_0`` to
``day_23``. Either may be gzipped. Kaggle's ``test.txt`` has no labels and is of no use here.

Read next: jaxrec/data/criteo/fields.py, how a line is read.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re

import numpy as np

from jaxrec import config

NUM_DENSE, NUM_IDS = 13, 26
DENSE_NAMES = tuple(f"I{number}" for number in range(1, NUM_DENSE + 1))
ID_NAMES = tuple(f"C{number}" for number in range(1, NUM_IDS + 1))
KAGGLE_DAYS = 7
INT32 = np.iinfo(np.int32)


@dataclasses.dataclass(frozen=True)
class RawFiles:
  """The raw files of a folder.

  Attributes:
    paths: one a day, in order; of Kaggle, its only file.
    is_kaggle: whether the one file holds all seven days.
  """

  paths: tuple[pathlib.Path, ...]
  is_kaggle: bool

  @property
  def num_days(self) -> int:
    return KAGGLE_DAYS if self.is_kaggle else len(self.paths)


def find_files(data_dir: str | None) -> RawFiles:
  """The raw files in ``data_dir``.

  Raises:
    ConfigError: there is no such folder, or not what either release holds.
  """
  if not data_dir:
    raise config.ConfigError(
      "data.data_dir: --dataset=criteo needs the folder of the raw files: --data_dir=FOLDER"
    )
  folder = pathlib.Path(data_dir)
  if not folder.is_dir():
    raise config.ConfigError(f"data.data_dir: there is no folder {folder}")
  try:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
  except OSError as error:
    raise config.ConfigError(f"data.data_dir: cannot list {folder}: {error.strerror}") from error
  kaggle = [name for name in names if name in ("train.txt", "train.txt.gz")]
  days: dict[int, list[str]] = {}
  for name in names:
    if match := re.fullmatch(r"day_(0|[1-9]\d?)(\.gz)?", name):
      days.setdefault(int(match[1]), []).append(name)
  twice = next((found for found in [kaggle, *days.values()] if len(found) > 1), None)
  if twice or (kaggle and days):
    both = twice or [*kaggle, *days[min(days)]]
    raise config.ConfigError(
      f"data.data_dir: {folder} holds both {' and '.join(both)}; which of them is meant? Keep one"
    )
  if kaggle:
    return RawFiles((folder / kaggle[0],), is_kaggle=True)
  missing = next((day for day in range(max(days, default=0)) if day not in days), None)
  if len(days) < 2 or missing is not None:
    found = f"day_{missing} is missing" if missing is not None and days else _listed(names)
    raise config.ConfigError(
      f"data.data_dir: expected train.txt (Kaggle) or day_0, day_1, ... (Terabyte, at least two), "
      f"plain or .gz, in {folder}; {found}"
    )
  return RawFiles(tuple(folder / days[day][0] for day in sorted(days)), is_kaggle=False)


def _listed(names: list[str]) -> str:
  if not names:
    return "it is empty"
  return f"found {', '.join(names[:5])}" + (", ..." if len(names) > 5 else "")
