"""Optimizers by name, as train.py's flags give them.

Source: the runs of the DLRM note, section 3.
Read next: jaxrec/training/schedules.py.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import optax

from jaxrec import config as config_lib
from jaxrec import tables as tables_lib
from jaxrec.config import experiment as experiment_lib
from jaxrec.data.views import wide_features
from jaxrec.training import schedules, state, step

_DENSE = ("sgd", "adagrad", "rmsprop", "adam", "ftrl")
_TABLE = ("rowwise_adagrad", *_DENSE)


@functools.lru_cache(maxsize=16)  # what is learned of an optimizer by trying it is kept with it
def build(config: experiment_lib.OptimizerConfig, *, has_wide: bool = False) -> state.Optimizers:
  """The optimizers that ``config`` names, under its learning-rate policy, and FTRL for a wide part
  where there is one.

  Raises:
    ConfigError: no such optimizer.
  """
  table_rate = config.table_learning_rate
  table_rate = config.learning_rate if table_rate is None else table_rate
  _known("optimizer.dense", config.dense, _DENSE)
  _known("optimizer.table", config.table, _TABLE)
  if config.table == "rowwise_adagrad":
    rows = tables_lib.rowwise_adagrad(_schedule(config, table_rate), eps=config.eps)
  else:
    rows = tables_lib.lazily(_optax(config.table, table_rate, config))
  dense = _optax(config.dense, config.learning_rate, config)
  if config.l2_dense:  # before the optimizer, so it is a penalty in the loss and not weight decay
    dense = optax.chain(optax.add_decayed_weights(config.l2_dense, mask=_is_kernel), dense)
  if not has_wide:
    return state.Optimizers(dense=dense, rows=rows)
  weights = tables_lib.lazily(_optax("ftrl", 0.0, config))
  return state.Optimizers(dense=dense, rows={None: rows, wide_features.OPTIMIZER: weights})


def row_transform(config: experiment_lib.OptimizerConfig) -> step.RowTransform:
  """What ``config`` does to row gradients before the row optimizer: the penalty, then the clip."""

  def transform(row_grads: step.RowGrads, tables: tables_lib.DeviceTables) -> step.RowGrads:
    if config.l2_rows:
      shared = {s.name: row_grads[s.name] for s in tables.plan.stacks if s.optimizer is None}
      row_grads = {**row_grads, **tables_lib.add_l2(shared, tables, config.l2_rows)}
    if config.clip_norm is not None:
      row_grads = tables_lib.clip_by_global_norm(row_grads, config.clip_norm)
    return row_grads

  return transform


def _is_kernel(params: Any) -> Any:
  """Which parameters are matrices of a layer, and not biases."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)


def _known(field: str, name: str, known: tuple[str, ...]) -> None:
  if name not in known:
    raise config_lib.ConfigError(
      f"{field}: no optimizer {name!r}; {config_lib.did_you_mean(name, known)}"
    )


def _schedule(config: experiment_lib.OptimizerConfig, peak: float) -> float | optax.Schedule:
  if config.warmup_steps == 0 and config.decay_steps == 0:
    return peak
  return schedules.warmup_hold_decay(
    peak,
    warmup_steps=config.warmup_steps,
    decay_start=config.decay_start,
    decay_steps=config.decay_steps,
  )


def _optax(
  name: str, peak: float, config: experiment_lib.OptimizerConfig
) -> optax.GradientTransformation:
  if name == "ftrl":
    options = dataclasses.asdict(config.ftrl)
    return tables_lib.ftrl(_schedule(config, options.pop("learning_rate")), **options)
  rate = _schedule(config, peak)
  if name == "adagrad":
    return optax.adagrad(rate, initial_accumulator_value=0.0, eps=config.eps)
  return {"sgd": optax.sgd, "rmsprop": optax.rmsprop, "adam": optax.adam}[name](rate)
