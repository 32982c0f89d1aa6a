"""Criteo's text to numbers, a block of lines at a time.

A line is ``label, I1..I13, C1..C26`` between tabs, and a field may be empty. Splitting lines in
Python takes some 20 µs each; here a block of thousands of lines is parsed by a few dozen array
operations. The separators of the block are found first, and since every line must have exactly 40
of them, they form a matrix whose rows are lines. Eight characters then travel in one 64-bit word:
hexadecimal digits and decimal ones are checked and combined pairwise, all eight in three steps.

The grammar is strict (no blanks, no sign but a leading ``-``, no ``0x``), which the CSV readers at
hand are not: pyarrow's trims blanks and reads ``0x1F`` as 31. An empty field is 0 in both recipes.
``parse_line`` is the same grammar for one line; it finds what is wrong with it.

Source: the pairwise combination is Langdale and Lemire's, "Parsing gigabytes of JSON per second"
(2019), section 3.1.3, in NumPy.
Read next: jaxrec/data/criteo/reader.py.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from jaxrec.data.criteo import schema

PADDING = b"\0" * 16  # on both sides of a block, so that a word around any field lies inside
_FIELDS = 1 + schema.NUM_DENSE + schema.NUM_IDS
_IDS = slice(1 + schema.NUM_DENSE, _FIELDS)
_DENSE = slice(1, 1 + schema.NUM_DENSE)
_INT = re.compile(rb"-?[0-9]{1,10}")
_HEX = re.compile(rb"[0-9a-fA-F]{8}")
_ONES = 0x0101010101010101


@dataclasses.dataclass(frozen=True)
class RawRows:
  """Rows as they stand in the file, empty fields as 0.

  Attributes:
    labels: u8[n] in {0, 1}.
    dense: i32[n, 13].
    ids: u32[n, 26], the eight hexadecimal digits.
  """

  labels: np.ndarray
  dense: np.ndarray
  ids: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, rows: slice | np.ndarray) -> RawRows:
    return RawRows(self.labels[rows], self.dense[rows], self.ids[rows])


def concatenate(parts: list[RawRows]) -> RawRows:
  """``parts`` one after the other."""
  if len(parts) == 1:
    return parts[0]
  columns = [(part.labels, part.dense, part.ids) for part in parts]
  return RawRows(*(np.concatenate(arrays) for arrays in zip(*columns, strict=True)))


def parse(padded: bytes) -> RawRows | None:
  r"""Parses whole lines between two ``PADDING``; None if any of them is bad.

  >>> line = b"\t".join([b"1", b"-2", *[b""] * 12, b"0000001f", *[b""] * 25]) + b"\n"
  >>> rows = parse(PADDING + line + PADDING)
  >>> int(rows.labels[0]), int(rows.dense[0, 0]), int(rows.ids[0, 0])
  (1, -2, 31)
  """
  text = np.frombuffer(padded, np.uint8)
  separators = np.flatnonzero((text - np.uint8(9)) <= 1)  # tab or newline
  if separators.size % _FIELDS:
    return None
  ends = separators.reshape(-1, _FIELDS)
  if (text[ends[:, :-1]] != 9).any() or (text[ends[:, -1]] != 10).any():
    return None
  starts = np.empty_like(ends)
  starts[:, 1:] = ends[:, :-1] + 1
  starts[:1, 0] = len(PADDING)
  starts[1:, 0] = ends[:-1, -1] + 1
  words = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))  # a word at every byte
  labels = text[starts[:, 0]] - np.uint8(ord("0"))
  if (labels > 1).any() or (ends[:, 0] - starts[:, 0] != 1).any():
    return None
  ids = _hexadecimals(words, starts[:, _IDS], ends[:, _IDS])
  dense = _decimals(text, words, starts[:, _DENSE], ends[:, _DENSE])
  return None if ids is None or dense is None else RawRows(labels, dense, ids)


def _hexadecimals(words: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray | None:
  """u32[...]: each field's eight digits, 0 where it is empty; None if one is no such number."""
  lengths = ends - starts
  is_empty = lengths == 0
  if not (is_empty | (lengths == 8)).all():
    return None
  chars = words[starts]
  chars[is_empty] = 0x30 * _ONES  # "00000000"
  letters = (chars >> np.uint64(6)) & np.uint64(_ONES)
  digits = (chars & np.uint64(0x0F * _ONES)) + letters * np.uint64(9)
  # What the digits look like in lower case must be what is there; and 9 < digit < 16 in letters.
  shown = digits + np.uint64(0x30 * _ONES) + letters * np.uint64(0x27)
  wrong = shown ^ (chars | (letters << np.uint64(5)))
  wrong |= (((digits + np.uint64(6 * _ONES)) >> np.uint64(4)) & np.uint64(_ONES)) ^ letters
  wrong |= digits & np.uint64(0x10 * _ONES)
  if wrong.any():
    return None
  for bits, mask in ((4, 0x000F000F000F000F), (8, 0x000000FF000000FF), (16, 0xFFFF)):
    high = (digits & np.uint64(mask)) << np.uint64(bits)
    digits = high | ((digits >> np.uint64(2 * bits)) & np.uint64(mask))
  return digits.astype(np.uint32)


def _decimals(
  text: np.ndarray, words: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray | None:
  """i32[...]: each field's integer, 0 where it is empty; None if one is none."""
  lengths = ends - starts
  is_negative = (text[starts] == ord("-")) & (lengths > 0)
  lengths -= is_negative
  if ((lengths > 10) | (is_negative & (lengths == 0))).any():
    return None
  digits = words[ends - 8] ^ np.uint64(0x30 * _ONES)  # the field's last eight characters
  others = (8 * (8 - np.clip(lengths, 1, 8))).astype(
    np.uint64
  )  # bits that belong to what is before
  digits = (digits >> others) << others
  digits[lengths == 0] = 0
  wrong = (digits | (digits + np.uint64(6 * _ONES))) & np.uint64(0xF0 * _ONES)
  if wrong.any():
    return None
  digits = (digits * np.uint64(2561)) >> np.uint64(8) & np.uint64(0x00FF00FF00FF00FF)
  digits = (digits * np.uint64(6553601)) >> np.uint64(16) & np.uint64(0x0000FFFF0000FFFF)
  values = ((digits * np.uint64(42949672960001)) >> np.uint64(32)).astype(np.int64)
  for place, scale in ((9, 10**8), (10, 10**9)):  # the few that are longer than a word
    where = np.nonzero(lengths >= place)
    digit = text[ends[where] - place].astype(np.int64) - ord("0")
    if ((digit < 0) | (digit > 9)).any():
      return None
    values[where] += digit * scale
  values = np.where(is_negative, -values, values)
  if (values > schema.INT32.max).any() or (values < schema.INT32.min).any():
    return None
  return values.astype(np.int32)


def problem(line: bytes) -> str | None:
  """What is wrong with one line (without its newline), or None."""
  fields = line.split(b"\t")
  if len(fields) == _FIELDS - 1:
    return (
      f"expected {_FIELDS} columns, got {_FIELDS - 1}: is this an unlabeled test file (Criteo's "
      "test.txt)? It cannot be trained on"
    )
  if len(fields) != _FIELDS:
    return f"expected {_FIELDS} tab-separated columns, got {len(fields)}"
  if fields[0] not in (b"0", b"1"):
    return f"label: expected 0 or 1 (is this an unlabeled test file?), got {_shown(fields[0])}"
  for name, field in zip(schema.DENSE_NAMES, fields[_DENSE], strict=True):
    if field and not _INT.fullmatch(field):
      return f"{name}: expected an integer or nothing, got {_shown(field)}"
    if field and not schema.INT32.min <= int(field) <= schema.INT32.max:
      return f"{name}: expected an integer of 32 bits, got {_shown(field)}"
  for name, field in zip(schema.ID_NAMES, fields[_IDS], strict=True):
    if field and not _HEX.fullmatch(field):
      return f"{name}: expected 8 hexadecimal digits or nothing, got {_shown(field)}"
  return None


def _shown(field: bytes) -> str:
  text = field[:40].decode("utf-8", "backslashreplace")
  return repr(text) + ("..." if len(field) > 40 else "")
