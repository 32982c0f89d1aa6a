"""Ctrl-C and SIGTERM ask a run to stop after the step at hand, save, and say how to go on.

Read next: jaxrec/runs/loop.py.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(Exception):
  """A run stopped on request; its state is saved at ``step``."""

  def __init__(self, signal_number: int, step: int):
    super().__init__(f"stopped by {signal.Signals(signal_number).name} at step {step}")
    self.signal_number = signal_number
    self.step = step


class StopRequest:
  """``signal_number`` is None until somebody asks."""

  signal_number: int | None = None


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
  """Turns the first SIGINT or SIGTERM into a request; a second one acts as usual, at once."""
  request = StopRequest()
  if threading.current_thread() is not threading.main_thread():
    yield request  # signals reach the main thread alone
    return
  before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

  def ask(number: int, _: object) -> None:
    request.signal_number = number
    for known, handler in before.items():
      signal.signal(known, handler)

  for number in before:
    signal.signal(number, ask)
  try:
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
