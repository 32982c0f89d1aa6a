"""What a compiled program sends between devices, read off its text.

These are the compiler's figures: bytes of the arrays that a collective yields on one device, with
their padding. They are no times. A TPU keeps arrays in tiles, most often of 8 x 128 numbers, and
rounds both dimensions up; ``tiled_bytes`` are with that.

*Read next*: jaxrec/aot.py.
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
# One that a TPU begins in one fusion and goes on with in others names the same chain in each.
_CHAIN = re.compile(r'\bchain_id="(\w+)"')
# f32[4,80,16]{1,2,0:T(8,128)}: dtype, dimensions, which of them is the most minor, ..., the tile.
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::T\(([\d,]+)\))?)?")
_NUMBER = re.compile(r"\d+")


class Collective(NamedTuple):
  """One collective of a program.

  Attributes:
    kind: as XLA calls it: ``all-to-all``, ...
    shapes: of the arrays that it yields on a device.
    num_bytes: of these together.
    is_in_loop: whether it is in a loop; ours run in further rounds only.
    dtypes: of these, as XLA spells them: ``f32``, ...
    tiled_bytes: ``num_bytes`` in whole tiles, where the arrays have any.
  """

  kind: str
  shapes: tuple[tuple[int, ...], ...]
  num_bytes: int
  is_in_loop: bool
  dtypes: tuple[str, ...]
  tiled_bytes: int


def collectives(program: str) -> list[Collective]:
  """All collectives of a compiled program's text (``compiled.as_text()``), in order."""
  in_loops = _computations_in_loops(program)
  found, computation, begun = [], "", set()
  for line in program.splitlines():
    header = _COMPUTATION.match(line)
    if header:
      computation = header["name"]
    call, chain = _CALL.match(line), _CHAIN.search(line)
    if call:
      one = _collective(call["kind"], call["type"], computation in in_loops)
      link = chain and (chain[1], one)
      if link is None or link not in begun:
        found.append(one)
      begun.add(link)
  return found


def bytes_by_kind(found: Iterable[Collective]) -> dict[str, int]:
  """Bytes of all of a kind together, the largest first."""
  total: collections.Counter[str] = collections.Counter()
  for one in found:
    total[one.kind] += one.num_bytes
  return dict(total.most_common())


def _collective(kind: str, result: str, is_in_loop: bool) -> Collective:
  dtypes, shapes, num_bytes, tiled_bytes = [], [], 0, 0
  for dtype, *rest in _ARRAY.findall(result):
    shape, order, tile = ([int(n) for n in _NUMBER.findall(numbers)] for numbers in rest)
    tiled = [shape[i] for i in order] or shape  # the most minor first
    for i, (dim, size) in enumerate(zip(tiled, reversed(tile), strict=False)):
      tiled[i] = -(-dim // size) * size
    dtypes.append(dtype)
    shapes.append(tuple(shape))
    num_bytes += _bits(dtype) * math.prod(shape) // 8
    tiled_bytes += _bits(dtype) * math.prod(tiled) // 8
  return Collective(kind, tuple(shapes), num_bytes, is_in_loop, tuple(dtypes), tiled_bytes)


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
