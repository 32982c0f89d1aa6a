"""What every benchmark shares: alternating runs, medians with their spread, and a line on the
machine.

Read next: benchmarks/table_scaling.py.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def alternate(runs: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, dict[str, float]]:
  """Times each of ``runs`` once a round, in turn, so that a drifting machine slows all alike.

  Returns:
    For each name ``median_ms``, ``min_ms`` and ``max_ms`` over the rounds; one round more comes
    first and does not count.
  """
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for counts in [False] + [True] * rounds:
    for name, fn in runs.items():
      started = time.perf_counter()
      fn()
      if counts:
        seconds[name].append(time.perf_counter() - started)
  return {
    name: {
      "median_ms": round(1e3 * statistics.median(values), 3),
      "min_ms": round(1e3 * min(values), 3),
      "max_ms": round(1e3 * max(values), 3),
    }
    for name, values in seconds.items()
  }


def machine() -> str:
  """The machine in a line: processor count, memory, backend, versions."""
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
  return (
    f"{os.cpu_count()} x {platform.machine()}, {memory:.0f} GiB, {jax.default_backend()}, "
    f"jax {jax.__version__}, Python {platform.python_version()}"
  )


def finish(figures: Mapping[str, Any]) -> None:
  """Prints the benchmark's one line."""
  print(json.dumps({**figures, "machine": machine()}), flush=True)
