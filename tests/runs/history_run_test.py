"""Models of histories in whole runs: what never changes, and what resumes (T4)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import models, tables, training
from jaxrec.config import ConfigError, experiment
from jaxrec.data.prepared import prepare, prepared_table, splits
from jaxrec.features.schema import Column, Schema
from jaxrec.layers import lsh_attention, simhash
from jaxrec.runs import loop, open_run
from tests.data.events.examples_test import log_of, made

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
def choices(tmp_path_factory) -> prepared_table.StoredTable:
  reader = made(log_of(size=1500), context=("where",), histories={"history": "what"})
  plan = prepare.Plan(reader, SCHEMA, splits.ByTime("when", "number", 60.0, 75.0))
  return prepared_table.StoredTable(prepare.prepare(plan, tmp_path_factory.mktemp("t") / "t"), 8)


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


@pytest.fixture(scope="module")
def whole_eta(choices, tmp_path_factory):
  """A run of ETA from its beginning to its end: its result and its folder."""
  folder = str(tmp_path_factory.mktemp("eta") / "whole")
  return loop.run(config("eta"), folder, dataset=choices), folder


def test_a_run_of_eta_resumes_with_the_same_bits(choices, whole_eta, tmp_path):
  whole, folder = whole_eta
  loop.run(config("eta", steps=10), str(tmp_path / "parts"), dataset=choices)
  parts = loop.run(config("eta"), str(tmp_path / "parts"), dataset=choices)
  same = {"workdir": "", "examples_per_s": 0}
  assert parts | same == whole | same and whole["steps"] == 30
  ours, theirs = (
    open_run.reopen(path, dataset=choices).state for path in (folder, str(tmp_path / "parts"))
  )
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
  jax.tree.map(np.testing.assert_array_equal, ours.tables, theirs.tables)


def with_fingerprints(asked):
  how = dataclasses.replace(asked.model.history, has_fingerprints=True)
  return dataclasses.replace(asked, model=dataclasses.replace(asked.model, history=how))


def check_words(state):
  """The words beside the table are those of its rows, by the model's own hyperplanes."""
  planes = state.params[lsh_attention.CONSTANTS]["search"]["hyperplanes"]
  (words,) = state.tables.fingerprints.words.values()
  (rows,) = state.tables.values.values()
  np.testing.assert_array_equal(words, simhash.fingerprints(rows, planes))
  assert len(np.unique(words, axis=0)) > len(words) / 2


def test_fingerprints_beside_the_table_are_saved_and_resumed_and_change_no_result(
  choices, whole_eta, tmp_path
):
  plain, _ = whole_eta  # which hashes in each step
  kept = with_fingerprints(config("eta"))
  whole = loop.run(kept, str(tmp_path / "whole"), dataset=choices)
  loop.run(with_fingerprints(config("eta", steps=10)), str(tmp_path / "parts"), dataset=choices)
  parts = loop.run(kept, str(tmp_path / "parts"), dataset=choices)
  same = {"workdir": "", "examples_per_s": 0}
  assert plain | same == whole | same == parts | same
  ours, theirs = (
    open_run.reopen(str(tmp_path / folder), dataset=choices).state for folder in ("whole", "parts")
  )
  check_words(ours)
  jax.tree.map(np.testing.assert_array_equal, ours.tables, theirs.tables)
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_a_warm_start_hashes_its_rows_by_the_hyperplanes_that_it_goes_on_with(
  choices, whole_eta, tmp_path
):
  _, first = whole_eta
  second = str(tmp_path / "second")
  fields = {"warm_start": first, "steps": 10, "seed": 1}
  loop.run(with_fingerprints(config("eta", **fields)), second, dataset=choices)
  found = [open_run.reopen(path, dataset=choices).state for path in (first, second)]
  planes = [one.params[lsh_attention.CONSTANTS]["search"]["hyperplanes"] for one in found]
  np.testing.assert_array_equal(*planes)
  check_words(found[1])


def test_fingerprints_of_a_model_that_has_none_are_refused_before_anything_is_written(
  choices, tmp_path
):
  with pytest.raises(ConfigError, match="only a model that searches by them"):
    loop.run(with_fingerprints(config("din")), str(tmp_path / "run"), dataset=choices)
  assert not (tmp_path / "run" / "config.json").exists()


def test_hyperplanes_outlive_training_and_checkpoints_and_find_the_same_steps(choices, whole_eta):
  _, folder = whole_eta
  found = open_run.reopen(folder, dataset=choices)
  first, last = found.run.initial_state().params, found.state.params
  planes = [one[lsh_attention.CONSTANTS]["search"]["hyperplanes"] for one in (first, last)]
  np.testing.assert_array_equal(*planes)
  assert not np.array_equal(first["params"]["top"]["layer_0"]["kernel"],
                            last["params"]["top"]["layer_0"]["kernel"])  # fmt: skip
  again = open_run.reopen(folder, dataset=choices)
  scores = [one.run.evaluate(one.state, "val", 0) for one in (found, found, again)]
  assert scores[0] == scores[1] == scores[2]


def test_no_optimizer_moves_a_models_constants(choices):
  model = models.ETA((8, 1), target="what", k=4)
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


@pytest.mark.parametrize(
  ("name", "how", "message"),
  [
    (
      "eta",
      {"target": "who"},
      "target and sequence: 'who' is of table 'who' and 'history' of 'items'",
    ),
    ("sim_hard", {"category": ("where", "history")}, "category: 'where' is of table 'where' and"),
  ],
)
def test_features_of_two_tables_are_not_compared(choices, tmp_path, name, how, message):
  asked = config(name)
  history = dataclasses.replace(asked.model.history, **how)
  asked = dataclasses.replace(asked, model=dataclasses.replace(asked.model, history=history))
  with pytest.raises(ConfigError, match=message):
    loop.run(asked, str(tmp_path / "run"), dataset=choices)


def test_a_history_that_is_pooled_is_refused_by_name(choices, tmp_path):
  schema = dataclasses.replace(
    SCHEMA, columns={**SCHEMA.columns, "history": Column("sequence", table="items", max_length=9)}
  )
  reader = made(log_of(), context=("where",), histories={"history": "what"})
  plan = prepare.Plan(reader, schema, splits.ByTime("when", "number", 60.0, 75.0))
  pooled = prepared_table.StoredTable(prepare.prepare(plan, tmp_path / "t"), 8)
  with pytest.raises(ValueError, match="history 'history': expected a sequence, got one vector"):
    loop.run(config("eta"), str(tmp_path / "run"), dataset=pooled)
  assert not (tmp_path / "run" / "config.json").exists()
