"""Runs a module of the tests in a process of its own.

Compilers for absent devices want environment variables of theirs, and the tests' eight devices are
none of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tests import repository


def run(module: str, *given: Any) -> Any:
  """What ``python -m module`` prints last, as JSON, of JSON that it gets as its one argument."""
  done = subprocess.run(
    [sys.executable, "-m", module, json.dumps(given)],
    cwd=repository.ROOT,
    env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])
