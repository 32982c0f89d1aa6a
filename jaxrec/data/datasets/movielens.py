"""MovieLens, by the stock builder of TensorFlow Datasets: does a person rate a movie 4 or better?

TensorFlow itself is not needed: the builder downloads, and records come back through its data
source of ArrayRecord files. Which MovieLens it is, 100k to 25m, is ``--data_dir``'s last word. The
latest fifth of the ratings tests.

Source: Harper and Konstan, "The MovieLens datasets" (TiiS 2015); licence of GroupLens, for
research.
Read next: jaxrec/data/prepared/from_table.py.
"""

from __future__ import annotations

import hashlib
import itertools
import pathlib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from unittest import mock

import pyarrow as pa

from jaxrec import config as config_lib
from jaxrec.config import experiment
from jaxrec.data.prepared import from_table, prepare, prepared_table
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features.schema import Column, Schema

DEFAULT = "100k"
LIKED = 4.0
_RECORDS = 1 << 16  # that are Python objects at a time
_RATING = pa.schema({
  "user": pa.string(),
  "movie": pa.string(),
  "genres": pa.list_(pa.string()),
  "ts": pa.int64(),
  "liked": pa.int8(),
})  # fmt: skip


def ratings(records: Iterable[Mapping[str, Any]], genres: Sequence[str]) -> pa.Table:
  """The records of ``movielens/*-ratings`` as columns; ``genres`` names their numbers."""
  iterator = iter(records)
  chunks = []
  while chunk := list(itertools.islice(iterator, _RECORDS)):
    rows = [
      {
        "user": record["user_id"].decode(),
        "movie": record["movie_id"].decode(),
        "genres": [genres[number] for number in record["movie_genres"]],
        "ts": int(record["timestamp"]),
        "liked": int(record["user_rating"] >= LIKED),
      }
      for record in chunk
    ]
    chunks.append(pa.Table.from_pylist(rows, schema=_RATING))
  found = pa.concat_tables(chunks)
  return found.sort_by([("ts", "ascending"), ("user", "ascending"), ("movie", "ascending")])


def schema(config: experiment.DataConfig) -> Schema:
  """User, movie and genres."""
  return Schema(
    {"liked": None},
    {
      "user": Column("categorical", min_count=config.min_count),
      "movie": Column("categorical", min_count=config.min_count),
      "genres": Column("list"),
    },
    groups=("user",),
    time="ts",
  )


def load(config: experiment.DataConfig, embedding_dim: int) -> prepared_table.StoredTable:
  """``--dataset=movielens [--data_dir=1m]``: needs a network the first time.

  Raises:
    ConfigError: the data cannot be had.
  """
  size = config.data_dir or DEFAULT
  try:
    builder = _prepared(size)
    records = builder.as_data_source(split="train")
  except Exception as error:
    reason = str(error).strip().splitlines()[0][:200]
    raise config_lib.ConfigError(
      f"dataset movielens/{size}-ratings cannot be had ({reason}); it is downloaded the first "
      "time, so this needs a network; --data_dir may be 100k, 1m, 20m, 25m or latest-small"
    ) from error
  found = ratings(records, builder.info.features["movie_genres"].feature.names)
  folder = str(builder.data_path)
  name = f"movielens/{size}, {hashlib.sha256(folder.encode()).hexdigest()[:8]}"
  reader = reader_lib.ArrowTable(found, name, tuple(_files(folder)))
  return from_table.make(reader, schema(config), config, embedding_dim)


def _prepared(size: str) -> Any:
  """The stock builder, its data downloaded and written as ArrayRecord files."""
  # Seconds to import, and for this data set alone. The class itself, as looking it up by name asks
  # for TensorFlow; and all it asks TensorFlow for after that is to open a file.
  from tensorflow_datasets.structured import movielens as stock
  from tensorflow_datasets.structured import movielens_parsing

  folder = prepare.cache_folder() / "tfds"
  builder = stock.Movielens(
    config=f"{size}-ratings", data_dir=str(folder), file_format="array_record"
  )
  opening = types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open))
  with mock.patch.object(movielens_parsing, "tf", types.SimpleNamespace(io=opening)):
    builder.download_and_prepare()
  return builder


def _files(folder: str) -> list[str]:
  return [str(path) for path in sorted(pathlib.Path(folder).glob("*array_record*"))]
