"""Settings of the host process that a program makes once, at its start; never on import.

Read next: train.py.
"""

from __future__ import annotations

import ctypes
import sys
import warnings

from absl import logging

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_large_allocations(num_bytes: int = 1 << 30) -> bool:
  """Makes glibc reuse blocks below ``num_bytes`` instead of handing them back to the kernel each
  step.

  XLA:CPU allocates its temporaries anew every step; the page faults can cost more than the
  arithmetic. Returns whether the C library took the setting (it is glibc's own).
  """
  if not sys.platform.startswith("linux"):
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:
    return False
  return bool(mallopt(_M_MMAP_THRESHOLD, num_bytes)) and bool(mallopt(_M_TRIM_THRESHOLD, num_bytes))


def quiet_libraries() -> None:
  """Keeps what other libraries log off the terminal: their errors come as messages of our own."""
  logging.set_verbosity(logging.FATAL)
  logging.set_stderrthreshold("fatal")
  drop_orphaned_reads()


def drop_orphaned_reads() -> None:
  """Does not report what Orbax leaves behind when one array of a checkpoint cannot be read.

  It closes the event loop that awaits the others, and each of them then complains.
  """
  complaints = ("Event loop is closed", "was never awaited", "while reading array index")
  warnings.filterwarnings("ignore", message=f"coroutine .* {complaints[1]}")
  show = sys.unraisablehook

  def show_others(unraisable: sys.UnraisableHookArgs) -> None:
    if not any(complaint in str(unraisable.exc_value) for complaint in complaints):
      show(unraisable)

  sys.unraisablehook = show_others
