"""How long modules and functions are; ``python -m tests.budget_test`` prints it.

Only what a reader cannot miss is an error: a module above 400 lines (kernels 600), and a newcomer's
path that is no longer the short one the README promises.
"""

from __future__ import annotations

import pathlib
import statistics

import pytest

from tests import code_figures, repository

MODULE_LINES = 400
KERNEL_LINES = 600
FUNCTION_LINES = 40  # reported, never an error
STEP_LINES = 30
TRAIN_LINES = 120
NEWCOMER_LINES = 900
NEWCOMER_PATH = (
  "train.py",
  "jaxrec/runs/loop.py",
  "jaxrec/training/step.py",
  "jaxrec/models/dlrm.py",
  "jaxrec/tables/device_table.py",
  "jaxrec/inputs/batch.py",
)


def num_lines(path: pathlib.Path) -> int:
  return len(path.read_text(encoding="utf-8").splitlines())


def sources(root: pathlib.Path) -> list[pathlib.Path]:
  """train.py and every module of jaxrec/ and benchmarks/."""
  modules = [root / "train.py", *root.glob("jaxrec/**/*.py"), *root.glob("benchmarks/**/*.py")]
  return sorted(path for path in modules if path.exists())


def line_limit(path: pathlib.Path, root: pathlib.Path) -> int:
  is_kernel = path.is_relative_to(root / "jaxrec" / "caching" / "kernels")
  return KERNEL_LINES if is_kernel else MODULE_LINES


def modules_too_long(root: pathlib.Path) -> list[str]:
  return [
    f"{path.relative_to(root)}: {num_lines(path)} lines, at most {line_limit(path, root)}; "
    "one idea a module: split it"
    for path in sources(root)
    if num_lines(path) > line_limit(path, root)
  ]


def report(root: pathlib.Path) -> str:
  lengths = {path: num_lines(path) for path in sources(root)}
  longest = sorted(lengths, key=lengths.__getitem__, reverse=True)[:5]
  lines = [
    f"{len(lengths)} modules, {sum(lengths.values())} lines, "
    f"median {statistics.median(lengths.values()):.0f} (at most {MODULE_LINES} each)",
    *(f"  {lengths[path]:4d} {path.relative_to(root)}" for path in longest),
    f"functions of more than {FUNCTION_LINES} lines:",
  ]
  for path in lengths:
    for name, length in code_figures.function_lengths(path).items():
      if length > FUNCTION_LINES:
        lines.append(f"  {length:4d} {path.relative_to(root)} {name}")
  present = [root / name for name in NEWCOMER_PATH if (root / name).exists()]
  lines.append(
    f"newcomer's path: {len(present)} of {len(NEWCOMER_PATH)} files, "
    f"{sum(map(num_lines, present))} lines of {NEWCOMER_LINES}"
  )
  lines += ["figures to read, which fail nothing:", code_figures.report(root)]
  return "\n".join(lines)


def test_no_module_is_longer_than_its_budget():
  assert sources(repository.ROOT), "no module was found"
  assert modules_too_long(repository.ROOT) == []


def test_the_newcomers_path_stays_short():
  lengths = {name: num_lines(repository.ROOT / name) for name in NEWCOMER_PATH}
  assert sum(lengths.values()) <= NEWCOMER_LINES, lengths
  assert lengths["train.py"] <= TRAIN_LINES, lengths


def test_the_step_fits_on_a_screen():
  lengths = code_figures.function_lengths(repository.ROOT / "jaxrec/training/step.py")
  assert lengths, "jaxrec/training/step.py defines no function"
  assert max(lengths.values()) <= STEP_LINES, lengths


@pytest.mark.parametrize(
  ("name", "limit"),
  [
    ("jaxrec/tables/device_table.py", MODULE_LINES),
    ("jaxrec/caching/kernels/gather.py", KERNEL_LINES),
    ("benchmarks/table_scaling.py", MODULE_LINES),
  ],
)
def test_a_planted_long_module_is_found(tmp_path, name, limit):
  path = tmp_path / name
  path.parent.mkdir(parents=True)
  path.write_text("x = 1\n" * limit)
  assert modules_too_long(tmp_path) == []
  path.write_text("x = 1\n" * (limit + 1))
  (message,) = modules_too_long(tmp_path)
  assert message.startswith(f"{name}: {limit + 1} lines, at most {limit}")


def test_functions_are_measured_by_their_own_lines_of_code(tmp_path):
  path = tmp_path / "module.py"
  path.write_text(
    'def outer(a,\n          b):\n  """Text.\n\n  More.\n  """\n'
    "  # Why.\n\n  def inner():\n    return a\n  return inner\n"
  )
  assert code_figures.function_lengths(path) == {"outer (line 1)": 3, "inner (line 9)": 2}


def test_the_report_names_long_modules_and_functions(tmp_path):
  path = tmp_path / "jaxrec" / "models" / "dlrm.py"
  path.parent.mkdir(parents=True)
  path.write_text("def long():\n" + "  x = 1\n" * FUNCTION_LINES)
  text = report(tmp_path)
  assert "1 modules, 41 lines" in text
  assert "41 jaxrec/models/dlrm.py long (line 1)" in text
  assert "1 of 6 files, 41 lines of 900" in text


if __name__ == "__main__":
  print(report(repository.ROOT))
