"""Files and folders that are whole or not there.

What is written has a temporary name until it is complete and on disk; then it is renamed, which a
kill cannot cut in two. A name without the suffix is therefore a promise.

Read next: jaxrec/data/criteo/stages.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator

_SUFFIX = ".unfinished"


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary name to write a file or folder under, which becomes ``path`` at the end."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f"{path.name}{_SUFFIX}-{os.getpid()}")
  remove(temporary)
  try:
    yield temporary
    _sync(temporary)
    os.rename(temporary, path)
    _sync_one(path.parent)
  except BaseException:
    remove(temporary)
    raise


def remove(path: pathlib.Path) -> None:
  """Removes a file or a folder, if it is there."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def remove_unfinished(folder: pathlib.Path) -> None:
  """Removes what killed processes left below ``folder``; nobody may be writing there."""
  for path in list(folder.glob(f"**/*{_SUFFIX}-*")):
    remove(path)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
  """Holds the lock file ``path``; another process waits here. The kernel frees it with us."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _sync(path: pathlib.Path) -> None:
  for below in path.rglob("*") if path.is_dir() else ():
    _sync_one(below)
  _sync_one(path)


def _sync_one(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
