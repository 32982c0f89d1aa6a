"""Permutation importance: how much worse a model predicts when one input is shuffled.

Shuffling an input across the examples keeps its distribution and breaks its bond with the label, so
what the metrics lose is what the model owes to it. The shuffle is a source around a source: example
k gets the input of example p(k), p a seeded permutation of the whole evaluated split, computed and
not stored, so it costs no memory and is the same in any batch size. Nothing else changes: not the
labels, not the other inputs, not the order.

Inputs that carry the same information hide each other's importance: each is small as long as the
other is there. Cost: two reads of the split and one pass of the model for each input and repeat.

Source: Breiman, "Random forests" (2001), section 10; the repeats as in scikit-learn's
``permutation_importance``.
Read next: jaxrec/training/evaluation.py.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxrec import config
from jaxrec.data import pipeline
from jaxrec.data.pipeline import shuffle
from jaxrec.inputs import batch as batch_lib

IN_ORDER = "in order"  # the one split that Evaluated has


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """The first examples of a split of ``source``, in order: all that an evaluation reads.

  Attributes:
    source: the examples.
    split: of them; ``train`` too is read in order, once.
    size: how many of its examples.
  """

  source: pipeline.Source
  split: str
  size: int

  @property
  def spec(self) -> batch_lib.BatchSpec:
    return self.source.spec

  def num_examples(self, split: str) -> int:
    del split
    return self.size

  def read(self, indices: np.ndarray, split: str = IN_ORDER) -> batch_lib.Batch:
    """The examples numbered ``indices: i64[n]``."""
    del split
    return self.source.read(indices, self.split)


@dataclasses.dataclass(frozen=True)
class Input:
  """One input of a model: a feature by its name, or else a dense column by its number."""

  name: str
  column: int | None = None


@dataclasses.dataclass(frozen=True)
class Permuted:
  """``source`` with one input permuted across its examples.

  Attributes:
    source: the evaluated examples.
    permuted: which input; a feature's bags move whole, with their weights.
    seed: of the permutation.
    repeat: another permutation of the same seed.
  """

  source: Evaluated
  permuted: Input
  seed: int = 0
  repeat: int = 0

  @property
  def spec(self) -> batch_lib.BatchSpec:
    return self.source.spec

  def num_examples(self, split: str) -> int:
    return self.source.num_examples(split)

  def read(self, indices: np.ndarray, split: str = IN_ORDER) -> batch_lib.Batch:
    """The examples numbered ``indices: i64[n]``, with the input of others."""
    batch = self.source.read(indices, split)
    donors = shuffle.permuted(
      np.asarray(indices, np.int64),
      num_examples=self.source.size,
      seed=self.seed,
      epoch=self.repeat,
    )
    donor = self.source.read(donors, split)
    if self.permuted.column is None:
      name = self.permuted.name
      return dataclasses.replace(batch, ids={**batch.ids, name: donor.ids[name]})
    dense = np.array(batch.dense)
    dense[:, self.permuted.column] = np.asarray(donor.dense)[:, self.permuted.column]
    return dataclasses.replace(batch, dense=dense)


@dataclasses.dataclass(frozen=True)
class Importance:
  """What permuting one input does to the metrics, over all repeats.

  Attributes:
    name: of the input.
    auc_drop: mean fall of the AUC; positive: the model needs the input.
    auc_spread: standard deviation of that over the repeats; 0 for one.
    logloss_rise: mean rise of the log loss.
    logloss_spread: its standard deviation.
  """

  name: str
  auc_drop: float
  auc_spread: float
  logloss_rise: float
  logloss_spread: float


def inputs(spec: batch_lib.BatchSpec) -> list[Input]:
  """The inputs of batches of ``spec``: its features, then its dense columns."""
  names = [
    spec.dense_names[column] if column < len(spec.dense_names) else f"dense {column}"
    for column in range(spec.num_dense)
  ]
  return [
    *(Input(feature.name) for feature in spec.features),
    *(Input(name, column) for column, name in enumerate(names)),
  ]


def measure(
  source: Evaluated,
  metrics_of: Callable[[Any], Mapping[str, float]],
  *,
  repeats: int = 3,
  seed: int = 0,
  on_input: Callable[[Input], None] = lambda which: None,
) -> list[Importance]:
  """The importance of every input, the largest fall of AUC first.

  Args:
    source: the evaluated examples.
    metrics_of: a model's metrics on a source of such examples, at least ``auc`` and ``logloss``.
    repeats: permutations of each input.
    seed: of the permutations.
    on_input: called before each input is measured.
  """
  config.require(repeats >= 1, f"repeats: must be at least 1, got {repeats}")
  base = metrics_of(source)
  found = []
  for which in inputs(source.spec):
    on_input(which)
    found.append(
      _importance(which.name, base, list(_metrics(source, which, metrics_of, repeats, seed)))
    )
  # NaN, where the split has one class, sorts last; equal ones by log loss, then by name.
  return sorted(found, key=lambda i: (math.isnan(i.auc_drop), -i.auc_drop, -i.logloss_rise, i.name))


def _metrics(
  source: Evaluated,
  which: Input,
  metrics_of: Callable[[Any], Mapping[str, float]],
  repeats: int,
  seed: int,
) -> Iterator[Mapping[str, float]]:
  for repeat in range(repeats):
    yield metrics_of(Permuted(source, which, seed, repeat))


def _importance(
  name: str, base: Mapping[str, float], permuted: list[Mapping[str, float]]
) -> Importance:
  drops = [base["auc"] - metrics["auc"] for metrics in permuted]
  rises = [metrics["logloss"] - base["logloss"] for metrics in permuted]
  return Importance(name, *_mean_and_spread(drops), *_mean_and_spread(rises))


def _mean_and_spread(values: list[float]) -> tuple[float, float]:
  spread = statistics.stdev(values) if len(values) > 1 else 0.0
  return statistics.fmean(values), spread
