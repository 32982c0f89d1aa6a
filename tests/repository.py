"""What the tests of the repository itself (layering, budget, project) read."""

from __future__ import annotations

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]


def files(*suffixes: str) -> list[pathlib.Path]:
  """The files git holds or would add, by suffix (all, if none is given); links are left out."""
  listing = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    check=True,
    text=True,
  )
  paths = (ROOT / name for name in sorted(set(listing.stdout.split("\0"))) if name)
  return [
    path
    for path in paths
    if path.is_file() and not path.is_symlink() and (not suffixes or path.suffix in suffixes)
  ]


def module_name(path: pathlib.Path, root: pathlib.Path) -> str:
  """``root``/jaxrec/tables/__init__.py -> jaxrec.tables."""
  parts = path.relative_to(root).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
