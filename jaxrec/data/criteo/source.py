"""Prepared Criteo data as a source of examples.

A batch's rows lie in a few blocks; each is decoded once and kept for the batches that follow, which
the order of ``pipeline.batches`` draws from the same blocks.

A table has as many rows as the prepared data has ids, or fewer where the config caps it: ids are
then taken modulo its rows, as torchrec does.

Read next: jaxrec/data/pipeline/input_batches.py.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxrec import config as config_lib
from jaxrec.config import experiment as experiment_lib
from jaxrec.data import pipeline
from jaxrec.data.criteo import blocks, multi_hot, preparation, schema
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import id_bags

_CACHED_BLOCKS = 64  # of 161 KB, for each split that is read


@dataclasses.dataclass(frozen=True)
class Criteo:
  """A prepared folder; made by ``load``.

  Attributes:
    folder: where it lies.
    meta: what it says of itself, its ``criteo.json``.
    spec: what its batches hold.
    bags: of features with bags, by number, the file of their table (multi_hot.py).
  """

  folder: pathlib.Path
  meta: Mapping[str, Any]
  spec: batch_lib.BatchSpec
  bags: Mapping[int, pathlib.Path]

  def __post_init__(self) -> None:
    readers = {split: BlockReader(self.folder, split) for split in self.meta["splits"]}
    object.__setattr__(self, "_readers", readers)

  @property
  def block_rows(self) -> int:
    """Rows that are read at once."""
    return int(self.meta["block_rows"])

  def num_examples(self, split: str) -> int:
    if split not in self.meta["splits"]:
      raise ValueError(f"split {split!r}: expected one of {sorted(self.meta['splits'])}")
    return int(self.meta["splits"][split])

  def read(self, indices: np.ndarray, split: str = "train") -> batch_lib.Batch:
    """The examples numbered ``indices: i64[n]`` of a split, as a host batch without row plan."""
    indices = np.asarray(indices, np.int64)
    size = self.num_examples(split)
    if indices.size and not 0 <= indices.min() <= indices.max() < size:
      raise ValueError(f"criteo: split {split!r} has examples 0..{size - 1}, got {indices}")
    labels = np.empty(len(indices), np.float32)
    dense = np.empty((len(indices), schema.NUM_DENSE), np.float32)
    ids = np.empty((len(indices), schema.NUM_IDS), np.int32)
    numbers, rows = np.divmod(indices, self.block_rows)
    by_block = np.argsort(numbers, kind="stable")
    found, starts = np.unique(numbers[by_block], return_index=True)
    for number, chosen in zip(found.tolist(), np.split(by_block, starts[1:]), strict=True):
      block = self._readers[split].block(number)  # type: ignore[attr-defined]
      labels[chosen] = block[blocks.LABEL][rows[chosen]]
      dense[chosen] = block["dense"][rows[chosen]]
      ids[chosen] = block["ids"][rows[chosen]]
    columns = np.ascontiguousarray(ids.T)
    return batch_lib.Batch(
      dense=dense,
      ids={
        feature.name: self._bag(number, columns[number])
        for number, feature in enumerate(self.spec.features)
      },
      labels={blocks.LABEL: labels},
      weights=np.ones(len(indices), np.float32),
    )

  def batches(self, batch_size: int, **options: Any) -> Iterator[batch_lib.Batch]:
    """Host batches with their row plans; ``options`` are those of ``pipeline.batches``."""
    return pipeline.batches(self, batch_size, **options)

  def describe(self) -> str:
    """The data set in a line."""
    sizes = ", ".join(f"{rows:,} {split}" for split, rows in self.meta["splits"].items())
    bad = f"; {self.meta['num_bad']} bad rows skipped" if self.meta["num_bad"] else ""
    return f"criteo: recipe {self.meta['recipe']['name']}, {sizes}{bad}"

  def _bag(self, number: int, ids: np.ndarray) -> id_bags.IdBags:
    feature = self.spec.features[number]
    if feature.table.vocab_size < self.meta["vocab_sizes"][number]:
      ids = ids % np.int32(feature.table.vocab_size)
    if number not in self.bags:
      return id_bags.IdBags(values=ids)
    length = feature.ids_per_bag
    bags = multi_hot.look_up(self.bags[number], ids)
    splits = np.arange(0, bags.size + 1, length, dtype=np.int32)
    return id_bags.IdBags(values=bags.reshape(-1), row_splits=splits)


class BlockReader:
  """Decoded blocks of a split, the last few kept; opened when first read, in each process anew."""

  def __init__(self, folder: pathlib.Path, split: str):
    self._folder, self._split = folder, split
    self.__setstate__(self.__getstate__())

  def __getstate__(self) -> dict[str, Any]:
    return {"_folder": self._folder, "_split": self._split}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._lock = threading.Lock()
    self._kept: collections.OrderedDict[int, dict[str, np.ndarray]] = collections.OrderedDict()
    self._source: Any = None

  def block(self, number: int) -> dict[str, np.ndarray]:
    """The arrays of a block; not to be written to."""
    with self._lock:
      if self._source is None:
        self._source = blocks.open_split(self._folder, self._split)
      if number not in self._kept:
        self._kept[number] = self._source[number]
        if len(self._kept) > _CACHED_BLOCKS:
          self._kept.popitem(last=False)
      self._kept.move_to_end(number)
      return self._kept[number]


def load(
  data: experiment_lib.DataConfig,
  *,
  embedding_dim: int,
  executor: preparation.Executor | None = None,
  report: Any = lambda line: None,
) -> Criteo:
  """The data set that ``data`` asks for, prepared first if it is not yet.

  Args:
    data: see ``preparation.prepare``. ``vocab_sizes`` and ``max_rows_per_table`` cap the tables.
    embedding_dim: width of the tables.
    executor: see ``preparation.prepare``.
    report: gets a line a stage of preparing.

  Raises:
    ConfigError: a setting that does not fit, no raw files, no room to write.
    BadExampleError: a bad row.
  """
  lengths = _bag_lengths(data)
  folder = preparation.prepare(data, executor=executor, report=report)
  meta = preparation.read_meta(folder)
  features = []
  for number, name in enumerate(schema.ID_NAMES):
    caps = [*data.vocab_sizes[number : number + 1], data.max_rows_per_table or 2**31]
    rows = min(meta["vocab_sizes"][number], *caps)
    table = config_lib.TableConfig(name, vocab_size=rows, embedding_dim=embedding_dim)
    features.append(
      config_lib.FeatureConfig(
        name, table, combiner=data.combiner or "sum", ids_per_bag=lengths[number]
      )
    )
  bags: dict[int, pathlib.Path] = {}
  if data.criteo.multi_hot != "none":
    sizes = [feature.table.vocab_size for feature in features]
    parent = preparation.prepared_parent(data)
    bags = multi_hot.open_tables(parent, sizes, lengths, kind=data.criteo.multi_hot)
  spec = batch_lib.BatchSpec(
    tuple(features), schema.NUM_DENSE, labels=(blocks.LABEL,), dense_names=schema.DENSE_NAMES
  )
  return Criteo(folder, meta, spec, bags)


def _bag_lengths(data: experiment_lib.DataConfig) -> tuple[int, ...]:
  for name in ("vocab_sizes", "ids_per_bag"):
    given = getattr(data, name)
    if given and len(given) != schema.NUM_IDS:
      raise config_lib.ConfigError(
        f"data.{name}: expected one value for each of the {schema.NUM_IDS} features, "
        f"got {len(given)}"
      )
  lengths = data.ids_per_bag or (1,) * schema.NUM_IDS
  has_bags = max(lengths) > 1
  if has_bags and data.criteo.multi_hot == "none":
    raise config_lib.ConfigError(
      "data.ids_per_bag: Criteo has one id a feature; for MLPerf's synthetic bags set "
      "--set data.criteo.multi_hot=uniform (or pareto)"
    )
  if data.criteo.multi_hot != "none" and not has_bags:
    raise config_lib.ConfigError(
      "data.criteo.multi_hot: how long the bags are must be given too, in data.ids_per_bag; "
      "--config=mlperf_dcnv2 has MLPerf's lengths"
    )
  return lengths
