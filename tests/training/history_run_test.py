"""Models of histories in whole runs: what never changes, and what resumes (T4)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import experiment, models, tables, training
from jaxrec.data import preparing, splits, stored
from jaxrec.features.schema import Column, Schema
from jaxrec.layers import lsh_attention
from jaxrec.training import loop, reopen
from tests.data.events_test import log_of, made

SCHEMA = Schema(
  {"chosen": None},
  {
    "who": Column("categorical"),
    "what": Column("categorical", table="items"),
    "history": Column("sequence", table="items", max_length=40, combiner="none"),
    "where": Column("categorical"),
  },
  groups=("who",),
  time="when",
)


@pytest.fixture(scope="module")
def choices(tmp_path_factory) -> stored.StoredTable:
  reader = made(log_of(size=1500), context=("where",), histories={"history": "what"})
  plan = preparing.Plan(reader, SCHEMA, splits.ByTime("when", "number", 60.0, 75.0))
  return stored.StoredTable(preparing.prepare(plan, tmp_path_factory.mktemp("t") / "t"), 8)


def config(name: str, **changes) -> experiment.ExperimentConfig:
  fields = {
    "data": experiment.DataConfig("table"),
    "model": experiment.ModelConfig(
      name, 8, top_mlp=(16, 1), history=experiment.HistoryConfig(target="what", k=8, short_length=4)
    ),
    "optimizer": experiment.OptimizerConfig(l2_dense=0.1, table_learning_rate=0.05),
    "steps": 30,
    "eval_every": 10,
    "batch_size": 64,
    "eval_examples": 0,
    "baseline_steps": 0,
  }
  return experiment.ExperimentConfig(**{**fields, **changes})


@pytest.mark.parametrize("name", ["eta", "full_attention", "din", "average_pooling"])
def test_a_model_of_histories_trains_and_resumes_with_the_same_bits(choices, tmp_path, name):
  whole = loop.run(config(name), str(tmp_path / "whole"), dataset=choices)
  loop.run(config(name, steps=10), str(tmp_path / "parts"), dataset=choices)
  parts = loop.run(config(name), str(tmp_path / "parts"), dataset=choices)
  same = {"workdir": "", "examples_per_s": 0}
  assert parts | same == whole | same and whole["steps"] == 30
  ours, theirs = (
    reopen.reopen(str(tmp_path / folder), dataset=choices).state for folder in ("whole", "parts")
  )
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
  jax.tree.map(np.testing.assert_array_equal, ours.tables, theirs.tables)


def test_hyperplanes_outlive_training_and_checkpoints_and_find_the_same_steps(choices, tmp_path):
  loop.run(config("eta"), str(tmp_path / "run"), dataset=choices)
  found = reopen.reopen(str(tmp_path / "run"), dataset=choices)
  first, last = found.run.initial_state().params, found.state.params
  planes = [one[lsh_attention.CONSTANTS]["search"]["hyperplanes"] for one in (first, last)]
  np.testing.assert_array_equal(*planes)
  assert not np.array_equal(first["params"]["top"]["layer_0"]["kernel"],
                            last["params"]["top"]["layer_0"]["kernel"])  # fmt: skip
  again = reopen.reopen(str(tmp_path / "run"), dataset=choices)
  scores = [one.run.evaluate(one.state, "val", 0) for one in (found, found, again)]
  assert scores[0] == scores[1] == scores[2]


def test_no_optimizer_moves_a_models_constants(choices):
  model = models.eta((8, 1), target="what", k=4)
  tx = training.Optimizers(
    dense=optax.adamw(0.1, weight_decay=0.5), rows=tables.rowwise_adagrad(0.05)
  )
  state = training.init_state(jax.random.key(0), model, choices.spec, tx=tx)
  before = jax.tree.map(jnp.copy, state.params)
  step = jax.jit(training.make_step(model, tx, label="chosen"))
  for batch in choices.batches(32, num_steps=3):
    state, _ = step(state, batch)
  constants = [one[lsh_attention.CONSTANTS] for one in (before, state.params)]
  jax.tree.map(np.testing.assert_array_equal, *constants)
  assert jax.tree.all(jax.tree.map(lambda a, b: not np.array_equal(a, b), before["params"],
                                   state.params["params"]))  # fmt: skip


def test_a_history_that_is_pooled_is_refused_by_name(choices, tmp_path):
  schema = dataclasses.replace(
    SCHEMA, columns={**SCHEMA.columns, "history": Column("sequence", table="items", max_length=9)}
  )
  reader = made(log_of(), context=("where",), histories={"history": "what"})
  plan = preparing.Plan(reader, schema, splits.ByTime("when", "number", 60.0, 75.0))
  pooled = stored.StoredTable(preparing.prepare(plan, tmp_path / "t"), 8)
  with pytest.raises(ValueError, match="history 'history': expected a sequence, got one vector"):
    loop.run(config("eta"), str(tmp_path / "run"), dataset=pooled)
  assert not (tmp_path / "run" / "config.json").exists()
