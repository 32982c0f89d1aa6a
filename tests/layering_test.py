"""Who may import whom: the floors of the house, enforced on the source.

A module imports from the rooms above its own, never from one below or beside it. Imports inside
functions count like any other.
"""

from __future__ import annotations

import ast
import doctest
import json
import pathlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from tests import repository

# From the top of the house to its bottom; rooms on one floor stand beside each other.
FLOORS = (
  ("config",),
  ("inputs",),
  ("features", "layers"),
  ("data", "tables", "models"),
  ("sharding",),
  ("caching",),
  ("adaptive",),
  ("training", "analysis"),
  ("runs",),
  ("serving",),
)
PROGRAMS = ("aot", "evaluate", "inspect")  # python -m jaxrec.<name>; nothing imports them
# What a user chooses by name or by a flag: values that only programs read.
CHOICES = ("config.presets", "config.overrides")

# Two towers: what a step reads and keeps, and what a model computes. They meet in `tables`, which
# pool rows by the arithmetic of the layers, and below.
_NARROWER = {
  "layers": ("config",),
  "models": ("config", "layers"),
  "data": ("config", "inputs", "features"),
  "tables": ("config", "inputs", "layers"),
}

# Box -> the boxes it may import from, its own included.
ALLOWED: dict[str, tuple[str, ...]] = {"jax_internals": ("jax_internals",)}
for _number, _floor in enumerate(FLOORS):
  _above = tuple(box for floor in FLOORS[:_number] for box in floor)
  ALLOWED |= {box: (*_NARROWER.get(box, _above), box) for box in _floor}
ALLOWED |= dict.fromkeys(CHOICES, ("config", *CHOICES))
ALLOWED |= {
  program: (*(b for floor in FLOORS for b in floor), *CHOICES, program) for program in PROGRAMS
}

# Importer's box -> modules it may import all the same. Each needs its reason here.
EXCEPTIONS: dict[str, frozenset[str]] = {
  # Of JAX itself; whoever needs it says so here.
  "tables": frozenset({"jaxrec.jax_internals"}),
  "runs": frozenset({"jaxrec.jax_internals"}),
}

FOREIGN = ("tensorflow", "torch")  # never imported, by anything
TOP_LEVEL_LINKS = ("layers", "sharding", "caching")  # for the eye; the packages are jaxrec.*


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str, int]]:
  """(line, dotted name, relative level) of every import; ``from a import b`` gives a.b."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name, 0) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      prefix = f"{node.module}." if node.module else ""
      yield from ((node.lineno, prefix + alias.name, node.level) for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
      function = node.func
      called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
      if called in ("import_module", "__import__"):
        yield node.lineno, str(node.args[0].value), 0


def box_of(name: str) -> str:
  """jaxrec.tables.unique -> tables; of the root package itself: ''."""
  path = name.removeprefix("jaxrec").lstrip(".")
  choice = (choice for choice in CHOICES if f"{path}.".startswith(f"{choice}."))
  return next(choice, path.split(".")[0])


def why_forbidden(importer: str, name: str) -> str | None:
  """What is wrong with the module ``importer`` importing ``name``, both dotted."""
  if name != "jaxrec" and not name.startswith("jaxrec."):
    return None
  box, target = box_of(importer), box_of(name)
  if box == "":
    return None  # the root package gathers the public names
  if box not in ALLOWED:
    return f"{box!r} is no box of the design; give it a place in ALLOWED"
  if target not in ALLOWED:
    return "a name of the root package, which imports everything; import the module that defines it"
  if target in ALLOWED[box]:
    return None
  if any(name == module or name.startswith(f"{module}.") for module in EXCEPTIONS.get(box, ())):
    return None
  return f"{box} may import from {', '.join(ALLOWED[box])}"


def module_imports(root: pathlib.Path) -> Iterator[tuple[str, int, str, int]]:
  """(importer, line, name, level) of every import in every module below ``root``/jaxrec."""
  for path in sorted(root.glob("jaxrec/**/*.py")):
    importer = repository.module_name(path, root)
    for line, name, level in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
      yield importer, line, name, level


def violations(root: pathlib.Path) -> list[str]:
  found = []
  for importer, line, name, level in module_imports(root):
    reason = "relative import; write it absolutely" if level else why_forbidden(importer, name)
    if reason:
      found.append(f"{importer}, line {line}, imports {name}: {reason}")
  return found


def python_in(path: pathlib.Path) -> Iterator[str]:
  """The Python of a file: a module and its doctests, a notebook's cells, a page's code blocks."""
  text = path.read_text(encoding="utf-8")
  if path.suffix == ".py":
    yield text
    yield "\n".join(example.source for example in doctest.DocTestParser().get_examples(text))
  elif path.suffix == ".ipynb":
    for cell in json.loads(text)["cells"]:
      if cell["cell_type"] == "code":
        lines = "".join(cell["source"]).splitlines()
        yield "\n".join("pass" if line.lstrip()[:1] in ("!", "%") else line for line in lines)
  elif path.suffix == ".md":
    for block in re.findall(r"^ *```python[^\n]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE):
      block = textwrap.dedent(block)
      yield doctest.script_from_examples(block) if ">>>" in block else block


def imports_of_top_level(path: pathlib.Path, packages: tuple[str, ...]) -> list[str]:
  """Imports in ``path`` of any of the top-level ``packages``."""
  return [
    f"{path.name}: import of {name}"
    for source in python_in(path)
    for _, name, level in imported_names(ast.parse(source, str(path)))
    if not level and name.split(".")[0] in packages
  ]


def write(root: pathlib.Path, name: str, text: str) -> pathlib.Path:
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, encoding="utf-8")
  return path


def test_every_module_imports_only_from_above_in_its_tower():
  assert violations(repository.ROOT) == []


def test_every_box_is_a_place_that_exists_or_is_named_by_the_design():
  found = {
    box_of(repository.module_name(path, repository.ROOT))
    for path in repository.ROOT.glob("jaxrec/**/*.py")
  }
  assert found - {""} <= set(ALLOWED)
  assert {"config", "features", "tables", "layers", "models", "training"} <= found


def test_every_exception_is_in_use():
  used = {(box_of(importer), name) for importer, _, name, _ in module_imports(repository.ROOT)}
  for box, modules in EXCEPTIONS.items():
    for module in modules:
      assert any(b == box and f"{name}.".startswith(f"{module}.") for b, name in used), (
        f"{box} no longer imports {module}: delete the exception"
      )


@pytest.mark.parametrize(
  ("importer", "statement", "reason"),
  [
    ("config/tables", "from jaxrec.inputs import batch", "config may import from config"),
    ("inputs/batch", "from jaxrec import tables", "inputs may import from config, inputs"),
    ("features/hashing", "import jaxrec.layers.mlp", "features may import from config, inputs"),
    ("layers/mlp", "from jaxrec.inputs import batch", "layers may import from config, layers"),
    ("layers/mlp", "from jaxrec import models", "layers may import from config, layers"),
    ("models/dlrm", "from jaxrec.tables import unique", "models may import from config, layers"),
    ("tables/unique", "from jaxrec.data import pipeline", "tables may import from config, inputs"),
    ("training/step", "from jaxrec.analysis import topologies", "training may import from"),
    ("training/step", "from jaxrec.runs import loop", "training may import from"),
    ("runs/loop", "from jaxrec.config import presets", "runs may import from"),
    ("runs/loop", "from jaxrec.config.overrides import with_overrides", "runs may import from"),
    ("config/data", "from jaxrec.config.presets import get", "config may import from config"),
    ("runs/loop", "from jaxrec import evaluate", "runs may import from"),
    ("data/synthetic", "from jaxrec.runs import loop", "data may import from"),
    ("sharding/plan", "from jaxrec.caching import store", "sharding may import from"),
    ("training/step", "from jaxrec.serving import predictor", "training may import from"),
    ("training/step", "from jaxrec import FeatureConfig", "a name of the root package"),
    ("training/step", "import jaxrec", "a name of the root package"),
    ("tables/unique", "from . import row_gradients", "relative import"),
    ("tables/unique", "from .row_gradients import x", "relative import"),
    ("tables/unique", "def f():\n  from jaxrec.models import dlrm", "tables may import from"),
    ("layers/mlp", 'importlib.import_module("jaxrec.data")', "layers may import from"),
    ("utils/misc", "from jaxrec import config", "'utils' is no box of the design"),
  ],
)
def test_a_planted_violation_is_found(tmp_path, importer, statement, reason):
  write(tmp_path, f"jaxrec/{importer}.py", statement)
  (message,) = violations(tmp_path)
  assert message.startswith(f"jaxrec.{importer.replace('/', '.')}, line ")
  assert reason in message


@pytest.mark.parametrize(
  ("importer", "statement"),
  [
    ("__init__", "from jaxrec.runs import loop"),
    ("features/__init__", "from jaxrec.inputs import batch"),
    ("tables/embed", "from jaxrec.layers import pooling"),
    ("tables/embed", "from jaxrec.layers.pooling import pool"),
    ("caching/bagpipe", "from jaxrec import data, features, tables, sharding, config"),
    ("training/step", "from jaxrec import models, tables, adaptive"),
    ("serving/predictor", "from jaxrec.training import state"),
    ("aot", "from jaxrec.config import overrides, presets"),
    ("tables/lines", "from jaxrec import jax_internals"),
    ("layers/mlp", "import jaxrecord, jax"),
  ],
)
def test_a_permitted_import_is_not_reported(tmp_path, importer, statement):
  write(tmp_path, f"jaxrec/{importer}.py", statement)
  assert violations(tmp_path) == []


def test_nothing_imports_the_links_or_tensorflow_or_torch():
  files = repository.files(".py", ".ipynb", ".md")
  assert len(files) > 10
  found = [line for path in files for line in imports_of_top_level(path, TOP_LEVEL_LINKS + FOREIGN)]
  assert found == []


CELLS = {
  "cells": [
    {"cell_type": "markdown", "source": ["import torch"]},
    {"cell_type": "code", "source": ["!pip install x\n", "from sharding import mesh\n"]},
  ]
}


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("a.py", "import layers"),
    ("a.py", "import os, caching.store as store"),
    ("a.py", "def f():\n  from layers import mlp"),
    ("a.py", 'def f():\n  """Text.\n\n  >>> import tensorflow as tf\n  """'),
    ("a.py", "import torch.nn"),
    ("a.ipynb", json.dumps(CELLS)),
    ("a.md", "Text\n\n```python\nimport jax\nfrom layers import mlp\n```\n"),
    ("a.md", "1. Text\n\n   ```python\n   >>> import layers\n   >>> 1\n   1\n   ```\n"),
  ],
)
def test_a_planted_import_of_a_link_or_of_torch_is_found(tmp_path, name, text):
  path = write(tmp_path, name, text)
  assert len(imports_of_top_level(path, TOP_LEVEL_LINKS + FOREIGN)) == 1


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("a.py", "from jaxrec import layers"),
    ("a.py", '"""Never import layers, torch."""\nfrom .layers import mlp\nimport torchish'),
    ("a.md", "Never `import layers`.\n\n```\nimport layers\n```\n"),
  ],
)
def test_prose_and_proper_imports_are_left_alone(tmp_path, name, text):
  assert imports_of_top_level(write(tmp_path, name, text), TOP_LEVEL_LINKS + FOREIGN) == []


def test_importing_every_module_loads_no_tensorflow_or_torch_and_starts_no_backend():
  program = textwrap.dedent("""
    import importlib, pkgutil, sys
    import jaxrec
    modules = [m.name for m in pkgutil.walk_packages(jaxrec.__path__, "jaxrec.")]
    for name in modules:
      importlib.import_module(name)
    assert len(modules) > 10, modules
    loaded = sorted({"tensorflow", "torch"} & set(sys.modules))
    assert not loaded, f"importing jaxrec loads {loaded}"
    from jax._src import xla_bridge
    assert not xla_bridge.backends_are_initialized(), "importing jaxrec starts JAX's backend"
  """)
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=repository.ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
