"""Settings of the host process that a program makes once, at its start; never on import.

Read next: train.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import sys

from absl import logging

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def prepare() -> None:
  """All settings of a training program."""
  quiet_libraries()
  keep_large_allocations()
  repeat_bits_on_gpu()


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


def repeat_bits_on_gpu() -> None:
  """Makes XLA:GPU add duplicates in one order, unless XLA_FLAGS says otherwise; before JAX starts.

  By default it adds with atomics, in the order of arrival: a run that resumes, and even two
  evaluations of one checkpoint, then differ in the last bits.
  """
  given = os.environ.get("XLA_FLAGS", "")
  if "xla_gpu_deterministic_ops" not in given:
    os.environ["XLA_FLAGS"] = f"{given} --xla_gpu_deterministic_ops=true".strip()


def memory_bytes(root: pathlib.Path = pathlib.Path("/")) -> int:
  """The machine's memory, or the least that a control group of this process allows (a container's).

  ``root`` is where ``proc`` and ``sys`` lie.
  """
  limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  groups = root / "proc/self/cgroup"
  for line in groups.read_text().splitlines() if groups.exists() else ():
    _, controllers, name = line.split(":", 2)
    if controllers == "":  # version 2
      top, file = root / "sys/fs/cgroup", "memory.max"
    elif "memory" in controllers.split(","):  # version 1
      top, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
    else:
      continue
    folder = top / name.lstrip("/")
    for group in (folder, *folder.parents):
      with contextlib.suppress(OSError, ValueError):  # not there, as seen from in here, or "max"
        limits.append(int((group / file).read_text()))
  return min(limits)


def quiet_libraries() -> None:
  """Keeps what other libraries log off the terminal: their errors come as messages of our own."""
  logging.set_verbosity(logging.FATAL)
  logging.set_stderrthreshold("fatal")


def python() -> str:
  """This interpreter as one would type it: ``.venv/bin/python`` where the working folder has it."""
  here = os.path.join(os.getcwd(), "")
  return sys.executable.removeprefix(here)
