"""train.py on a log of events: trained, resumed, evaluated and served by the same bits (T4)."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from jaxrec import data, evaluate, serving
from jaxrec.config import overrides, presets
from jaxrec.inputs import row_plan
from jaxrec.runs import loop, open_run
from jaxrec.serving import predictor as predictor_lib
from jaxrec.training import evaluation
from tests.data import tables
from tests.data.events.event_log_test import log_of
from tests.runs import run_helpers

COLUMNS = ("user", "item", "category", "where", "history", "category_history")
SMALL = (
  "epochs=0", "steps=20", "eval_every=10", "log_every=10", "batch_size=64", "baseline_steps=0",
  "eval_examples=0", "test_examples=0", "model.embedding_dim=8", "model.top_mlp=8,1",
  "model.history.k=4", "model.history.short_length=4", "data.events.history_length=24",
  "data.events.context=where", "data.events.min_history=3", "data.test_fraction=0.3",
)  # fmt: skip


def args(home, name: str, *more: str) -> list[str]:
  return [
    "--dataset=events", f"--model={name}", f"--data_dir={home}/log.csv", "--time=when",
    "--set=data.events.user=who", "--set=data.events.item=what", *(f"--set={s}" for s in SMALL),
    *more,
  ]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  home = tmp_path_factory.mktemp("home")
  tables.write(log_of(size=1000), home / "log.csv")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAXREC_CACHE", str(home / "cache"))
    for name in ("eta", "sim_hard"):
      outcome = run_helpers.run(args(home, name, f"--workdir={home}/{name}"), home / "out")
      assert outcome.code == 0 and outcome.result["steps"] == 20, outcome.stderr
    yield home


def test_a_bad_log_ends_the_run_before_it_begins(home, tmp_path, capsys):
  for more, message in (
    ("--time=category", "log.csv, line 2: time 'category': expected a moment such as 2024-01-31"),
    (
      "--set=data.events.context=category",
      "context 'category' is what its item has in 100.0% of the events",
    ),
    ("--set=data.events.min_history=900", "lower min_history, or bring more events"),
  ):
    outcome = run_helpers.run_here(args(home, "eta", more, f"--workdir={tmp_path}/run"), capsys)
    assert outcome.code == 1 and outcome.stdout == ""
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["dlrm", "din"])
def test_other_models_train_with_their_shipped_settings(home, name, capsys):
  more = ("--set=model.bottom_mlp=8", "--set=steps=2", f"--workdir={home}/{name}")
  outcome = run_helpers.run_here(args(home, name, *more), capsys)
  assert outcome.code == 0 and outcome.result["dataset"] == "events", outcome.stderr


@pytest.mark.parametrize("name", ["eta", pytest.param("sim_hard", marks=pytest.mark.nightly)])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(home, name):
  given = args(home, name, f"--workdir={home}/{name}_again")
  kill = run_helpers.Kill("os.rename", "/state.orbax-checkpoint-tmp", 2)
  assert run_helpers.run(given, home / "out", kill=kill).code == -9
  outcome = run_helpers.run(given, home / "out")
  assert outcome.code == 0 and outcome.resumed_from > 0
  whole, parts = (run_helpers.final_bits(home / folder) for folder in (name, f"{name}_again"))
  assert parts == whole


def examples_of(found: data.StoredTable, split: str, rows: np.ndarray) -> list[dict]:
  """Examples in the values that their numbers stand for, as a client would send them."""
  batch, made_by = found.read(rows, split), found.transforms
  spelt = []
  for k in range(len(rows)):
    row = {}
    for name in (feature.name for feature in found.spec.features):
      names = made_by.rows[made_by.schema.columns[name].table or name].names()
      bag = batch.ids[name]
      is_one = bag.values.shape == (len(rows),) and made_by.schema.columns[name].kind != "sequence"
      ids = (
        bag.values[k : k + 1] if is_one else bag.values[bag.row_splits[k] : bag.row_splits[k + 1]]
      )
      values = [names[i] for i in ids]
      row[name] = values[0] if is_one else values
    spelt.append(row)
  return spelt


@pytest.mark.parametrize("name", ["eta", "sim_hard"])
def test_rows_with_their_histories_are_served_with_the_bits_of_the_model(home, name):
  found = open_run.reopen(home / name, is_best=True)
  stored, size = found.run.dataset, predictor_lib.CHUNK_ROWS
  assert stored.num_examples("train") >= size
  batch = row_plan.plan_rows(stored.read(np.arange(size), "train"), found.state.tables.plan)
  logits = evaluation.predict(found.run.model, found.state.params, found.state.tables, batch)
  examples = examples_of(stored, "train", np.arange(size))
  assert {len(example["history"]) for example in examples} == set(range(3, 25))
  scores = serving.load(home / name).predict(examples)
  np.testing.assert_array_equal(scores, predictor_lib._sigmoid(np.asarray(logits)))
  assert scores.std() > 0


@pytest.mark.parametrize("name", ["eta", "sim_hard"])
def test_what_is_served_and_new_files_of_examples_are_judged_as_the_log_is(home, name):
  stored = open_run.reopen(home / name, is_best=True).run.dataset
  rows = np.arange(stored.num_examples("test"))
  examples = examples_of(stored, "test", rows)
  scores = serving.load(home / name).predict(examples)
  labels = stored.read(rows, "test").labels["chosen"]
  logloss = -np.mean(labels * np.log(scores) + (1 - labels) * np.log1p(-scores))
  report = evaluate.evaluate(str(home / name), is_best=True)["metrics"]
  assert (report["examples"], report["logloss"]) == (len(rows), pytest.approx(logloss, rel=1e-5))
  new = [{**example, "chosen": int(y)} for example, y in zip(examples, labels, strict=True)]
  path = tables.write(pa.Table.from_pylist(new), home / f"{name}.parquet")
  assert evaluate.evaluate(str(home / name), is_best=True, data_dir=str(path))["metrics"] == (
    pytest.approx(report, rel=1e-12)  # groups have other numbers, so their sum another order
  )


def test_in_a_line_of_text_a_history_is_separated_by_bars(home):
  rows = [{"user": k % 12, "item": f"item {k % 9}", "where": "place 1", "chosen": k % 2,
           "history": "|".join(f"item {j % 11}" for j in range(k))} for k in range(60)]  # fmt: skip
  path = tables.write(pa.Table.from_pylist(rows), home / "new.csv")
  report = evaluate.evaluate(str(home / "eta"), is_best=True, data_dir=str(path))
  lists = [{**row, "history": [f"item {j % 11}" for j in range(k)]} for k, row in enumerate(rows)]
  scores = serving.load(home / "eta").predict(lists)
  labels = np.arange(60) % 2
  logloss = -np.mean(labels * np.log(scores) + (1 - labels) * np.log1p(-scores))
  assert report["metrics"]["logloss"] == pytest.approx(logloss, rel=1e-5)


def test_a_history_is_asked_for_and_cut_to_its_latest(home):
  predictor = serving.load(home / "eta")
  items = [f"item {k % 7}" for k in range(40)]
  row = {"user": 3, "item": "item 2", "where": "place 1", "history": items}
  one, same, none = predictor.predict(
    [row, {**row, "user": "3", "history": items[-24:]}, {**row, "history": []}]
  )
  assert one == same != none
  with pytest.raises(ValueError, match="column 'history' is missing, and the model learns from it"):
    predictor.predict([{"user": 3, "item": "item 2", "where": "place 1"}])


def test_the_command_evaluates_and_says_what_it_inferred(home):
  command = [sys.executable, "-m", "jaxrec.evaluate", str(home / "eta"), "--best", "--json"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  found = evaluate.evaluate(str(home / "eta"), is_best=True)
  assert json.loads(done.stdout)["metrics"] == pytest.approx(found["metrics"], rel=1e-5)
  schema = json.loads((home / "eta" / "schema.json").read_text())
  assert schema["features"]["history"]["table"] == schema["features"]["item"]["table"] == "items"


def test_a_log_given_in_python_trains_and_is_served(tmp_path):
  clicks = data.from_events(
    log_of(), user="who", item="what", time="when", context="where", min_history=3,
    history_length=24, embedding_dim=8,
  )  # fmt: skip
  config = overrides.with_overrides(presets.for_dataset("events", "eta"), SMALL)
  result = loop.run(config, str(tmp_path / "run"), dataset=clicks)
  assert result["steps"] == 20
  (score,) = serving.load(tmp_path / "run").predict(examples_of(clicks, "val", np.arange(1)))
  assert 0 < score < 1
  with pytest.raises(ValueError, match="is evaluated on examples in files: --new_data_dir"):
    evaluate.evaluate(str(tmp_path / "run"))
