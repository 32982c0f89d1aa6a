"""What a compiled program sends between devices, read off its text.

These are the compiler's figures: bytes of the arrays that a collective yields on one device, with
their padding. They are no times.

*Read next*: jaxrec/training/aot.py.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_KINDS = (
  "all-to-all",
  "ragged-all-to-all",
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "collective-permute",
  "collective-broadcast",
)
# A collective, or the end of one that runs beside other work; its beginning names the same arrays.
_CALL = re.compile(
  rf"^\s*(?:ROOT )?%?[\w.\-]+ = (?P<type>\(.*?\)|\S+) (?P<kind>{'|'.join(_KINDS)})(?:-done)?\("
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) .*\{\s*$")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|branch_computations)=\{?%?([\w.\-, %]+)")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_NUMBER = re.compile(r"\d+")


class Collective(NamedTuple):
  """One collective of a program.

  Attributes:
    kind: as XLA calls it: ``all-to-all``, ...
    shapes: of the arrays that it yields on a device.
    num_bytes: of these together.
    is_in_loop: whether it is in a loop; ours run in further rounds only.
  """

  kind: str
  shapes: tuple[tuple[int, ...], ...]
  num_bytes: int
  is_in_loop: bool


def collectives(program: str) -> list[Collective]:
  """All collectives of a compiled program's text (``compiled.as_text()``), in order."""
  in_loops = _computations_in_loops(program)
  found, computation = [], ""
  for line in program.splitlines():
    header = _COMPUTATION.match(line)
    if header:
      computation = header["name"]
    call = _CALL.match(line)
    if call:
      arrays = [
        (dtype, tuple(int(dim) for dim in dims.split(",") if dim))
        for dtype, dims in _ARRAY.findall(call["type"])
      ]
      num_bytes = sum(_bits(dtype) * math.prod(shape) for dtype, shape in arrays) // 8
      shapes = tuple(shape for _, shape in arrays)
      found.append(Collective(call["kind"], shapes, num_bytes, computation in in_loops))
  return found


def bytes_by_kind(found: Iterable[Collective]) -> dict[str, int]:
  """Bytes of all of a kind together, the largest first."""
  total: collections.Counter[str] = collections.Counter()
  for one in found:
    total[one.kind] += one.num_bytes
  return dict(total.most_common())


def _computations_in_loops(program: str) -> set[str]:
  called: dict[str, set[str]] = collections.defaultdict(set)
  bodies, computation = set(), ""
  for line in program.splitlines():
    header = _COMPUTATION.match(line)
    if header:
      computation = header["name"]
    bodies.update(_BODY.findall(line))
    for names in _CALLED.findall(line):
      called[computation].update(name.strip(" %") for name in names.split(","))
  return _reachable(bodies, called)


def _reachable(names: set[str], called: Mapping[str, set[str]]) -> set[str]:
  found, left = set(names), list(names)
  while left:
    for name in called.get(left.pop(), set()) - found:
      found.add(name)
      left.append(name)
  return found


def _bits(dtype: str) -> int:
  """Of an XLA dtype such as ``f32``, ``s8``, ``pred``."""
  number = _NUMBER.search(dtype)
  return 8 if number is None else int(number.group())
