"""How long a run is: epochs as steps, and the length of a second run on all that may train.

Validation examples choose the length and the checkpoint; after that they are worth more as training
examples, the more so where time goes by and they are the latest. A refit is a run of its own, on
``train`` and ``val`` together, as many passes long as the best checkpoint was old.

Read next: jaxrec/runs/loop.py.
"""

from __future__ import annotations

import dataclasses

from jaxrec import config as config_lib
from jaxrec.config import experiment as experiment_lib
from jaxrec.data import pipeline
from jaxrec.data.prepared import prepared_table
from jaxrec.data.views import view


def with_length(
  config: experiment_lib.ExperimentConfig, dataset: pipeline.Source
) -> experiment_lib.ExperimentConfig:
  """``config`` with ``epochs``, and evaluations once an epoch, as numbers of steps.

  Raises:
    ConfigError: the data set has no end, so no epochs.
  """
  if not config.epochs and config.eval_every:
    return config
  num_examples = dataset.num_examples("train")
  if num_examples is None:
    what = "epochs" if config.epochs else "eval_every"
    raise config_lib.ConfigError(
      f"{what}: data set {config.data.dataset!r} has no end, so no epochs; got {what}="
      f"{getattr(config, what)}. Say how long with --steps and how often with --set eval_every"
    )
  an_epoch = num_examples / config.batch_size
  steps = max(1, round(config.epochs * an_epoch)) if config.epochs else config.steps
  every = config.eval_every or max(1, round(an_epoch))
  return dataclasses.replace(config, steps=steps, eval_every=every)


def refit(
  config: experiment_lib.ExperimentConfig, dataset: pipeline.Source, best_step: int
) -> experiment_lib.ExperimentConfig:
  """The config of a run without validation, as many passes long as the best step was old.

  Raises:
    ConfigError: the data set cannot be read anew without a validation split.
  """
  source, is_sampled = view.original(dataset), config.data.negative_keep_rate < 1
  if not isinstance(source, prepared_table.StoredTable) or is_sampled:
    raise config_lib.ConfigError(
      "refit: needs a table that the config names, with all its negatives, got dataset "
      f"{config.data.dataset!r} and negative_keep_rate {config.data.negative_keep_rate}; leave out "
      "--set refit=true"
    )
  return dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, val_fraction=0.0),
    epochs=best_step * config.batch_size / source.num_examples("train"),
    eval_every=2**31 - 1,
    early_stop_patience=0,
    baseline_steps=0,
    refit=False,
  )
