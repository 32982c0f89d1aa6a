"""How long a run is: epochs of a finite data set, and no longer than it still improves."""

from __future__ import annotations

import json
import re

import pytest

from jaxrec import config
from jaxrec.data import registry
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.process import interrupt
from jaxrec.runs.setup import num_steps
from jaxrec.runs.setup import run as run_lib
from jaxrec.training import evaluation
from tests.data import tiny_clicks
from tests.runs import run_helpers
from tests.runs.loop_test import (  # noqa: F401
  LOGISTIC,
  Watcher,
  cache,
  handlers,
  raise_at,
  run,
  tiny,
)

# Evaluates at every fourth of 24 steps.
EARLY = ("model.name=logistic_regression", "eval_every=4", "early_stop_patience=2")


@pytest.fixture
def aucs(monkeypatch):
  """What the evaluations of ``val`` are made to say, by step: 4, 8, ..."""
  scripted = {}
  evaluate = evaluation.evaluate

  def evaluate_as_scripted(model, current, *args, **kwargs):
    figures = evaluate(model, current, *args, **kwargs)
    return figures | {"auc": scripted.get(int(current.step), figures["auc"])}

  monkeypatch.setattr(evaluation, "evaluate", evaluate_as_scripted)
  return scripted


def with_length(size, **settings):
  overrides = [f"{name}={value}" for name, value in settings.items()]
  source = tiny_clicks.TinyClicks(seed=0, size=size)
  return num_steps.with_length(run_helpers.tiny_config(*overrides), source)


@pytest.mark.parametrize(
  ("size", "epochs", "batch_size", "steps"),
  [(1000, 2, 64, 31), (1000, 0.5, 64, 8), (64, 3, 64, 3), (10, 1, 64, 1), (1000, 1, 100, 10)],
)
def test_epochs_are_as_many_steps_as_make_up_their_examples(size, epochs, batch_size, steps):
  found = with_length(size, epochs=epochs, batch_size=batch_size, eval_every=7)
  assert (found.steps, found.eval_every) == (steps, 7)


def test_an_evaluation_every_epoch_comes_after_the_steps_of_one():
  assert with_length(1000, eval_every=0).eval_every == 16
  assert with_length(1000, eval_every=0).steps == run_helpers.STEPS
  assert with_length(10, eval_every=0, epochs=2).eval_every == 1
  both = with_length(1000, eval_every=0, epochs=3)
  assert (both.steps, both.eval_every) == (47, 16)


@pytest.mark.parametrize("setting", ["epochs=2", "eval_every=0"])
def test_an_endless_data_set_has_no_epochs(tmp_path, setting):
  message = (
    rf"{setting[:-2]}: data set 'synthetic' has no end, so no epochs; got {setting}.*--steps"
  )
  with pytest.raises(config.ConfigError, match=message):
    run(tmp_path / "run", "data.dataset=synthetic", "model.bottom_mlp=4", setting)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["-1", "inf", "nan"])
def test_a_number_of_epochs_that_is_none_is_refused(value):
  with pytest.raises(
    config.ConfigError, match=f"epochs: must be a finite number >= 0, got {value}"
  ):
    run_helpers.tiny_config(f"epochs={value}")


def test_a_run_of_epochs_says_its_steps_and_is_found_done_without_its_data(tmp_path, monkeypatch):
  settings = (*LOGISTIC, "epochs=0.5", "eval_every=0")
  result = run(tmp_path / "run", *settings)
  assert result["steps"] == 8  # 500 examples by 64
  stored = json.loads((tmp_path / "run" / "config.json").read_text())
  assert (stored["epochs"], stored["eval_every"]) == (0.5, 0)
  longer = run(tmp_path / "run", *LOGISTIC, "epochs=1", "eval_every=0")
  assert longer["steps"] == 16
  monkeypatch.setattr(registry, "LOADERS", {})
  assert run(tmp_path / "run", *LOGISTIC, "epochs=1", "eval_every=0") == longer


def test_training_ends_after_so_many_evaluations_without_a_better_one(tmp_path, aucs):
  aucs.update({4: 0.6, 8: 0.7, 12: 0.7, 16: 0.69, 20: 0.9})
  watcher = Watcher()
  result = run(tmp_path / "run", *EARLY, terminal=watcher)
  assert (result["steps"], result["best_step"], result["val_auc"]) == (16, 12, 0.7)
  assert "stopped early at step 16: no better AUC in 2 evaluations" in watcher.text.getvalue()
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  assert max(json.loads(line)["step"] for line in lines) == 16
  assert json.loads(lines[-1])["split"] == "test" and json.loads(lines[-1])["step"] == 12


def test_one_better_evaluation_gives_a_run_its_patience_again(tmp_path, aucs):
  aucs.update({4: 0.6, 8: 0.5, 12: 0.61, 16: 0.5, 20: 0.62, 24: 0.5})
  assert run(tmp_path / "run", *EARLY)["steps"] == run_helpers.STEPS


def test_patience_of_zero_never_ends_a_run(tmp_path, aucs):
  aucs.update({step: 1 - step / 100 for step in range(4, 25, 4)})
  assert run(tmp_path / "run", *EARLY, "early_stop_patience=0")["steps"] == run_helpers.STEPS


def test_a_run_that_stopped_early_is_done_and_goes_on_when_asked_to(tmp_path, aucs, monkeypatch):
  aucs.update({4: 0.6, 8: 0.5, 12: 0.5, 16: 0.7, 20: 0.7, 24: 0.7})
  result = run(tmp_path / "run", *EARLY)
  assert result["steps"] == 12
  loaders = registry.LOADERS
  monkeypatch.setattr(registry, "LOADERS", {})
  assert run(tmp_path / "run", *EARLY) == result
  monkeypatch.setattr(registry, "LOADERS", loaders)
  patient = run(tmp_path / "run", *EARLY, "early_stop_patience=3")
  assert patient["steps"] == run_helpers.STEPS and patient["best_step"] == 24
  with pytest.raises(workdir_lib.WorkdirError, match="at step 24 already, past --steps=20"):
    run(tmp_path / "run", *EARLY, "steps=20")


@pytest.mark.parametrize(
  "step",
  [pytest.param(6, marks=pytest.mark.nightly), 12, pytest.param(15, marks=pytest.mark.nightly)],
)
def test_an_interrupted_run_stops_as_early_with_the_same_bits(tmp_path, aucs, step):
  aucs.update({4: 0.6, 8: 0.5, 12: 0.61, 16: 0.5, 20: 0.5})
  run(tmp_path / "alone", *EARLY)
  with pytest.raises(interrupt.Interrupted):
    run(tmp_path / "run", *EARLY, terminal=raise_at(step))
  assert run(tmp_path / "run", *EARLY)["steps"] == 20
  assert run_helpers.final_bits(tmp_path / "run") == run_helpers.final_bits(tmp_path / "alone")


def test_a_run_killed_after_its_last_evaluation_trains_no_further(tmp_path, aucs, monkeypatch):
  aucs.update({4: 0.6, 8: 0.5, 12: 0.5})
  run(tmp_path / "run", *EARLY)
  bits = run_helpers.final_bits(tmp_path / "run")
  (tmp_path / "run" / "result.json").unlink()  # as if killed in the final test
  monkeypatch.setattr(run_lib, "compile_step", None)  # nothing could be trained
  assert run(tmp_path / "run", *EARLY)["steps"] == 12
  assert run_helpers.final_bits(tmp_path / "run") == bits


def test_several_labels_are_trained_tested_and_judged_by_the_first(tmp_path):
  settings = ("data.labels=like,click", "label_weights=1,0.5", "baseline_steps=5")
  watcher = Watcher()
  result = run(tmp_path / "run", *settings, "slices=day,user", terminal=watcher)
  details = json.loads((tmp_path / "run" / "result.json").read_text())
  assert result["auc"] == pytest.approx(details["test"]["auc"], abs=1e-6)
  lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  vals = {line["step"]: line for line in lines if line["split"] == "val"}
  assert result["val_auc"] == pytest.approx(max(line["auc"] for line in vals.values()), abs=1e-6)
  assert result["best_step"] == max(vals, key=lambda step: (vals[step]["auc"], step))
  names = {"auc", "logloss", "ne", "calibration", "examples", "gauc"}
  for line in [*vals.values(), details["test"], details["logistic_regression"]]:
    figures = {name for name in line if name not in ("step", "split")}
    gauc = names if "gauc" in figures else names - {"gauc"}
    assert figures == gauc | {f"click/{name}" for name in gauc}
  train = next(line for line in lines if line["split"] == "train")
  assert {"loss", "auc", "click/loss", "click/auc"} < set(train)
  days = details["slices"]["day"]
  assert [day["value"] for day in days] == ["Monday", "Tuesday", "Wednesday", "3", "4", "5", "6"]
  assert sum(day["examples"] for day in days) == 150 and {"auc", "click/auc"} < set(days[0])
  users = details["slices"]["user"]
  assert len(users) > 10 and None in {user["auc"] for user in users}  # no AUC of a single class
  shown = watcher.text.getvalue()
  assert re.search(r"^ Monday +22 +0\.\d{3} ", shown, re.MULTILINE)
  assert f"... and {len(users) - 10} smaller ones in result.json" in shown


def test_several_labels_resume_to_the_same_bits(tmp_path):
  settings = (*LOGISTIC, "data.labels=click,like", "accumulate_steps=2")
  run(tmp_path / "alone", *settings)
  with pytest.raises(interrupt.Interrupted):
    run(tmp_path / "run", *settings, terminal=raise_at(9))
  run(tmp_path / "run", *settings)
  assert run_helpers.final_bits(tmp_path / "run") == run_helpers.final_bits(tmp_path / "alone")


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (("label_weights=1,2",), r"label_weights: expected one for each label \(click\), got"),
    (("slices=dya",), "slices: no group column 'dya'; did you mean 'day'"),
    (("label_weights=-1",), "label_weights: must be at least 0"),
  ],
)
def test_labels_and_slices_that_the_data_has_not_are_named(tmp_path, settings, message):
  with pytest.raises(config.ConfigError, match=message):
    run(tmp_path / "run", *settings)
  assert not (tmp_path / "run").exists()


def test_the_group_asked_for_is_the_one_of_gauc(tmp_path):
  by_user = run(tmp_path / "user", *LOGISTIC, "steps=6")
  by_day = run(tmp_path / "day", *LOGISTIC, "steps=6", "data.group=day")
  gauc = [
    json.loads((tmp_path / name / "result.json").read_text())["test"]["gauc"]
    for name in ("user", "day")
  ]
  assert by_user["auc"] == by_day["auc"] and gauc[0] != gauc[1]


def test_dropout_changes_training_and_resumes_to_the_same_bits(tmp_path):
  settings = ("model.dropout=0.3", "accumulate_steps=2", "log_every=8", "checkpoint_every=0")
  run(tmp_path / "alone", *settings)
  with pytest.raises(interrupt.Interrupted):
    run(tmp_path / "run", *settings, terminal=raise_at(16))
  run(tmp_path / "run", *settings)
  alone = run_helpers.final_bits(tmp_path / "alone")
  assert run_helpers.final_bits(tmp_path / "run") == alone
  run(tmp_path / "off", *settings, "model.dropout=0")
  assert run_helpers.final_bits(tmp_path / "off") != alone


@pytest.mark.parametrize(
  "setting",
  ["positive_weight=3", "label_weights=2", "optimizer.l2_rows=0.5", "optimizer.l2_dense=0.5",
   "optimizer.clip_norm=0.01", "data.negative_keep_rate=0.2"],
)  # fmt: skip
def test_each_option_of_the_loss_and_the_gradients_reaches_the_step(tmp_path, setting):
  settings = (*LOGISTIC, "steps=6", "optimizer.dense=sgd", "optimizer.table=sgd")
  plain = run(tmp_path / "plain", *settings)
  assert run(tmp_path / "run", *settings, setting)["logloss"] != plain["logloss"]


def test_positives_that_weigh_more_raise_predictions_and_evaluations_show_it(tmp_path):
  settings = ("model.name=logistic_regression", "eval_every=24", "optimizer.dense=adam")
  plain = run(tmp_path / "plain", *settings)
  assert run(tmp_path / "run", *settings, "positive_weight=4")["calibration"] > (
    1.2 * plain["calibration"]
  )
