"""Lets the processes of a run agree and wait for each other; alone, a process need not.

Read next: jaxrec/runs/process/supervisor.py.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxrec import jax_internals

MAX_WAIT_SECONDS = 24 * 3600  # the first process may have much to write; heartbeats tell of deaths


def is_first() -> bool:
  """Whether this process writes what a run leaves behind."""
  return jax.process_index() == 0


def agreed_at(is_time: bool, number: int | None) -> int | None:
  """``number``; of several processes the largest, at times when all ask, and None at others."""
  if jax.process_count() == 1:
    return number
  if not is_time:
    return None
  mine = np.asarray(-1 if number is None else number, np.int32)
  found = int(np.max(multihost_utils.process_allgather(mine)))
  return None if found < 0 else found


def wait_for_all(what: str) -> None:
  """Returns when all processes have come here; ``what``, which they have done, is its name."""
  client = jax_internals.process_group().client
  if client is not None:  # the death of one that does not come ends this
    client.wait_at_barrier(f"jaxrec/{what}", MAX_WAIT_SECONDS * 1000)
