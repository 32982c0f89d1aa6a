"""What every benchmark shares: alternating runs, medians with their spread, a figure where one is
asked for, and a line on the machine.

Read next: benchmarks/table_scaling.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
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


@contextlib.contextmanager
def drawing(path: str, *, columns: int = 1, width: float = 6) -> Iterator[Any]:
  """The axes of a figure, an array of them if there are several; it is saved on the way out."""
  import matplotlib  # here: most runs draw nothing

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, columns, figsize=(width, 4))
  yield axes
  figure.tight_layout()
  figure.savefig(path, dpi=100)


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
