"""Records a trace of some steps of a run with JAX's profiler.

A step function is wrapped, so the loop does not know: a trace begins before one call and ends after
another, once the devices have finished what was dispatched in between.

Source: ``jax.profiler``.
Read next: jaxrec/runs/loop.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxrec import config as config_lib
from jaxrec.runs import terminal as terminal_lib
from jaxrec.training import step

Wrap = Callable[[step.StepFn, int], step.StepFn]  # of a step function and the steps done before
DEFAULT_STEPS = "10:20"


@dataclasses.dataclass(frozen=True)
class TraceWindow:
  """The steps of a run that are traced.

  Attributes:
    folder: Where the trace is written.
    start: The trace begins when so many steps are done.
    stop: The trace ends when so many steps are done.
  """

  folder: str
  start: int
  stop: int


def parse_window(folder: str | None, steps: str) -> TraceWindow | None:
  """Reads a window from the text of two flags; None without a folder.

  >>> parse_window("traces", "10:20")
  TraceWindow(folder='traces', start=10, stop=20)

  Raises:
    ConfigError: ``steps`` is not ``a:b`` with 0 <= a < b, or is not the default and there is no
      folder, or the folder cannot be made.
  """
  if folder is None:
    config_lib.require(
      steps == DEFAULT_STEPS, f"--profile_steps={steps}: name a folder with --profile_dir as well"
    )
    return None
  bounds = re.fullmatch(r"(\d+):(\d+)", steps)
  start, stop = map(int, bounds.groups()) if bounds else (0, 0)
  config_lib.require(
    start < stop,
    f"--profile_steps={steps}: expected a:b with 0 <= a < b, such as 10:20 for the ten steps "
    "after step 10",
  )
  try:
    os.makedirs(folder, exist_ok=True)
  except OSError as error:
    raise config_lib.ConfigError(f"--profile_dir={folder}: {error.strerror}") from error
  return TraceWindow(folder, start, stop)


@contextlib.contextmanager
def recording(window: TraceWindow | None, terminal: terminal_lib.Terminal) -> Iterator[Wrap]:
  """Yields a function that wraps a step function so that the steps of ``window`` are traced.

  A trace that has begun is written when the context ends, if the run ends within the window.
  Without a window the step function is returned as it is. Each process of several writes to a
  subfolder of its own.
  """
  if window is None:
    yield lambda step_fn, _: step_fn
    return
  recorder = _Recorder(window)
  try:
    yield recorder.wrap
  except BaseException:
    if recorder.has_begun:  # else the error says all there is to say
      terminal.line(recorder.finish())
    raise
  terminal.line(recorder.finish())


class _Recorder:
  """Counts steps, and starts and stops the profiler between them."""

  def __init__(self, window: TraceWindow):
    self._window = window
    self._folder = window.folder
    if jax.process_count() > 1:
      self._folder = os.path.join(window.folder, f"process_{jax.process_index()}")
    self.has_begun = False
    self._last: int | None = None  # step done when the trace ended
    self._done = 0
    self._newest: Any = None

  def wrap(self, step_fn: step.StepFn, done: int) -> step.StepFn:
    self._done = done

    def traced(*args: Any) -> Any:
      if self._done == self._window.start:
        jax.block_until_ready(args)  # steps before the window are none of the trace's
        jax.profiler.start_trace(self._folder)
        self.has_begun = True
      self._newest = None  # its state is donated to this step
      with jax.profiler.StepTraceAnnotation("train", step_num=self._done + 1):
        self._newest = step_fn(*args)
      self._done += 1
      if self._done == self._window.stop:
        self._stop()
      return self._newest

    return traced

  def _stop(self) -> None:
    if self.has_begun and self._last is None:
      self._last = self._done
      try:
        jax.block_until_ready(self._newest)
      finally:
        jax.profiler.stop_trace()

  def finish(self) -> str:
    """Ends a trace under way, and says in one line what was recorded."""
    self._stop()
    if not self.has_begun:
      return (
        f"no trace: step {self._window.start + 1}, where --profile_steps begins, was not trained "
        f"here, and step {self._done} is done"
      )
    return (
      f"trace of steps {self._window.start + 1} to {self._last}: xprof --logdir={self._folder}, or "
      "its trace.json.gz in ui.perfetto.dev"
    )
