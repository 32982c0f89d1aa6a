"""Small raw files with everything that Criteo's have, and what is prepared from them."""

from __future__ import annotations

import dataclasses
import gzip
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxrec.config import experiment as experiment_lib
from jaxrec.data import criteo
from jaxrec.data.criteo import raw_files, source

NAMES = tuple(f"C{number}" for number in range(1, 27))
# Small enough that ids meet again, one beyond any day's rows.
VOCAB_SIZES = (3, 40, 2_000, 7) * 6 + (1, 200)


def write_days(folder: pathlib.Path, sizes: Sequence[int], *, is_gzipped: bool = False) -> None:
  """Skewed ids, blanks, negatives; and on day 1 the edges of both kinds of numbers."""
  raw_files.write_days(folder, sizes, vocab_sizes=VOCAB_SIZES, is_gzipped=is_gzipped)
  if len(sizes) > 1 and not is_gzipped:
    dense = ["2147483647", "-2147483648", "0", "-0", "007", *[""] * 8]
    edges = [
      "\t".join(["1", *dense, "ffffffff", "FFFFFFFF", "80000000", "7fffffff", *[""] * 22]),
      "\t".join(["0", *dense[::-1], *["0000000a"] * 26]),
    ]
    with open(folder / "day_1", "a") as file:
      file.write("\n".join(edges))  # without a newline at the end


def write_kaggle(folder: pathlib.Path, num_rows: int, *, is_gzipped: bool = False) -> pathlib.Path:
  folder.mkdir(parents=True, exist_ok=True)
  text = b"".join(raw_files.day_text(0, num_rows, vocab_sizes=VOCAB_SIZES))
  path = folder / ("train.txt.gz" if is_gzipped else "train.txt")
  path.write_bytes(gzip.compress(text, 1) if is_gzipped else text)
  return path


def data_config(
  folder: pathlib.Path, prepared: pathlib.Path, recipe: str = "dlrm", **fields
) -> experiment_lib.DataConfig:
  """A DataConfig; ``fields`` are those of CriteoConfig, or else of DataConfig."""
  known = {field.name for field in dataclasses.fields(experiment_lib.CriteoConfig)}
  ours = {name: value for name, value in fields.items() if name in known}
  others = {name: value for name, value in fields.items() if name not in known}
  return experiment_lib.DataConfig(
    dataset="criteo",
    data_dir=str(folder),
    criteo=experiment_lib.CriteoConfig(recipe=recipe, prepared_dir=str(prepared), **ours),
    **others,
  )


def prepared_bytes(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read_all(dataset: source.Criteo) -> dict[str, dict[str, np.ndarray]]:
  """Every split as the reference has it."""
  result = {}
  for split in dataset.meta["splits"]:
    batch = dataset.read(np.arange(dataset.num_examples(split)), split)
    result[split] = {
      "label": batch.labels["click"],
      "dense": batch.dense,
      "ids": np.stack([batch.ids[name].values for name in NAMES], axis=1),
    }
  return result


def load(data: experiment_lib.DataConfig, **options) -> source.Criteo:
  return criteo.load(data, embedding_dim=4, **options)
