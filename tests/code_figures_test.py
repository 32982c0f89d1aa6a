"""The figures of how the code reads, on modules whose figures are known."""

from __future__ import annotations

import textwrap

import pytest

from tests import code_figures, repository

MODULE = '''\
"""Adds numbers, or finds none.

# no comment
"""

import math  # why


def add(here, there):
  """Returns the sum."""
  # A phase.
  found = here + there

  return found


class Sum:
  """A sum."""

  def total(self):
    """Total of it."""
    for one, value in enumerate("ab"):
      yield one.found

  def _hidden(self):
    """Hides."""


def _own():
  """Adds."""
'''


@pytest.fixture
def module(tmp_path):
  path = tmp_path / "module.py"
  path.write_text(MODULE)
  return code_figures.Module(path, MODULE)


def test_lines_of_code_are_told_from_prose(module):
  assert module.code_lines == 10
  assert len(module.docstring_lines) == 4 + 6 - 1
  assert module.num_comments == 2


def test_pronouns_count_where_they_are_bound(module):
  assert sorted(module.pronouns()) == ["found", "here", "one"]


def test_first_words_are_those_of_public_docstrings(module):
  assert sorted(module.first_words()) == ["A", "Returns", "Total"]


@pytest.mark.parametrize(
  ("word", "expected"),
  [
    ("Returns", True),
    ("Runs", True),
    ("Rows", False),
    ("Return", False),
    ("Is", False),
    ("A", False),
  ],
)
def test_a_verb_is_of_the_third_person_and_in_the_list(word, expected):
  assert code_figures.begins_with_verb(word) is expected


def test_the_verbs_are_sorted_words_in_s():
  words = (repository.ROOT / "tests" / "verbs.txt").read_text().split()
  assert words == sorted(set(words)) and all(word.endswith("s") for word in words)


def plant(root, **sources):
  package = root / "jaxrec" / "tables"
  package.mkdir(parents=True)
  (package / "__init__.py").write_text("from jaxrec.tables import a, b, c, d\n")
  for name, source in sources.items():
    (package / f"{name}.py").write_text(textwrap.dedent(source))


def test_imports_for_types_count_and_packages_do_not(tmp_path):
  plant(
    tmp_path,
    a="import jax\n",
    b="from jaxrec import tables\nfrom jaxrec.tables import a\n",
    c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  from jaxrec.tables.b import Thing\n",
    d="def f():\n  import jaxrec.tables.c\n",
  )
  graph = code_figures.imports(tmp_path)
  names = {name: f"jaxrec.tables.{name}" for name in "abcd"}
  assert graph == {
    names["a"]: set(),
    names["b"]: {names["a"]},
    names["c"]: {names["b"]},
    names["d"]: {names["c"]},
  }
  assert code_figures.import_depth(graph) == 4


def test_a_cycle_is_found_and_is_one_step_deep():
  graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}}
  components = [sorted(component) for component in code_figures.components(graph)]
  assert components == [["d"], ["a", "b", "c"], ["e"]]
  assert code_figures.import_depth(graph) == 3


def test_no_modules_import_each_other():
  graph = code_figures.imports(repository.ROOT)
  assert [part for part in code_figures.components(graph) if len(part) > 1] == []
  assert len(graph) > 150


def test_the_report_has_every_figure_with_its_goal(tmp_path):
  plant(
    tmp_path, a=MODULE, b="from jaxrec.tables import c\n", c="from jaxrec.tables import b\n", d=""
  )
  lines = code_figures.report(tmp_path).splitlines()
  figures = {line[:40].strip(): line[40:].strip() for line in lines}
  assert figures["import depth"] == "1   (goal: at most 12)"
  assert figures["import cycles"] == "1   (goal: 0)"
  assert figures["files in the fullest folder"] == "5 (jaxrec/tables)   (goal: at most 15)"
  assert figures["longest function"].startswith("3 lines (jaxrec/tables/a.py ")
  assert figures["pronoun variables a 1,000 lines"].startswith("136.4, in 1 modules")
  assert figures["docstrings that begin with a verb"].startswith("33% of 3")
  assert figures["comments a 100 code lines"].startswith("15.4 ")
