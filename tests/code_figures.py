"""Measures how the code reads: lengths, imports, names and voice; ``make budget`` prints it.

They are figures to read beside their goals, and fail nothing.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import io
import pathlib
import statistics
import tokenize
from collections.abc import Iterator, Mapping

from tests import layering_test, repository

# Words that say nothing three screens further down, as names of variables.
PRONOUNS = frozenset({
  "found", "kept", "wanted", "now", "where", "known", "made", "seen", "asked", "given", "one",
  "some", "here", "how", "own", "before", "theirs", "mine", "what",
})  # fmt: skip
VERBS = frozenset(pathlib.Path(__file__).with_name("verbs.txt").read_text().split())

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module


@dataclasses.dataclass(frozen=True)
class Module:
  """The source of a module, read once.

  Attributes:
    path: Its file.
    text: What the file holds.
  """

  path: pathlib.Path
  text: str

  @functools.cached_property
  def tree(self) -> ast.Module:
    return ast.parse(self.text)

  @functools.cached_property
  def docstring_lines(self) -> set[int]:
    """Numbers of the lines that docstrings take."""
    return {
      number
      for node in self.definitions()
      if ast.get_docstring(node) is not None
      for number in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }

  @functools.cached_property
  def code_lines(self) -> int:
    """Lines that are neither blank, a comment, nor of a docstring."""
    return sum(
      line.strip()[:1] not in ("", "#") and number not in self.docstring_lines
      for number, line in enumerate(self.text.splitlines(), start=1)
    )

  @functools.cached_property
  def num_comments(self) -> int:
    """Comments, a line of one each; those behind code count too."""
    tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)

  def definitions(self) -> Iterator[Definition]:
    """The module itself, and its classes and functions."""
    return (node for node in ast.walk(self.tree) if isinstance(node, Definition))

  def pronouns(self) -> list[str]:
    """Variables and arguments that are called by a pronoun, each time they are bound."""
    names = (
      node.id if isinstance(node, ast.Name) else node.arg
      for node in ast.walk(self.tree)
      if isinstance(node, ast.arg)
      or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    )
    return [name for name in names if name in PRONOUNS]

  def first_words(self) -> list[str]:
    """First words of the docstrings of public classes and functions, nested functions apart."""
    public = (
      node
      for parent in (self.tree, *(n for n in self.tree.body if isinstance(n, ast.ClassDef)))
      for node in parent.body
      if isinstance(node, Definition) and not node.name.startswith("_")
    )
    return [text.split()[0] for node in public if (text := ast.get_docstring(node))]


def begins_with_verb(word: str) -> bool:
  """Whether a docstring's first word is a verb of the third person, as "Returns" is."""
  return word.endswith("s") and word.lower() in VERBS


def function_lengths(path: pathlib.Path) -> dict[str, int]:
  """Counts the lines of code of each function: no prose, blanks or nested functions."""
  text = path.read_text(encoding="utf-8")
  lines = text.splitlines()
  functions = [
    node
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  ]
  lengths = {}
  for function in functions:
    apart = [node for node in functions if node is not function and node in ast.walk(function)]
    if ast.get_docstring(function) is not None:
      apart.append(function.body[0])
    own = _span(function).difference(*map(_span, apart))
    code = [number for number in own if lines[number - 1].strip()[:1] not in ("", "#")]
    lengths[f"{function.name} (line {function.lineno})"] = len(code)
  return lengths


def _span(node: ast.stmt) -> set[int]:
  return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))


def imports(root: pathlib.Path) -> dict[str, set[str]]:
  """The modules of jaxrec that each module of it imports, for types alone too.

  A package's own module, which only hands names on, counts neither as importer nor as imported.
  """
  paths = [path for path in root.glob("jaxrec/**/*.py") if path.name != "__init__.py"]
  names = {repository.module_name(path, root) for path in paths}
  graph: dict[str, set[str]] = {name: set() for name in names}
  for importer, _, name, level in layering_test.module_imports(root):
    while name and name not in names:  # jaxrec.tables.unique.deduplicate -> jaxrec.tables.unique
      name = name.rpartition(".")[0]
    if importer in names and name and not level:
      graph[importer].add(name)
  return graph


def components(graph: Mapping[str, set[str]]) -> list[list[str]]:
  """Strongly connected components, those first that import nothing of the others (Tarjan)."""
  order: dict[str, int] = {}
  low: dict[str, int] = {}
  stack: list[str] = []
  done: list[list[str]] = []

  def visit(node: str) -> None:
    order[node] = low[node] = len(order)
    stack.append(node)
    for target in sorted(graph[node]):
      if target not in order:
        visit(target)
      if target in stack:
        low[node] = min(low[node], low[target])
    if low[node] == order[node]:
      start = stack.index(node)
      done.append(stack[start:])
      del stack[start:]

  for node in sorted(graph):
    if node not in order:
      visit(node)
  return done


def import_depth(graph: Mapping[str, set[str]]) -> int:
  """Modules on the longest chain of imports; a cycle counts as one."""
  depth: dict[str, int] = {}
  for component in components(graph):
    below = {target for node in component for target in graph[node]} - set(component)
    level = 1 + max((depth[target] for target in below), default=0)
    depth |= dict.fromkeys(component, level)
  return max(depth.values(), default=0)


def read(paths: list[pathlib.Path]) -> list[Module]:
  return [Module(path, path.read_text(encoding="utf-8")) for path in paths]


def report(root: pathlib.Path) -> str:
  """The figures of jaxrec/ and train.py, a line each, with their goals."""
  paths = [*root.glob("jaxrec/**/*.py"), root / "train.py"]
  modules = read(sorted(path for path in paths if path.exists()))
  code = [module.code_lines for module in modules]
  prose = sum(len(module.docstring_lines) for module in modules)
  words = [word for module in modules for word in module.first_words()]
  functions = {
    length: f"{length} lines ({path.relative_to(root)} {name})"
    for path in (module.path for module in modules)
    for name, length in function_lengths(path).items()
  }
  pronouns = [module.pronouns() for module in modules]
  graph = imports(root)
  cycles = [component for component in components(graph) if len(component) > 1]
  folders = {path.parent for path in paths}
  fullest = max(folders, key=lambda folder: len(list(folder.glob("*.py"))))
  rows = [
    ("code lines a module: median", f"{statistics.median(code):.0f}", ""),
    ("code lines a module: p90", f"{sorted(code)[len(code) * 9 // 10]}", ""),
    ("longest function", functions[max(functions)] if functions else "none", ""),
    ("import depth", f"{import_depth(graph)}", "at most 12"),
    ("import cycles", f"{len(cycles)}", "0"),
    (
      "files in the fullest folder",
      f"{len(list(fullest.glob('*.py')))} ({fullest.relative_to(root)})",
      "at most 15",
    ),
    (
      "pronoun variables a 1,000 lines",
      f"{1000 * sum(map(len, pronouns)) / max(1, sum(code) + prose):.1f}, "
      f"in {sum(map(bool, pronouns))} modules",
      "at most 1",
    ),
    (
      "docstrings that begin with a verb",
      f"{sum(map(begins_with_verb, words)) / max(1, len(words)):.0%} of {len(words)}",
      "at least 90 %",
    ),
    (
      "comments a 100 code lines",
      f"{100 * sum(module.num_comments for module in modules) / max(1, sum(code)):.1f}",
      "at least 6",
    ),
  ]
  return "\n".join(
    f"  {name:38} {value}" + (f"   (goal: {goal})" if goal else "") for name, value, goal in rows
  )


if __name__ == "__main__":
  print(report(repository.ROOT))
