"""Data sets by name.

A data set is a ``pipeline.Source``; its loader takes a DataConfig and the embedding dim of the
tables. To add one: write the loader in a file of its own and name it in ``LOADERS``.

Read next: jaxrec/data/datasets/synthetic.py.
"""

from __future__ import annotations

import dataclasses
import operator
import sys
import types
from collections.abc import Callable, Mapping, Sequence

from jaxrec import config as config_lib
from jaxrec.config import experiment as experiment_lib
from jaxrec.data import pipeline
from jaxrec.data.datasets import (
  adult,
  census_income,
  movielens,
  movietweetings,
  online_retail,
  vehicle_coupon,
)
from jaxrec.data.datasets.synthetic import SyntheticClicks, default_features, synthetic
from jaxrec.data.events import event_log
from jaxrec.data.prepared import from_table


def load(config: experiment_lib.DataConfig, *, embedding_dim: int) -> pipeline.Source:
  """The data set that ``config.dataset`` names.

  Raises:
    ConfigError: no such data set.
  """
  if config.dataset not in LOADERS:
    raise config_lib.ConfigError(
      f"dataset: no data set {config.dataset!r}; {config_lib.did_you_mean(config.dataset, LOADERS)}"
    )
  for field in _NOT_READ.get(config.dataset, ()):
    value_of = operator.attrgetter(field)
    config_lib.require(
      value_of(config) == value_of(experiment_lib.DataConfig()),
      f"data.{field}: dataset {config.dataset} does not read it, so it would be ignored; data of "
      "your own are --dataset=table --data_dir=clicks.csv --label=click, a log of events "
      "--dataset=events --data_dir=log.csv --time=when",
    )
  return LOADERS[config.dataset](config, embedding_dim)


def resize(
  features: Sequence[config_lib.FeatureConfig],
  config: experiment_lib.DataConfig,
  embedding_dim: int,
) -> tuple[config_lib.FeatureConfig, ...]:
  """``features`` with the widths, vocabularies and bag lengths that the config asks for."""
  for name in ("vocab_sizes", "ids_per_bag"):
    given = getattr(config, name)
    if given and len(given) != len(features):
      raise config_lib.ConfigError(
        f"data.{name}: expected one value for each of the {len(features)} features, "
        f"got {len(given)}"
      )
  resized = []
  for index, feature in enumerate(features):
    rows = config.vocab_sizes[index] if config.vocab_sizes else feature.table.vocab_size
    rows = min(rows, config.max_rows_per_table or rows)
    table = dataclasses.replace(feature.table, vocab_size=rows, embedding_dim=embedding_dim)
    length = config.ids_per_bag[index] if config.ids_per_bag else feature.ids_per_bag
    combiner = config.combiner or feature.combiner
    resized.append(dataclasses.replace(feature, table=table, ids_per_bag=length, combiner=combiner))
  return tuple(resized)


def _synthetic(config: experiment_lib.DataConfig, embedding_dim: int) -> SyntheticClicks:
  features = resize(default_features(), config, embedding_dim)
  return synthetic(features, num_dense=13, seed=config.seed)


def _criteo(config: experiment_lib.DataConfig, embedding_dim: int) -> pipeline.Source:
  from jaxrec.data.criteo import source  # it imports tensorflow-datasets, which takes its time

  def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

  return source.load(config, embedding_dim=embedding_dim, report=report)


LOADERS: Mapping[str, Callable[[experiment_lib.DataConfig, int], pipeline.Source]] = (
  types.MappingProxyType(
    {
      "synthetic": _synthetic,
      "criteo": _criteo,
      "table": from_table.load,
      "events": event_log.load,
      "adult": adult.load,
      "census_income": census_income.load,
      "movielens": movielens.load,
      "movietweetings": movietweetings.load,
      "online_retail": online_retail.load,
      "vehicle_coupon": vehicle_coupon.load,
    }
  )
)

_OF_A_TABLE = ("labels", "weight", "time", "schema", "test_dir")  # what one's own table is told by
# Fields that would be ignored in silence, by data set.
_NOT_READ: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
  {
    "synthetic": ("data_dir", *_OF_A_TABLE, "crosses", "events"),
    "criteo": (*_OF_A_TABLE, "crosses", "events"),
    "table": ("events",),
    "events": ("test_dir",),
    "online_retail": (*_OF_A_TABLE, *(f"events.{name}" for name in event_log.COLUMNS)),
    **{
      name: (*_OF_A_TABLE, "events")
      for name in ("adult", "census_income", "movielens", "movietweetings", "vehicle_coupon")
    },
  }
)  # fmt: skip
