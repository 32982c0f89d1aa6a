"""MLPerf's synthetic bags: every id of Criteo becomes the first of several.

Each feature of ``h`` ids a bag has a table [id, random ids], one line an id of its vocabulary; an
example's bag is the line of its id. The draws are NumPy's from seed 0, feature after
feature, so that everyone has the same tables. Made at once they take 43 GiB for MLPerf's
vocabularies; drawing goes on from where the generator stands, so here they are drawn and written a
few thousand lines at a time, and read as an array on disk. The id itself is not stored.

Source: mlcommons/training, DLRM-DCNv2's ``multi_hot.py`` (papers note on DLRM, section 3). Its
Pareto draws of 2^31 and more, beyond int32, are -2^31 before the modulus, as x86 converts them.
Read next: jaxrec/data/criteo/source.py.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxrec.data.criteo import atomic

_CHUNK_BYTES = 1 << 23
_PARETO_SHAPE = 0.25


def write_tables(
  folder: pathlib.Path,
  vocab_sizes: Sequence[int],
  ids_per_bag: Sequence[int],
  *,
  kind: str,
  chunk_bytes: int = _CHUNK_BYTES,
) -> None:
  """Writes ``0.npy``, ``1.npy``, ...: i32[V, ids_per_bag - 1] of each feature with bags.

  Args:
    folder: new; it becomes whole at once.
    vocab_sizes: rows of each table.
    ids_per_bag: of each feature, in their order.
    kind: ``uniform``, or ``pareto`` with shape 0.25.
    chunk_bytes: how much is drawn at a time; it changes memory alone.
  """
  random = np.random.RandomState(0)
  with atomic.writing(folder) as temporary:
    temporary.mkdir()
    for number, (num_rows, length) in enumerate(zip(vocab_sizes, ids_per_bag, strict=True)):
      if length > 1:
        table = np.lib.format.open_memmap(
          temporary / f"{number}.npy", "w+", np.int32, (num_rows, length - 1)
        )
        _fill(table, random, kind, max(1, chunk_bytes // (8 * (length - 1))))
        table.flush()


def _fill(table: np.ndarray, random: np.random.RandomState, kind: str, chunk_rows: int) -> None:
  num_rows = len(table)
  for start in range(0, num_rows, chunk_rows):
    chunk = table[start : start + chunk_rows]
    if kind == "uniform":
      chunk[...] = random.randint(0, num_rows, size=chunk.shape)
      continue
    drawn = random.pareto(_PARETO_SHAPE, size=chunk.shape)
    drawn = np.where(drawn < 2.0**31, drawn, -(2.0**31))
    chunk[...] = drawn.astype(np.int32) % np.int32(num_rows)


def open_tables(
  parent: pathlib.Path, vocab_sizes: Sequence[int], ids_per_bag: Sequence[int], *, kind: str
) -> dict[int, pathlib.Path]:
  """The files of the tables, below ``parent``, by number of the feature; made if not there."""
  words = json.dumps([kind, list(vocab_sizes), list(ids_per_bag)])
  digest = hashlib.blake2b(words.encode(), digest_size=6).hexdigest()
  folder = parent / f"criteo_multi_hot_{digest}"
  if not folder.is_dir():
    with atomic.locked(parent / f"{folder.name}.lock"):
      if not folder.is_dir():
        write_tables(folder, vocab_sizes, ids_per_bag, kind=kind)
  return {int(path.stem): path for path in sorted(folder.glob("*.npy"))}


def look_up(table: pathlib.Path, ids: np.ndarray) -> np.ndarray:
  """The bags i32[n, h] of ``ids: i32[n]``: each id, and its line of the table, i32[V, h - 1]."""
  lines = np.load(table, mmap_mode="r")  # opened anew, as an open one would pickle whole
  return np.concatenate([ids[:, None], lines[ids]], axis=1)
