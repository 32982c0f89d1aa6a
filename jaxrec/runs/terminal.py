"""What a run shows in the terminal, as design section 9 draws it.

On a terminal the training line is redrawn in place; elsewhere a line is printed now and then. Every
figure comes from the caller.

Read next: jaxrec/runs/loop.py.
"""

from __future__ import annotations

import io
import sys
import time
from typing import TextIO

_BAR_WIDTH = 12
_SECONDS_BETWEEN_LINES = 10.0


class Terminal:
  """Prints a run to ``stream``: standard error, as results alone go to standard output."""

  def __init__(self, stream: TextIO = sys.stderr):
    self._stream = stream
    self._is_live = stream.isatty()
    self._has_open_line = False
    self._last_line = 0.0

  def line(self, text: str) -> None:
    """A line that stays."""
    if self._has_open_line:
      self._stream.write("\r\x1b[K")
      self._has_open_line = False
    self._stream.write(text + "\n")
    self._stream.flush()

  def training(self, step: int, steps: int, figures: dict[str, float]) -> None:
    """The moving line.

    ``figures``: examples_per_s, loss, auc, wait (share), seconds_left; on a mesh extra_rounds.
    """
    filled = step * _BAR_WIDTH // steps
    bar = "━" * filled + "─" * (_BAR_WIDTH - filled)
    text = (
      f"{step:>6}/{steps} {step / steps:4.0%} {bar} {figures['examples_per_s']:,.0f} ex/s  "
      f"loss {figures['loss']:.3f}  auc {figures['auc']:.3f}  data wait {figures['wait']:.0%}  "
      f"{clock(figures['seconds_left'])} left"
    )
    if figures.get("extra_rounds"):  # since the last line: the exchange has too little room
      text += f"  {figures['extra_rounds']:.0f} extra rounds"
    if self._is_live:
      self._stream.write("\r\x1b[K" + text)
      self._stream.flush()
      self._has_open_line = True
    elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
      self._last_line = time.monotonic()
      self.line(text)

  def evaluation(self, step: int, figures: dict[str, float], *, is_best: bool) -> None:
    note = " (best, saved)" if is_best else " (saved)"
    self.line(
      f" eval {step}  auc {figures['auc']:.3f}{note}  ne {figures['ne']:.3f}  "
      f"calibration {figures['calibration']:.2f}"
    )


def clock(seconds: float) -> str:
  """Minutes and seconds.

  >>> clock(118.4)
  '1:58'
  """
  minutes, rest = divmod(int(round(seconds)), 60)
  return f"{minutes}:{rest:02d}"


def mebibytes(num_bytes: float) -> str:
  """A size people read.

  >>> mebibytes(25 * 2**20), mebibytes(97.4 * 2**30)
  ('25.0 MiB', '97.4 GiB')
  """
  return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def counted(number: float) -> str:
  """A parameter count: 0.3 M, 16.0 M.

  >>> counted(312_000)
  '0.3 M'
  """
  return f"{number / 1e6:.1f} M"


def silent() -> Terminal:
  """A Terminal that shows nothing."""
  return Terminal(io.StringIO())
