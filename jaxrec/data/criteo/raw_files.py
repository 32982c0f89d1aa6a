"""Made-up files in Criteo's raw form, for tests, benchmarks and a first try without the data.

Row k of day d is a function of (seed, d, k) alone. Ids are skewed like the synthetic click log's,
and each day brings some that no day before it had; dense values are counts with blanks and
negatives; and clicks depend on a few of both, so that there is something to learn.

Read next: jaxrec/data/criteo/preparation.py, what they are made for.
"""

from __future__ import annotations

import gzip
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxrec.data.criteo import schema
from jaxrec.data.datasets.synthetic import ZIPF_EXPONENT, zipf_ranks
from jaxrec.data.pipeline import counter_rng
from jaxrec.features import hashing

_CHUNK_ROWS = 1 << 14
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
VOCAB_SIZES = (
  *(1_460, 583, 1_000_000, 220_000, 305, 24, 12_517, 633, 3, 93_145, 5_683, 800_000, 3_194),
  *(27, 14_992, 500_000, 10, 5_652, 2_173, 4, 700_000, 18, 15, 286_181, 105, 142_572),
)


def write_days(
  folder: pathlib.Path,
  rows_per_day: Sequence[int],
  *,
  seed: int = 0,
  vocab_sizes: Sequence[int] = VOCAB_SIZES,
  is_gzipped: bool = False,
) -> list[pathlib.Path]:
  """Writes ``day_0``, ``day_1``, ... with that many rows; returns their paths."""
  folder.mkdir(parents=True, exist_ok=True)
  paths = []
  for day, num_rows in enumerate(rows_per_day):
    path = folder / (f"day_{day}" + (".gz" if is_gzipped else ""))
    opened: Any = gzip.open(path, "wb", 1) if is_gzipped else open(path, "wb")  # noqa: SIM115
    with opened as file:
      file.writelines(day_text(day, num_rows, seed=seed, vocab_sizes=vocab_sizes))
    paths.append(path)
  return paths


def day_text(
  day: int, num_rows: int, *, seed: int = 0, vocab_sizes: Sequence[int] = VOCAB_SIZES
) -> Iterator[bytes]:
  """The text of a day, in pieces of whole lines."""
  for start in range(0, num_rows, _CHUNK_ROWS):
    rows = np.arange(start, min(start + _CHUNK_ROWS, num_rows))
    yield _text(*_draw(seed, day, rows, vocab_sizes))


def _draw(
  seed: int, day: int, rows: np.ndarray, vocab_sizes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Labels bool[n], dense i64[n, 13] and which are blank, ids u32[n, 26] and which are blank."""

  def uniform(*what: int | str) -> np.ndarray:
    return counter_rng.uniform(counter_rng.stream_key("raw", seed, day, *what), rows)

  shape = (len(rows), schema.NUM_DENSE)
  dense, ids = np.empty(shape, np.int64), np.empty((len(rows), schema.NUM_IDS), np.uint32)
  dense_blank, id_blank = np.empty(shape, bool), np.empty(ids.shape, bool)
  odds = np.full(len(rows), -1.2)
  for column in range(schema.NUM_DENSE):
    draws = uniform("dense", column)
    # A long tail of counts; from -3 on, and in the first columns up to 2^31.
    scale = (21, 16, 12)[min(column, 2)]
    dense[:, column] = np.floor(np.exp(scale * draws**3)) - 4 * (uniform("sign", column) < 0.02)
    dense_blank[:, column] = uniform("dense_blank", column) < 0.1 * (column % 4)
    odds += 0.3 * (draws - 0.5) * (column % 3 - 1)
  for column, vocab_size in enumerate(vocab_sizes):
    ranks = zipf_ranks(uniform("id", column), vocab_size, ZIPF_EXPONENT)
    if vocab_size > 1000:  # what is rare one day is another id the next
      ranks = ranks + vocab_size * day * (ranks > vocab_size // 2)
    salt = np.uint32(counter_rng.stream_key("raw", seed, column) & np.uint64(0xFFFFFFFF))
    ids[:, column] = hashing.mix32(ranks.astype(np.uint32) ^ salt)
    id_blank[:, column] = uniform("id_blank", column) < 0.05 * (column % 3)
    odds += 0.5 * ((ids[:, column] >> np.uint32(9)) % np.uint32(3)).astype(np.float64) - 0.5
  labels = uniform("label") < 1 / (1 + np.exp(-odds))
  return labels, dense, dense_blank, ids, id_blank


def _text(
  labels: np.ndarray,
  dense: np.ndarray,
  dense_blank: np.ndarray,
  ids: np.ndarray,
  id_blank: np.ndarray,
) -> bytes:
  """Lines of text: all fields in slots of fixed width, and then the unused bytes taken out."""
  num_rows = len(labels)
  label_slots = np.full((num_rows, 2), ord("\t"), np.uint8)
  label_slots[:, 0] = ord("0") + labels
  numbers = np.zeros((*dense.shape, 12), np.uint8)
  left = np.abs(dense)
  for place in range(10, 0, -1):
    numbers[..., place] = np.where((left > 0) | (place == 10), ord("0") + left % 10, 0)
    left = left // 10
  numbers[..., 0] = np.where(dense < 0, ord("-"), 0)
  numbers[dense_blank] = 0
  numbers[..., 11] = ord("\t")
  words = np.zeros((*ids.shape, 9), np.uint8)
  for place in range(8):
    words[..., place] = _HEX[(ids >> np.uint32(28 - 4 * place)) & np.uint32(15)]
  words[id_blank] = 0
  words[..., 8] = ord("\t")
  words[:, -1, 8] = ord("\n")
  lines = np.concatenate(
    [label_slots, numbers.reshape(num_rows, -1), words.reshape(num_rows, -1)], axis=1
  ).reshape(-1)
  return lines[lines != 0].tobytes()
