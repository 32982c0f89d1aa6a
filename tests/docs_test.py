"""The pages in docs/ are true: their Python runs, and their commands name what exists.

Notebooks are executed by colabs/run.py; here, that they are saved clean.
"""

from __future__ import annotations

import pathlib
import re
import shlex

import nbformat
import pytest

from jaxrec import config
from jaxrec.config import experiment as experiment_lib
from jaxrec.config import overrides, presets
from tests import repository

DOCS = repository.ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
# A block of another name would be skipped in silence: `py`, or a fence without a name.
LANGUAGES = {"python", "shell", "text", "json"}


def blocks(text: str) -> list[tuple[str, int, str]]:
  """The fenced blocks of a page: language, line of the opening fence, source."""
  found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
  return [(m[1], text.count("\n", 0, m.start()) + 1, m[2]) for m in found]


def run_page(path: pathlib.Path) -> int:
  """Runs a page's Python blocks in order, in one namespace; returns how many there are."""
  namespace = {"__name__": path.stem}
  sources = [
    (line, source) for language, line, source in blocks(path.read_text()) if language == "python"
  ]
  for line, source in sources:
    # Empty lines before it, so that a traceback names the page's own line.
    exec(compile("\n" * line + source, str(path), "exec"), namespace)  # noqa: S102
  return len(sources)


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  num_blocks = run_page(DOCS / page)
  assert num_blocks >= 3 or page in ("index.md", "decisions.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_says_its_language(page):
  text = (DOCS / page).read_text()
  assert {language for language, _, _ in blocks(text)} <= LANGUAGES
  assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(blocks(text))


def flag_names() -> set[str]:
  """The flags of train.py, read from its text: importing it would define them a second time."""
  text = (repository.ROOT / "train.py").read_text()
  fields = re.search(r"_FIELDS = \{(.*?)^\}", text, re.MULTILINE | re.DOTALL)
  return {
    "help",
    *re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", text),
    *re.findall(r"^  \"(\w+)\":", fields[1], re.MULTILINE),
  }


def check_command(command: str) -> None:
  """Raises unless each flag, config and field that a ``python train.py`` command names exists."""
  experiment = experiment_lib.ExperimentConfig()
  for word in shlex.split(command)[2:]:
    name, _, value = word.removeprefix("--").partition("=")
    assert word.startswith("--") and name in flag_names(), f"{command}: no flag {word}"
    if name == "config":
      experiment = presets.get(value)
    if name == "set":
      experiment = overrides.with_overrides(experiment, [value])


def train_commands(text: str) -> list[str]:
  """Commands that run train.py, in blocks and in backticks."""
  return [c.strip() for c in re.findall(r"python train\.py[^`\n#]*", text)]


@pytest.mark.parametrize("page", PAGES)
def test_the_train_commands_of_a_page_name_flags_and_fields_that_exist(page):
  commands = train_commands((DOCS / page).read_text())
  for command in commands:
    check_command(command)
  assert commands or page != "getting_started.md"


NOTEBOOKS = sorted((repository.ROOT / "colabs").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_saved_without_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert notebook.metadata.kernelspec.name == "python3"
  cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert len(cells) >= 5
  assert all(not cell.outputs and cell.execution_count is None for cell in cells)
  assert any("assert" in cell.source for cell in cells)


def test_a_block_that_raises_fails_its_page_at_its_own_line(tmp_path):
  page = tmp_path / "page.md"
  page.write_text("# Page\n\n```python\nx = 1\n```\n\ntext\n\n```python\nassert x == 2\n```\n")
  with pytest.raises(AssertionError) as caught:
    run_page(page)
  assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (page, 10)


@pytest.mark.parametrize("words", ["--stepz=5", "--set=model.top_mpl=1", "--config=kagle", "steps"])
def test_a_command_that_names_nothing_is_found(words):
  (command,) = train_commands(f"Run `python train.py {words}`.")
  with pytest.raises((AssertionError, config.ConfigError)):
    check_command(command)
