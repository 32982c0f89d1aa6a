"""Prepared rows on disk: blocks of 1,024 rows, one block an example of a TFDS data set.

A row at a time, a reader of ArrayRecord files gives some thousands of rows a second; a block at a
time, millions. A block holds its rows as three arrays of fixed width, so decoding it is a look at
bytes. The folder is an ordinary data set of tensorflow-datasets in its ``array_record`` format:
``tfds.builder_from_directory(folder).as_data_source("train")`` reads it, and TensorFlow is not
needed to write it or to read it.

Source: tensorflow-datasets, "external" data sets (``folder_dataset.write_metadata``).
Read next: jaxrec/data/criteo/source.py.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, file_adapters

from jaxrec.data.criteo import schema

BLOCK_ROWS = 1024
SHARD_BLOCKS = 256
SHARD_ROWS = SHARD_BLOCKS * BLOCK_ROWS
LABEL = "click"
WORDS = 1 + schema.NUM_DENSE + schema.NUM_IDS  # of an encoded row: label, dense, ids


def features() -> tfds.features.FeaturesDict:
  """What an example of the data set holds: the rows of a block."""

  def array(shape: tuple[int | None, ...], dtype: type) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

  return tfds.features.FeaturesDict(
    {
      "dense": array((None, schema.NUM_DENSE), np.float32),
      "ids": array((None, schema.NUM_IDS), np.int32),
      LABEL: array((None,), np.uint8),
    }
  )


def num_shards(num_rows: int) -> int:
  """Files that a split of ``num_rows`` takes."""
  return -(-num_rows // SHARD_ROWS)


def shard_path(folder: pathlib.Path, split: str, shard: int, num_rows: int) -> pathlib.Path:
  """The file of a shard of a split of ``num_rows``."""
  name = _template(folder, split).sharded_filepath(
    shard_index=shard, num_shards=num_shards(num_rows)
  )
  return pathlib.Path(name)


def write_shard(path: pathlib.Path, rows: np.ndarray) -> None:
  """Writes encoded rows, ``u32[n, 40]`` as ``encode_rows`` makes them, block after block.

  Raises:
    OSError: not all of them are in the file.
  """
  described = features()
  serializer = example_serializer.ExampleSerializer(described.get_serialized_info())

  def examples() -> Iterator[tuple[int, bytes]]:
    for start in range(0, len(rows), BLOCK_ROWS):
      block = described.encode_example(decode_rows(rows[start : start + BLOCK_ROWS]))
      example = serializer.get_tf_example(block)
      # Not serialize_example: protobuf orders a map by a hash that each process seeds anew.
      yield start, example.SerializeToString(deterministic=True)

  adapter = file_adapters.ArrayRecordFileAdapter
  adapter.write_examples(path, examples())
  if adapter.num_examples(path) != -(-len(rows) // BLOCK_ROWS):
    raise OSError(f"{path} holds fewer blocks than were written to it; is the disk full?")


def encode_rows(labels: np.ndarray, dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """u32[n, 40] of ``labels: u8[n]``, ``dense: f32[n, 13]`` and ``ids: i32[n, 26]``."""
  rows = np.empty((len(labels), WORDS), np.uint32)
  rows[:, 0] = labels
  rows[:, 1 : 1 + schema.NUM_DENSE] = dense.view(np.uint32)
  rows[:, 1 + schema.NUM_DENSE :] = ids.view(np.uint32)
  return rows


def decode_rows(rows: np.ndarray) -> dict[str, np.ndarray]:
  """The arrays that ``encode_rows`` joined, by feature."""
  dense, ids = rows[:, 1 : 1 + schema.NUM_DENSE], rows[:, 1 + schema.NUM_DENSE :]
  return {
    "dense": np.ascontiguousarray(dense).view(np.float32),
    "ids": np.ascontiguousarray(ids).view(np.int32),
    LABEL: rows[:, 0].astype(np.uint8),
  }


def write_metadata(folder: pathlib.Path, rows_per_split: Mapping[str, int]) -> None:
  """Makes a folder of shards a data set that tfds can read."""
  splits = []
  for split, num_rows in rows_per_split.items():
    num_blocks = -(-num_rows // BLOCK_ROWS)
    lengths = [
      min(SHARD_BLOCKS, num_blocks - start) for start in range(0, num_blocks, SHARD_BLOCKS)
    ]
    size = sum(
      shard_path(folder, split, shard, num_rows).stat().st_size for shard in range(len(lengths))
    )
    splits.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=lengths,
        num_bytes=size,
        filename_template=_template(folder, split),
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features(),
    split_infos=splits,
    check_data=False,  # by as_dataset, which needs TensorFlow
    description="Criteo's click log, prepared by jaxrec; an example is a block of rows.",
  )


def open_split(folder: pathlib.Path, split: str) -> Any:
  """Random access to the blocks of a split: ``[k]`` is a dict of arrays."""
  return tfds.builder_from_directory(folder).as_data_source(split)


def _template(folder: pathlib.Path, split: str) -> tfds.core.ShardedFileTemplate:
  return tfds.core.ShardedFileTemplate(
    dataset_name="criteo", data_dir=folder, split=split, filetype_suffix="array_record"
  )
