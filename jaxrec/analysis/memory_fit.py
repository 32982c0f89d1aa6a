"""Says what would fit where a step does not: more chips of the kind, or a smaller batch.

A compiler that runs out of memory says how much was asked for, and no more. What a chip needs is
known beforehand to within what the compiler adds: its share of tables, moments and batch, the dense
parameters, and temporaries, which stay below two and a half times the rows that its ids read and
what it exchanges for them.

Source: the bound is measured, docs/sharding.md and tests/aot_test.py.
Read next: jaxrec/aot.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

from jaxrec.analysis import topologies
from jaxrec.inputs import batch as batch_lib

_TEMPORARIES_PER_BYTE_MOVED = 2.5
_OTHER_TEMPORARIES = 48 << 20
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass(frozen=True)
class Demand:
  """Bytes that a training step needs, on all chips together.

  Attributes:
    batch_size: Examples of the global batch.
    tables: Tables without padding, of which each chip holds an equal part.
    moments: Their moments, likewise.
    dense: Dense parameters and their optimizer's state, which each chip holds.
    batch: One global batch with its row plans.
    rows: The rows that its ids read, in float32, if all ids are different.
    unshared_tables: A chip's part of tables that are not spread evenly over all chips; with more
      chips it does not grow.
    unshared_moments: A chip's part of their moments.
  """

  batch_size: int
  tables: int
  moments: int
  dense: int
  batch: int
  rows: int
  unshared_tables: int = 0
  unshared_moments: int = 0

  def bytes_a_chip(self, num_chips: int, batch_share: float = 1.0) -> int:
    """Returns an upper estimate of what each of so many chips needs.

    Args:
      num_chips: Chips that share tables and batch.
      batch_share: The global batch, relative to the demand's.
    """
    rows = self.rows * batch_share / num_chips
    # Read once; and rows and gradients exchanged, in slots that are not all full.
    moved = rows * (1 if num_chips == 1 else 4)
    temporaries = _TEMPORARIES_PER_BYTE_MOVED * moved + _OTHER_TEMPORARIES
    shared = self.tables + self.moments + self.batch * batch_share
    unshared = self.dense + self.unshared_tables + self.unshared_moments
    return math.ceil(shared / num_chips + unshared + temporaries)


def row_bytes(spec: batch_lib.BatchSpec, batch_size: int) -> int:
  """Returns the bytes of the rows that a batch reads, in float32, if all its ids are different."""
  return 4 * batch_size * sum(f.ids_per_bag * f.table.embedding_dim for f in spec.features)


def parse_refusal(text: str) -> tuple[int | None, int | None]:
  """Returns the bytes that a compiler was asked for and those that it has; None: it does not say.

  >>> parse_refusal("RESOURCE_EXHAUSTED: HLO temporaries (15.5G) exceeds available HBM (15.25G)")
  (16642998272, 16374562816)
  """
  amounts = [
    int(float(number) * _UNITS[unit])
    for number, unit in re.findall(r"(\d+(?:\.\d+)?)([KMGT])(?:i?B)?\b", text)
  ]
  if len(amounts) > 1:
    return amounts[0], amounts[1]
  asked = re.search(r"allocate (\d+) bytes", text)
  return (int(asked[1]) if asked else None), None


def would_fit(demand: Demand, topology: str, memory_bytes: int) -> dict[str, Any]:
  """Returns what the step would fit on, by an estimate; None where nothing would do.

  Args:
    demand: What the step needs.
    topology: Where it does not fit, such as ``v5e:2x4``.
    memory_bytes: Memory of a chip.

  Returns:
    ``topology``: the smallest of its kind with more chips that holds the step; ``batch_size``: the
    largest half, quarter, ... of the batch that fits here; with the bytes a chip of each.
  """
  chip, num_chips = topologies.chip_of(topology), topologies.num_chips(topology)
  names = (f"{chip}:{shape}" for shape in topologies.CHIPS[chip].shapes)
  larger = {
    name: demand.bytes_a_chip(topologies.num_chips(name))
    for name in names
    if topologies.num_chips(name) > num_chips
  }
  halves = itertools.takewhile(
    lambda size: size >= num_chips and size % num_chips == 0,
    (demand.batch_size >> times for times in itertools.count(1)),
  )
  smaller = {size: demand.bytes_a_chip(num_chips, size / demand.batch_size) for size in halves}
  name, topology_bytes = _first_within(larger, memory_bytes)
  batch_size, batch_bytes = _first_within(smaller, memory_bytes)
  return {
    "topology": name,
    "topology_bytes": topology_bytes,
    "batch_size": batch_size,
    "batch_bytes": batch_bytes,
  }


def _first_within(num_bytes: Mapping[Any, int], limit: int) -> tuple[Any, int | None]:
  """Returns the first key whose bytes are within the limit, and its bytes; or None, None."""
  return next(((key, n) for key, n in num_bytes.items() if n <= limit), (None, None))
