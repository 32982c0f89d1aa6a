"""Runs on tables: your own, and the data sets that come with a baseline.

Widths, rates and penalties were chosen by validation AUC, on rows cut from the training part; the
test rows were scored once, with three seeds, by the commands that the README lists with what they
reached.

Read next: jaxrec/config/experiment.py.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping

from jaxrec.config.experiment import (
  DataConfig,
  EventsConfig,
  ExperimentConfig,
  FtrlConfig,
  HistoryConfig,
  ModelConfig,
  OptimizerConfig,
)


def _table() -> ExperimentConfig:
  """Any table: about ten passes, the best of them kept.

  python train.py --dataset=table --data_dir=YOUR.parquet --label=click
  """
  return ExperimentConfig(
    data=DataConfig("table"),
    model=ModelConfig(name="dlrm", embedding_dim=16, bottom_mlp=(64, 16), top_mlp=(128, 64, 1)),
    optimizer=OptimizerConfig(table_learning_rate=0.02),
    batch_size=512,
    epochs=10,
    eval_every=0,
    early_stop_patience=2,
  )


def _table_wide_deep() -> ExperimentConfig:
  """Any table: Adagrad in the deep part, FTRL with a mild L1 in the wide.

  python train.py --dataset=table --model=wide_deep --data_dir=YOUR.parquet --label=click
  """
  base = _wide_deep(_table(), (), FtrlConfig(learning_rate=0.03, l1=0.004))
  return dataclasses.replace(base, data=dataclasses.replace(base.data, cross_min_count=1))


def _adult() -> ExperimentConfig:
  """UCI Adult, official split.

  python train.py --dataset=adult --data_dir=../shared/data
  """
  return ExperimentConfig(
    data=DataConfig("adult"),
    model=ModelConfig(name="dlrm", embedding_dim=8, bottom_mlp=(64, 8), top_mlp=(64, 1)),
    optimizer=OptimizerConfig(table_learning_rate=0.02),
    batch_size=256,
    epochs=12,
    eval_every=0,
    early_stop_patience=4,
    refit=True,
  )


def _census_income() -> ExperimentConfig:
  """UCI Census-Income (KDD), a random fifth tests.

  python train.py --dataset=census_income --data_dir=../shared/data
  """
  return ExperimentConfig(
    data=DataConfig("census_income", test_fraction=0.2),
    model=ModelConfig(name="dlrm", embedding_dim=8, bottom_mlp=(64, 8), top_mlp=(64, 1)),
    optimizer=OptimizerConfig(table_learning_rate=0.02),
    batch_size=512,
    epochs=8,
    eval_every=0,
    early_stop_patience=3,
    refit=True,
  )


def _adult_wide_deep() -> ExperimentConfig:
  """UCI Adult with eight crosses; Adagrad in the deep part, FTRL in the wide, as in the paper.

  python train.py --dataset=adult --model=wide_deep --data_dir=../shared/data
  """
  crosses = (
    "education*occupation",
    "marital-status*occupation",
    "capital-gain*age",
    "capital-gain*education",
    "relationship*education",
    "workclass*occupation",
    "relationship*occupation",
    "capital-loss*education",
  )
  return _wide_deep(_adult(), crosses, FtrlConfig(learning_rate=0.01, l1=0.03))


def _census_income_wide_deep() -> ExperimentConfig:
  """UCI Census-Income (KDD) with eight crosses.

  python train.py --dataset=census_income --model=wide_deep --data_dir=../shared/data
  """
  crosses = (
    "education*occupation_code",
    "age*education",
    "age*weeks_worked",
    "occupation_code*sex",
    "industry_code*occupation_code",
    "weeks_worked*occupation_code",
    "dividends*age",
    "capital_gains*education",
  )
  return _wide_deep(_census_income(), crosses, FtrlConfig(learning_rate=0.03, l1=0.004))


def _wide_deep(
  base: ExperimentConfig, crosses: tuple[str, ...], ftrl: FtrlConfig
) -> ExperimentConfig:
  optimizer = OptimizerConfig(
    dense="adagrad",
    table="adagrad",
    learning_rate=0.02,
    table_learning_rate=0.05,
    eps=1e-7,
    ftrl=ftrl,
  )
  return dataclasses.replace(
    base,
    data=dataclasses.replace(base.data, crosses=crosses, cross_min_count=5),
    model=dataclasses.replace(base.model, name="wide_deep"),
    optimizer=optimizer,
  )


def _vehicle_coupon() -> ExperimentConfig:
  """UCI in-vehicle coupons, a random fifth tests.

  python train.py --dataset=vehicle_coupon --data_dir=../shared/data
  """
  return ExperimentConfig(
    data=DataConfig("vehicle_coupon", test_fraction=0.2),
    model=ModelConfig(
      name="dlrm_dcnv2",
      embedding_dim=16,
      top_mlp=(64, 1),
      cross_layers=2,
      cross_rank=64,
      dropout=0.4,
    ),
    optimizer=OptimizerConfig(table_learning_rate=0.1),
    batch_size=128,
    epochs=30,
    eval_every=0,
    early_stop_patience=8,
    refit=True,
  )


def _movietweetings() -> ExperimentConfig:
  """MovieTweetings: 8 stars or more, the latest fifth tests.

  python train.py --dataset=movietweetings --data_dir=../shared/data
  """
  return ExperimentConfig(
    data=DataConfig("movietweetings", test_fraction=0.2, num_buckets=32),
    model=ModelConfig(name="dlrm", embedding_dim=24, bottom_mlp=(64, 24), top_mlp=(256, 128, 1)),
    optimizer=OptimizerConfig(learning_rate=2e-4, table_learning_rate=0.005, l2_rows=3e-4),
    batch_size=512,
    epochs=6,
    eval_every=49,
    early_stop_patience=8,
    refit=True,
  )


def _online_retail() -> ExperimentConfig:
  """Online Retail: bought or not, with the last 50 items as history; the latest fifth tests.

  python train.py --dataset=online_retail --data_dir=../shared/data
  """
  return ExperimentConfig(
    data=DataConfig("online_retail", test_fraction=0.2),
    model=ModelConfig(name="dlrm", embedding_dim=16, bottom_mlp=(64, 16), top_mlp=(128, 64, 1)),
    optimizer=OptimizerConfig(table_learning_rate=0.02),
    batch_size=1024,
    epochs=5,
    eval_every=0,
    early_stop_patience=2,
  )


def _online_retail_eta() -> ExperimentConfig:
  """Customers with 200 earlier purchases or more: ETA over the last 1,024 of them.

  python train.py --dataset=online_retail --model=eta --data_dir=../shared/data
  """
  return ExperimentConfig(
    data=DataConfig(
      "online_retail",
      test_fraction=0.2,
      combiner="none",
      events=EventsConfig(history_length=1024, min_history=200),
    ),
    model=ModelConfig(name="eta", embedding_dim=32, top_mlp=(128, 64, 1)),
    optimizer=OptimizerConfig(learning_rate=5e-4, table_learning_rate=0.04),
    batch_size=512,
    epochs=4,
    eval_every=137,  # twice a pass
    early_stop_patience=2,
  )


def _online_retail_din() -> ExperimentConfig:
  """The same customers: DIN over the last 50 purchases, its rates chosen as ETA's were.

  python train.py --dataset=online_retail --model=din --data_dir=../shared/data
  """
  base = _online_retail_eta()
  return dataclasses.replace(
    base,
    model=dataclasses.replace(base.model, name="din", history=HistoryConfig(short_length=50)),
    optimizer=OptimizerConfig(learning_rate=2e-3, table_learning_rate=0.02),
  )


def _online_retail_full_attention() -> ExperimentConfig:
  """The same customers: attention over all of the last 1,024 purchases, rates chosen likewise.

  python train.py --dataset=online_retail --model=full_attention --data_dir=../shared/data
  """
  base = _online_retail_eta()
  return dataclasses.replace(
    base,
    model=dataclasses.replace(base.model, name="full_attention"),
    optimizer=OptimizerConfig(learning_rate=2e-3, table_learning_rate=0.04),
  )


def _events() -> ExperimentConfig:
  """Any log of events: chosen or not, with the mean of the last 50 items as history.

  python train.py --dataset=events --data_dir=LOG.parquet --time=ts --set=data.events.user=customer
    --set=data.events.item=product
  """
  return dataclasses.replace(_online_retail(), data=DataConfig("events"))


def _events_eta() -> ExperimentConfig:
  """Any log of events: ETA over the last 1,024 items, evaluated once a pass.

  python train.py --dataset=events --model=eta --data_dir=LOG.parquet --time=ts
    --set=data.events.user=customer --set=data.events.item=product
  """
  return dataclasses.replace(
    _online_retail_eta(),
    data=DataConfig("events", combiner="none", events=EventsConfig(history_length=1024)),
    eval_every=0,
  )


def _events_sim_hard() -> ExperimentConfig:
  """The same with SIM's search for steps of the candidate's ``category``, a column of the log.

  python train.py --dataset=events --model=sim_hard --data_dir=LOG.parquet --time=ts
    --set=data.events.user=customer --set=data.events.item=product
  """
  base = _events_eta()
  how = dataclasses.replace(base.data.events, item_columns=("category",), histories=("category",))
  history = dataclasses.replace(base.model.history, category=("category", "category_history"))
  return dataclasses.replace(
    base,
    data=dataclasses.replace(base.data, events=how),
    model=dataclasses.replace(base.model, name="sim_hard", history=history),
  )


MAKERS: Mapping[str, Callable[[], ExperimentConfig]] = types.MappingProxyType(
  {
    "table": _table,
    "table_wide_deep": _table_wide_deep,
    "adult": _adult,
    "adult_wide_deep": _adult_wide_deep,
    "census_income": _census_income,
    "census_income_wide_deep": _census_income_wide_deep,
    "events": _events,
    "events_eta": _events_eta,
    "events_sim_hard": _events_sim_hard,
    "movietweetings": _movietweetings,
    "online_retail": _online_retail,
    "online_retail_din": _online_retail_din,
    "online_retail_eta": _online_retail_eta,
    "online_retail_full_attention": _online_retail_full_attention,
    "vehicle_coupon": _vehicle_coupon,
  }
)
