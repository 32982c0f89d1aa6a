"""Prints the path of the newest Python here, if it is newer than the one that runs this.

JAX leaves old ones behind, so the suite runs on one and what touches JAX's edges on the other.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

CHECK = "import sys, venv, ensurepip; print(*sys.version_info[:3])"


def pythons() -> list[str]:
  """Interpreters on the PATH, and those that pyenv has and has not put there."""
  on_path = (shutil.which(f"python3.{minor}") for minor in range(11, 20))
  pyenv = shutil.which("pyenv")
  root = subprocess.run([pyenv, "root"], capture_output=True, text=True).stdout if pyenv else ""
  installed = pathlib.Path(root.strip()).glob("versions/3.*/bin/python3") if root.strip() else ()
  return [*filter(None, on_path), *map(str, installed)]


def newest() -> str:
  """Returns the path of the newest one that is newer than this and has venv, or nothing."""
  versions = {}
  for python in pythons():
    done = subprocess.run([python, "-c", CHECK], capture_output=True, text=True)
    if done.returncode == 0:
      versions[tuple(map(int, done.stdout.split()))] = python
  newer = [version for version in versions if version[:2] > sys.version_info[:2]]
  return versions[max(newer)] if newer else ""


if __name__ == "__main__":
  print(newest())
