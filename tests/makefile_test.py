"""``make`` finds a Python by itself, says which, and what is wrong with those it cannot use."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests import repository

TOOLS = ("sh", "make", "grep", "head", "tail", "rm", "touch", "mkdir", "cp", "cat", "echo", "env")
# An interpreter that is VERSION, makes environments of itself, and installs whatever one asks for.
PYTHON = """#!/bin/sh
case "$1 $2" in
  "-c "*) VERDICT ;;
  "-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && cp "$0" "$4/bin/pip" ;;
  "-m pip") echo installing ;;
  *) echo "VERSION ran $*" ;;
esac
"""
GOOD = {
  name: f"echo {name.removeprefix('python')}.4"
  for name in ("python3.13", "python3.12", "python3.11")
}
OLD = "echo '3.9.2, older than 3.11' >&2; exit 1"
WITHOUT_VENV = "echo '3.13.4, without its venv module' >&2; exit 1"


@pytest.fixture
def make(tmp_path):
  """Runs make with a copy of the Makefile, where only these interpreters are on the PATH."""
  tools = tmp_path / "bin"
  tools.mkdir()
  for tool in TOOLS:
    (tools / tool).symlink_to(shutil.which(tool))
  for name in ("Makefile", "pyproject.toml"):
    shutil.copy(repository.ROOT / name, tmp_path)

  def make(*words: str, **interpreters: str) -> subprocess.CompletedProcess[str]:
    for name, verdict in interpreters.items():
      path = tools / name
      path.write_text(PYTHON.replace("VERDICT", verdict).replace("VERSION", name))
      path.chmod(0o755)
    return subprocess.run(
      ["make", *words], cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True
    )

  return make


def test_the_newest_interpreter_is_taken_and_named(make):
  done = make("train", **GOOD, python3=OLD)
  assert done.returncode == 0, done.stderr
  first, last = done.stdout.splitlines()
  assert first == "[1/3] .venv: installing with Python 3.13.4 (once, about 1 min) ... ok"
  assert last.startswith("python3.13 ran train.py")


@pytest.mark.parametrize("name", ["python3.12", "python3.11"])
def test_one_interpreter_is_enough(make, name):
  done = make("train", **{name: GOOD[name]})
  assert done.returncode == 0, done.stderr
  assert f"installing with Python {GOOD[name][5:]}" in done.stdout


def test_a_plain_python3_is_enough_if_it_is_new_enough(make):
  assert "with Python 3.14.0" in make("train", python3="echo 3.14.0").stdout
  done = make("--always-make", "train", "VENV=.venv-old", python3=OLD)
  assert done.returncode != 0 and "python3: 3.9.2, older than 3.11" in done.stderr


def test_an_interpreter_without_venv_is_passed_over(make):
  done = make("train", **{**GOOD, "python3.13": WITHOUT_VENV})
  assert "installing with Python 3.12.4" in done.stdout, done.stderr


def test_without_any_the_message_says_what_each_lacks(make):
  done = make("train", **{"python3.13": WITHOUT_VENV, "python3": OLD})
  assert done.returncode != 0 and not done.stdout
  assert done.stderr.splitlines()[:6] == [
    "error: no Python 3.11 or newer with its venv module:",
    "  python3.13: 3.13.4, without its venv module",
    "  python3.12: not found",
    "  python3.11: not found",
    "  python3: 3.9.2, older than 3.11",
    "install one, or name it: make PYTHON=/path/to/python3",
  ]


def test_the_interpreter_that_is_asked_for_is_taken_and_no_other(make):
  done = make("train", "PYTHON=python3.12", **GOOD)
  assert "installing with Python 3.12.4" in done.stdout, done.stderr
  again = make("train", "PYTHON=python3.11")
  assert again.returncode != 0
  assert ".venv is of Python 3.12.4, not 3.11.4: remove it, or name another" in again.stderr
  other = make("train", "PYTHON=python3.11", "VENV=.venv-3.11")
  assert ".venv-3.11: installing with Python 3.11.4" in other.stdout, other.stderr
  assert make("train").stdout.startswith("python3.12 ran"), "an environment that is there is kept"


def test_an_interpreter_that_is_asked_for_and_cannot_be_used_is_named(make):
  done = make("train", "PYTHON=python3.9", **{"python3.9": OLD, **GOOD})
  assert done.returncode != 0 and not done.stdout
  assert "error: PYTHON=python3.9: 3.9.2, older than 3.11; needed is 3.11 or newer" in done.stderr


def test_the_check_is_true_of_this_interpreter_and_false_of_an_older_one(make, tmp_path):
  text = (repository.ROOT / "Makefile").read_text(encoding="utf-8")
  check = text[text.index("CHECK := ") + len("CHECK := ") : text.index("print(version)")]
  check = check.replace("\\\n", " ") + "print(version)"

  def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

  done = run(check)
  assert done.returncode == 0 and done.stdout.strip() == sys.version.split()[0], done.stderr
  done = run(check.replace("(3, 11)", "(9, 0)"))
  assert done.returncode == 1 and "older than" in done.stderr
  done = run(check.replace('"ensurepip"', '"ensurepip_is_gone"'))
  assert done.returncode == 1 and "without its venv module" in done.stderr
