"""The two published ways to prepare Criteo, which do not agree.

``dlrm`` (facebookresearch/dlrm): a dense value x becomes log(x + 1), after blanks and negatives
became 0. An id is its hexadecimal value modulo ``max_rows``, and then its number in a dictionary of
the feature over all days. Negatives may be dropped with a fixed chance. The training days stay in
their order; the first half of the last day is ``test``, the second ``val``.

``mlperf`` (torchrec): a dense value x of a day becomes log(x - (m - 2)), where m is the smallest
dense value of that day, in any column, blanks being 0; so the argument is at least 2. Ids are
numbered from 2; those seen less often than the threshold, over all days, are 1. All days but the
last are shuffled with seed 0; the first half of the last day is ``val``, the second ``test``.

Where the description leaves room, this is what is done here:

* Ids are numbered in the order of first occurrence, as the public code does, over all days that are
  kept (dropped negatives are not counted), the last one included. A blank id counts as the value 0.
* All arithmetic on raw values is exact: hexadecimal ids are uint32 and dense values int64 before
  the logarithm. The public code uses int32, where ids from 0x80000000 on and large dense values
  wrap round, or raise under NumPy 2. Where nothing overflows both agree, and a wrapped id is still
  the same id.
* Logarithms are taken in float64 and rounded to float32, so they do not depend on the machine.
* Which negatives are dropped is a function of (0, day, row of the day), not of a generator's state.
* "Shuffled with seed 0" is ``data.order.permuted``, which needs no memory: example g of the
  training days goes to place permuted(g).
* An odd last day gives its first half the extra row. Kaggle's one file is cut into seven days of
  equal numbers of rows, the first ones having one more where they must.

Source: papers note on DLRM, section 3, "two incompatible recipes".
Read next: jaxrec/data/criteo/preparation.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxrec.data.criteo import fields
from jaxrec.data.pipeline import counter_rng, shuffle

_SEED = 0


@dataclasses.dataclass(frozen=True)
class Recipe:
  """One of the two recipes, with its settings.

  Attributes:
    name: ``dlrm`` or ``mlperf``.
    max_rows: dlrm: modulus of the raw ids; 0: none.
    sub_sample_rate: dlrm: chance that a negative is dropped.
    frequency_threshold: mlperf: occurrences below which an id is rare.
  """

  name: str
  max_rows: int = 0
  sub_sample_rate: float = 0.0
  frequency_threshold: int = 0

  @property
  def first_id(self) -> int:
    return 0 if self.name == "dlrm" else 2

  @property
  def rare_id(self) -> int | None:
    """The id of what is not in the dictionary; None: everything is."""
    return 1 if self.frequency_threshold > 1 else None

  @property
  def is_shuffled(self) -> bool:
    return self.name == "mlperf"

  @property
  def last_day_splits(self) -> tuple[str, str]:
    """The splits that the halves of the last day become."""
    return ("test", "val") if self.name == "dlrm" else ("val", "test")


def keep(recipe: Recipe, labels: np.ndarray, *, day: int, first_row: int) -> np.ndarray | None:
  """bool[n]: which rows are kept, by ``labels: u8[n]`` and their numbers in the day; None: all."""
  if not recipe.sub_sample_rate:
    return None
  key = counter_rng.stream_key("criteo", "sub_sample", _SEED, day)
  chances = counter_rng.uniform(key, np.arange(first_row, first_row + len(labels)))
  return (labels == 1) | (chances >= recipe.sub_sample_rate)


def raw_ids(recipe: Recipe, ids: np.ndarray) -> np.ndarray:
  """u32[...]: what the dictionary is made of."""
  return ids % np.uint32(recipe.max_rows) if recipe.max_rows else ids


def dense_values(recipe: Recipe, dense: np.ndarray, smallest: int) -> np.ndarray:
  """f32[...] of the raw values i32[...]; ``smallest`` is the day's."""
  if recipe.name == "dlrm":
    shifted = np.maximum(dense, 0) + 1.0
  else:
    shifted = dense.astype(np.float64) - (smallest - 2.0)
  return np.log(shifted).astype(np.float32)


def split_rows(recipe: Recipe, rows_per_day: list[int]) -> dict[str, int]:
  """How many of the kept rows each split holds."""
  first, second = recipe.last_day_splits
  half = -(-rows_per_day[-1] // 2)
  return {"train": sum(rows_per_day[:-1]), first: half, second: rows_per_day[-1] - half}


def places(
  recipe: Recipe, rows_per_day: list[int], *, day: int, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Where kept rows of a day go.

  Args:
    recipe: decides the order.
    rows_per_day: kept rows of every day.
    day: the day.
    rows: i64[n], numbers of kept rows in it.

  Returns:
    i64[n] splits, numbered as in ``split_rows``, and i64[n] places in them.
  """
  if day == len(rows_per_day) - 1:
    half = -(-rows_per_day[-1] // 2)
    is_second = rows >= half
    return 1 + is_second.astype(np.int64), np.where(is_second, rows - half, rows)
  numbers = rows + sum(rows_per_day[:day])
  if recipe.is_shuffled:
    numbers = shuffle.permuted(numbers, num_examples=sum(rows_per_day[:-1]), seed=_SEED)
  return np.zeros(len(rows), np.int64), numbers


def kaggle_days(num_rows: int, num_days: int) -> list[int]:
  """Rows of each day of Kaggle's one file.

  >>> kaggle_days(10, 4)
  [3, 3, 2, 2]
  """
  quotient, extra = divmod(num_rows, num_days)
  return [quotient + (day < extra) for day in range(num_days)]


def select(recipe: Recipe, rows: fields.RawRows, *, day: int, first_row: int) -> fields.RawRows:
  """The rows of a block that are kept, ids already modulo ``max_rows``."""
  is_kept = keep(recipe, rows.labels, day=day, first_row=first_row)
  kept = rows if is_kept is None else rows[is_kept]
  return dataclasses.replace(kept, ids=raw_ids(recipe, kept.ids))
