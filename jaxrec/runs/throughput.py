"""How fast a run trains: wall time of its steps, without compilation, evaluation and checkpoints.

Read next: jaxrec/runs/terminal.py.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from jaxrec.data.pipeline.prefetch import PrefetchStats


class Speed:
  """A stopwatch over steps. The caller counts ``num_steps`` up."""

  def __init__(self, batch_size: int):
    self.num_steps = 0
    self._batch_size = batch_size
    self._seconds = 0.0
    self._since: float | None = None
    self._stats = PrefetchStats()

  def start(self, stats: PrefetchStats) -> None:
    self._stats = stats
    self._stats.wait_seconds = 0.0
    self._since = time.perf_counter()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Time inside does not count."""
    self._seconds = self.seconds()
    self._since = None
    try:
      yield
    finally:
      self._since = time.perf_counter()

  def seconds(self) -> float:
    running = 0.0 if self._since is None else time.perf_counter() - self._since
    return self._seconds + running

  def examples_per_s(self) -> float:
    return self.num_steps * self._batch_size / max(self.seconds(), 1e-9)

  def figures(self, steps_left: int) -> dict[str, float]:
    """examples_per_s, wait (share of time without data), seconds_left."""
    rate = max(self.examples_per_s(), 1e-9)
    return {
      "examples_per_s": rate,
      "wait": self._stats.wait_seconds / max(self.seconds(), 1e-9),
      "seconds_left": steps_left * self._batch_size / rate,
    }
