"""Both recipes word for word from the papers note: one row, one Python dictionary at a time."""

from __future__ import annotations

import gzip
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxrec.data.pipeline import counter_rng, shuffle


def read_day(path: pathlib.Path) -> list[tuple[int, list[int], list[int]]]:
  """(label, 13 integers, 26 ids) of every line, blanks as 0."""
  text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
  rows = []
  for line in text.decode().splitlines():
    fields = line.split("\t")
    dense = [int(field) if field else 0 for field in fields[1:14]]
    ids = [int(field, 16) if field else 0 for field in fields[14:]]
    rows.append((int(fields[0]), dense, ids))
  return rows


def cut_kaggle(rows: list, num_days: int = 7) -> list[list]:
  sizes = [len(rows) // num_days + (day < len(rows) % num_days) for day in range(num_days)]
  starts = [sum(sizes[:day]) for day in range(num_days)]
  return [rows[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def _split(rows: list[tuple[int, list[float], list[int]]]) -> dict[str, np.ndarray]:
  return {
    "label": np.array([row[0] for row in rows], np.float32),
    "dense": np.array([row[1] for row in rows], np.float32),
    "ids": np.array([row[2] for row in rows], np.int32),
  }


def dlrm(
  days: Sequence[list], *, max_rows: int = 0, sub_sample_rate: float = 0.0
) -> tuple[dict[str, dict[str, np.ndarray]], list[int]]:
  """Blank and negative -> 0, log(x + 1); ids modulo max_rows, one dictionary over all days; the
  last day halved into test and val.
  """
  dictionaries: list[dict[int, int]] = [{} for _ in range(26)]
  done = []
  for day, rows in enumerate(days):
    key = counter_rng.stream_key("criteo", "sub_sample", 0, day)
    chances = counter_rng.uniform(key, np.arange(len(rows)))
    kept = []
    for (label, dense, ids), chance in zip(rows, chances, strict=True):
      if label == 0 and chance < sub_sample_rate:
        continue
      ids = [value % max_rows if max_rows else value for value in ids]
      numbers = [d.setdefault(value, len(d)) for d, value in zip(dictionaries, ids, strict=True)]
      kept.append((label, [math.log(max(value, 0) + 1) for value in dense], numbers))
    done.append(kept)
  half = -(-len(done[-1]) // 2)
  splits = {"train": sum(done[:-1], []), "test": done[-1][:half], "val": done[-1][half:]}
  return {name: _split(rows) for name, rows in splits.items()}, [len(d) for d in dictionaries]


def mlperf(
  days: Sequence[list], *, frequency_threshold: int = 3
) -> tuple[dict[str, dict[str, np.ndarray]], list[int]]:
  """x - (min_of_file - 2), then log; contiguous ids from 2 with a frequency threshold, rare -> 1;
  all days but the last shuffled with seed 0; the last is val and test.
  """
  frequencies: list[dict[int, int]] = [{} for _ in range(26)]
  for rows in days:
    for _, _, ids in rows:
      for frequency, value in zip(frequencies, ids, strict=True):
        frequency[value] = frequency.get(value, 0) + 1
  dictionaries: list[dict[int, int]] = [{} for _ in range(26)]
  sizes = [2] * 26
  done = []
  for rows in days:
    smallest = min(min(dense) for _, dense, _ in rows)
    kept = []
    for label, dense, ids in rows:
      numbers = []
      for column, value in enumerate(ids):
        if value not in dictionaries[column]:
          if frequency_threshold > 1 and frequencies[column][value] < frequency_threshold:
            dictionaries[column][value] = 1
          else:
            dictionaries[column][value] = sizes[column]
            sizes[column] += 1
        numbers.append(dictionaries[column][value])
      kept.append((label, [math.log(value - (smallest - 2)) for value in dense], numbers))
    done.append(kept)
  train = sum(done[:-1], [])
  places = shuffle.permuted(np.arange(len(train)), num_examples=len(train), seed=0)
  shuffled = [train[example] for example in np.argsort(places)]
  half = -(-len(done[-1]) // 2)
  splits = {"train": shuffled, "val": done[-1][:half], "test": done[-1][half:]}
  return {name: _split(rows) for name, rows in splits.items()}, sizes


def multi_hot(
  vocab_sizes: Sequence[int], ids_per_bag: Sequence[int], kind: str
) -> list[np.ndarray]:
  """Per feature a table [id, randint(0, n, size=(n, h - 1))] from NumPy seed 0, in order."""
  random = np.random.RandomState(0)
  tables = []
  for rows, length in zip(vocab_sizes, ids_per_bag, strict=True):
    shape = (rows, length - 1)
    if kind == "uniform":
      drawn = random.randint(0, rows, size=shape)
    else:
      with np.errstate(invalid="ignore"):
        drawn = random.pareto(a=0.25, size=shape)
        # What x86 makes of a float beyond int32, written out.
        drawn = np.where(drawn >= 2**31, -(2.0**31), drawn).astype(np.int32) % rows
    tables.append(np.concatenate([np.arange(rows)[:, None], drawn], axis=1))
  return tables
