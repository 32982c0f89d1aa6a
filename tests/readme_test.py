"""The README's hello world is a contract: it runs as written."""

from __future__ import annotations

import ast
import contextlib
import io
import re

from tests import repository


def hello_world() -> str:
  text = (repository.ROOT / "README.md").read_text()
  (block,) = re.findall(r"## Hello world.*?```python\n(.*?)```", text, re.DOTALL)
  return block


def test_the_hello_world_runs_word_for_word_and_learns():
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    exec(compile(hello_world(), "README.md", "exec"), {"__name__": "readme"})  # noqa: S102
  figures = ast.literal_eval(printed.getvalue().strip())
  assert figures["examples"] == 25 * 2048
  assert figures["auc"] > 0.65, figures
  assert 0.8 < figures["calibration"] < 1.25, figures
