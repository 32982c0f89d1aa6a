"""The data set over a prepared table: arrays mapped into memory, any row at any time.

A row is a few numbers at a known place of a few files, so batches are read in any order, by any
number of processes, at the cost of the rows they hold; what has been read stays in the system's
page cache and not in this process.

Read next: jaxrec/data/prepared/prepare.py, which writes the files.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jaxrec.data import pipeline
from jaxrec.data.prepared import prepare, splits
from jaxrec.features import transforms, transforms_io, vocabulary
from jaxrec.inputs import batch as batch_lib


@dataclasses.dataclass(frozen=True)
class StoredTable:
  """A prepared table as a data set.

  Attributes:
    folder: that ``prepare.prepare`` made.
    embedding_dim: width of the tables that have none of their own.
    name: what to call it.
    test_folder: of another prepared table whose rows are the test split; None: this one's.
    is_inferred: whether its schema was guessed from the data.
  """

  folder: pathlib.Path
  embedding_dim: int
  name: str = "table"
  test_folder: pathlib.Path | None = None
  is_inferred: bool = False

  @functools.cached_property
  def transforms(self) -> transforms.Transforms:
    """What made the numbers; ``.batch(table)`` makes them of new rows, for serving."""
    return transforms_io.load(self.folder)

  @functools.cached_property
  def spec(self) -> batch_lib.BatchSpec:
    return self.transforms.spec(self.embedding_dim)

  def num_examples(self, split: str) -> int:
    if self._held_out is not None and split == "test":
      return self._held_out.num_examples(split)
    return len(self._rows[split])

  def read(self, indices: np.ndarray, split: str = "train") -> batch_lib.Batch:
    """The examples numbered ``indices: i64[n]`` of a split, as a host batch without a row plan."""
    if self._held_out is not None and split == "test":
      return self._held_out.read(indices, split)
    rows = self._rows[split][indices]
    encoded = transforms.Encoded(
      ids=self._array("ids.i32", np.int32, self._num_ids)[rows],
      dense=self._array("dense.f32", np.float32, self.spec.num_dense)[rows],
      bags={name: self._bag(k, rows) for k, name in enumerate(self.transforms.max_lengths)},
    )
    labels = self._array("labels.f32", np.float32, len(self.spec.labels))[rows]
    weights = np.ones(len(rows), np.float32)
    if self.transforms.schema.weight is not None:
      weights = self._array("weights.f32", np.float32, 1)[rows, 0]
    groups = np.zeros((len(rows), 0), np.int32)
    if self.spec.groups:
      groups = self._array("groups.i32", np.int32, len(self.spec.groups))[rows]
    return transforms.to_batch(
      self.transforms,
      encoded,
      labels={n: np.ascontiguousarray(labels[:, k]) for k, n in enumerate(self.spec.labels)},
      weights=weights,
      groups={n: np.ascontiguousarray(groups[:, k]) for k, n in enumerate(self.spec.groups)},
    )

  def batches(self, batch_size: int, **options: Any) -> Iterator[batch_lib.Batch]:
    """Host batches with their row plans; ``options`` are those of ``pipeline.batches``."""
    return pipeline.batches(self, batch_size, **options)

  def describe(self) -> str:
    """The data set in a line."""
    counts = "/".join(f"{self.num_examples(split):,}" for split in splits.NAMES)
    rows = sum({f.table.name: f.table.vocab_size for f in self.spec.features}.values())
    skipped = f"; {self.num_bad_rows} bad rows left out" if self.num_bad_rows else ""
    return (
      f"{self.name}: {counts} rows to train/val/test, {len(self.spec.features)} features of "
      f"{rows:,} ids, {self.spec.num_dense} dense{skipped}"
    )

  @property
  def num_bad_rows(self) -> int:
    """How many rows were left out; ``bad_rows`` describes the first ten thousand."""
    return self.meta["num_bad_rows"] + (self._held_out.num_bad_rows if self._held_out else 0)

  @property
  def bad_rows(self) -> list[str]:
    """Where each bad row was left out, and why; those of the test files last."""
    return [*self.meta["bad_rows"], *(self._held_out.bad_rows if self._held_out else ())]

  def group_names(self, column: str) -> Sequence[str]:
    """The value of each number in ``groups[column]`` of the test split."""
    folder = self.folder if self.test_folder is None else self.test_folder
    path = folder / prepare.groups_file(self.transforms.schema, column)
    return vocabulary.Vocabulary(pq.read_table(path)["value"].combine_chunks()).names()

  @functools.cached_property
  def meta(self) -> dict[str, Any]:
    """What is known of the preparation: rows of each split, bad rows left out."""
    return json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))

  def __reduce__(self) -> Any:
    fields = (self.folder, self.embedding_dim, self.name, self.test_folder, self.is_inferred)
    return StoredTable, fields  # a worker maps the files anew

  @functools.cached_property
  def _held_out(self) -> StoredTable | None:
    if self.test_folder is None:
      return None
    return StoredTable(self.test_folder, self.embedding_dim, self.name)

  @property
  def _num_ids(self) -> int:
    return len(self.spec.features) - len(self.transforms.max_lengths)

  @functools.cached_property
  def _rows(self) -> dict[str, np.ndarray]:
    return {s: self._array(f"rows_{s}.i64", np.int64, 1)[:, 0] for s in splits.NAMES}

  @functools.cached_property
  def _mapped(self) -> dict[str, np.ndarray]:
    return {}

  def _array(self, name: str, dtype: Any, width: int) -> np.ndarray:
    """[N, width], mapped on first use."""
    if name not in self._mapped:
      path = self.folder / name
      if not path.exists() or not path.stat().st_size:
        return np.zeros((self.meta["num_rows"] if width == 0 else 0, width), dtype)
      self._mapped[name] = np.memmap(path, dtype, mode="r").reshape(-1, width)
    return self._mapped[name]

  def _bag(self, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and lengths of feature k's bags of these rows."""
    spans = self._array(f"spans_{k}.i64", np.int64, 2)
    if len(spans):  # pieces of one long list, of which the latest count
      most = list(self.transforms.max_lengths.values())[k]
      starts, ends = spans[rows, 0], spans[rows, 1]
      starts = np.maximum(starts, ends - most)
      return _pieces(self._array(f"log_{k}.i32", np.int32, 1), starts, ends - starts)
    ends = self._array(f"splits_{k}.i64", np.int64, 1)[:, 0]
    starts, lengths = ends[rows], (ends[rows + 1] - ends[rows])
    return _pieces(self._array(f"values_{k}.i32", np.int32, 1), starts, lengths)


def _pieces(
  values: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Pieces of ``values: [M, 1]``, end to end, and their lengths."""
  firsts = np.cumsum(lengths) - lengths
  places = np.arange(int(lengths.sum())) + np.repeat(starts - firsts, lengths)
  return values[places, 0], lengths.astype(np.int32)
