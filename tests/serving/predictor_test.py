"""A trained run predicts from raw rows what its evaluation saw, bit for bit, without its data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jaxrec import data, evaluate, serving
from jaxrec.config import ConfigError, experiment, overrides, presets
from jaxrec.features import BadExampleError
from jaxrec.features import schema as schema_lib
from jaxrec.runs import loop, open_run, workdir
from jaxrec.training import evaluation
from tests.data import tables

SETTINGS = (
  "steps=20", "batch_size=64", "eval_every=10", "log_every=10", "baseline_steps=0",
  "model.embedding_dim=4", "model.bottom_mlp=8,4", "model.top_mlp=8,1", "data.group=user",
  "data.labels=click", "data.time=ts", "data.weight=weight", "data.dataset=table",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A table's file and, beside it, a run that has trained on it."""
  home = tmp_path_factory.mktemp("home")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAXREC_CACHE", str(home / "cache"))
    path = tables.write(tables.clicks(), home / "clicks.parquet")
    config = overrides.with_overrides(
      experiment.ExperimentConfig(), [*SETTINGS, f"data.data_dir={path}"]
    )
    loop.run(config, str(home / "run"))
    yield home


def test_new_rows_are_predicted_as_evaluation_would_whatever_their_form_and_number(home):
  predictor = serving.load(home / "run")
  new = tables.clicks(1500, seed=7)
  whole = predictor.predict(new)
  assert whole.dtype == np.float32 and whole.shape == (1500,)
  assert ((whole > 0) & (whole < 1)).all() and whole.std() > 0
  np.testing.assert_array_equal(predictor.predict(new.to_pandas()), whole)
  np.testing.assert_array_equal(predictor.predict(new.slice(3, 5).to_pylist()), whole[3:8])
  one = np.concatenate([predictor.predict(new.slice(k, 1)) for k in range(20)])
  np.testing.assert_array_equal(one, whole[:20])
  assert predictor.predict(new.slice(0, 0)).shape == (0,)


def test_a_row_may_miss_any_value(home):
  predictor = serving.load(home / "run")
  (row,) = tables.clicks(1, seed=7).to_pylist()
  empty = dict.fromkeys(row)
  found = predictor.predict([empty, row, {**row, "city": None}])
  assert np.isfinite(found).all()
  np.testing.assert_array_equal(found[1:2], predictor.predict([row]))
  np.testing.assert_array_equal(found[:1], predictor.predict([empty]))
  np.testing.assert_array_equal(predictor.predict([{}, row][1:] + [empty])[1:], found[:1])


def test_a_record_is_predicted_whatever_the_types_of_its_neighbours(home):
  predictor = serving.load(home / "run")
  rows = tables.clicks(40, seed=7).to_pylist()
  whole = predictor.predict(rows)
  texts = [
    {n: None if v is None else v if isinstance(v, list) else str(v) for n, v in row.items()}
    for row in rows
  ]
  mixed = [texts[k] if k % 2 else row for k, row in enumerate(rows)]
  np.testing.assert_array_equal(predictor.predict(mixed), whole)
  np.testing.assert_array_equal(predictor.predict(texts), whole)


def test_a_column_twice_is_named_where_the_model_learned_from_it(home):
  predictor, new = serving.load(home / "run"), tables.clicks(5, seed=7)
  with pytest.raises(BadExampleError, match="predict: column 'city' stands there 2 times"):
    predictor.predict(new.append_column("city", new["city"]))
  with pytest.raises(BadExampleError, match="predict: column 'city' stands there 2 times"):
    predictor.predict(new.append_column("city", new["city"]).select([4, 12]).to_pandas())
  other = new.append_column("other", new["city"]).append_column("other", new["city"])
  np.testing.assert_array_equal(predictor.predict(other), predictor.predict(new))


def test_predictions_are_those_of_the_runs_own_evaluation(home):
  found = open_run.reopen(home / "run", is_best=True)
  predictor = serving.load(home / "run")
  assert predictor.step == found.progress.step
  stored = found.run.dataset
  batch = next(stored.batches(64, split="test"))
  logits = evaluation.predict(found.run.model, found.state.params, found.state.tables, batch)
  rows = np.fromfile(stored.folder / "rows_test.i64", np.int64)[:64]
  expected = np.asarray(jax.nn.sigmoid(logits))[: len(rows)]
  ours = predictor.predict(tables.clicks().take(pa.array(rows)))
  np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_the_data_need_not_be_there_any_more(home, tmp_path, monkeypatch):
  shutil.copytree(home / "run", tmp_path / "run")
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  config["data"]["data_dir"] = str(tmp_path / "gone.parquet")
  (tmp_path / "run" / "config.json").write_text(json.dumps(config))
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "empty"))
  new = tables.clicks(30, seed=8)
  ours = serving.load(tmp_path / "run").predict(new)
  np.testing.assert_array_equal(ours, serving.load(home / "run").predict(new))


def test_nothing_is_printed_to_load_a_run(home):
  program = f"from jaxrec import serving; serving.load({str(home / 'run')!r})"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_new_files_are_evaluated_with_the_runs_transforms(home, tmp_path):
  new = tables.clicks(300, seed=9)
  path = tables.write(new, tmp_path / "new.csv")
  report = evaluate.evaluate(str(home / "run"), data_dir=str(path), is_best=True)
  scores = serving.load(home / "run").predict(new)
  labels, weights = new["click"].to_numpy(), new["weight"].to_numpy()
  logloss = -np.average(labels * np.log(scores) + (1 - labels) * np.log1p(-scores), weights=weights)
  assert report["metrics"]["examples"] == np.count_nonzero(weights)
  assert report["metrics"]["logloss"] == pytest.approx(logloss, rel=1e-4)
  untimed = tables.write(new.drop_columns(["ts"]), tmp_path / "untimed.csv")
  again = evaluate.evaluate(str(home / "run"), data_dir=str(untimed), is_best=True)
  assert again == report and report["bad_rows"] == []
  assert "bad_rows" not in evaluate.evaluate(str(home / "run"))
  gone = tables.write(new.drop_columns(["city"]), tmp_path / "gone.csv")
  with pytest.raises(BadExampleError, match=r"gone\.csv: no column 'city'"):
    evaluate.evaluate(str(home / "run"), data_dir=str(gone))


def test_new_rows_that_are_left_out_of_an_evaluation_are_listed(home, tmp_path):
  shutil.copytree(home / "run", tmp_path / "run")
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  config["data"]["on_bad_row"] = "skip"
  (tmp_path / "run" / "config.json").write_text(json.dumps(config))
  path = tables.write(tables.clicks(30, seed=9), tmp_path / "new.csv")
  path.write_text(path.read_text() + "1,2\n3,4,5\n")
  report = evaluate.evaluate(str(tmp_path / "run"), data_dir=str(path))
  assert [line.split(": ")[0] for line in report["bad_rows"]] == [
    f"{path}, line 32", f"{path}, line 33"
  ]  # fmt: skip
  assert f"\n2 bad rows left out, the first: {path}, line 32: " in evaluate.text(report)
  assert "left out" not in evaluate.text({**report, "bad_rows": []})


@pytest.mark.parametrize("model", ["deep", "wide_deep"])
def test_a_table_of_one_feature_trains_as_the_refusal_of_dlrm_says(tmp_path, model):
  rng = np.random.default_rng(0)
  table = pa.table({"city": rng.choice(list("abc"), 400), "click": rng.integers(0, 2, 400)})
  config = overrides.with_overrides(
    presets.get("table"), ["epochs=1", "batch_size=64", "baseline_steps=0"]
  )
  clicks = data.from_arrow(table, label="click")
  with pytest.raises(ConfigError, match="got one; add .*--model=deep or --model=wide_deep"):
    loop.run(config, str(tmp_path / "dlrm"), dataset=clicks)
  config = overrides.with_overrides(config, [f"model.name={model}"])
  assert 0 < loop.run(config, str(tmp_path / "run"), dataset=clicks)["auc"] < 1


def test_a_frame_trains_in_a_folder_and_is_loaded_again(home, tmp_path):
  clicks = data.from_pandas(tables.clicks().to_pandas(), label="click", time="ts", embedding_dim=4)
  config = overrides.with_overrides(experiment.ExperimentConfig(), SETTINGS)
  result = loop.run(config, str(tmp_path / "run"), dataset=clicks)
  assert 0 < result["auc"] < 1
  frame = pd.DataFrame(tables.clicks(10, seed=3).to_pandas())
  assert serving.load(tmp_path / "run").predict(frame).shape == (10,)


@pytest.mark.nightly
def test_a_model_with_split_tables_predicts_too(home, tmp_path):
  config = overrides.with_overrides(
    open_run.config_of(home / "run"),
    ["compression.kind=quotient_remainder", "compression.threshold=10", "data.min_count=1"],
  )
  loop.run(config, str(tmp_path / "run"))
  predictor = serving.load(tmp_path / "run")
  new = tables.clicks(50, seed=2)
  np.testing.assert_array_equal(predictor.predict(new)[:5], predictor.predict(new.slice(0, 5)))


def test_a_model_of_several_labels_predicts_them_all_in_order(home, tmp_path):
  path = tables.write(tables.clicks(), tmp_path / "clicks.parquet")
  (tmp_path / "s.json").write_text(schema_lib.to_json(tables.SCHEMA))
  labels = "data.labels=click,like"
  settings = (*SETTINGS, f"data.data_dir={path}", f"data.schema={tmp_path}/s.json", labels)
  loop.run(overrides.with_overrides(experiment.ExperimentConfig(), settings), str(tmp_path / "run"))
  predictor = serving.load(tmp_path / "run")
  assert predictor.labels == ("click", "like")
  new = tables.clicks(300, seed=9)
  scores = predictor.predict(new)
  assert scores.shape == (300, 2)
  report = evaluate.evaluate(
    str(tmp_path / "run"),
    data_dir=str(tables.write(new, tmp_path / "new.parquet")),
    is_best=True,
  )["metrics"]
  weights = new["weight"].to_numpy()
  for k, (name, labels) in enumerate(
    {"": new["click"].to_numpy(), "like/": new["like"].to_numpy() == "yes"}.items()
  ):
    terms = labels * np.log(scores[:, k]) + (1 - labels) * np.log1p(-scores[:, k])
    assert report[f"{name}logloss"] == pytest.approx(-np.average(terms, weights=weights), rel=1e-4)


def test_data_that_changed_are_not_trained_on_with_old_tables(home, tmp_path):
  path = tables.write(tables.clicks(), tmp_path / "clicks.parquet")
  config = overrides.with_overrides(
    experiment.ExperimentConfig(), [*SETTINGS, f"data.data_dir={path}"]
  )
  loop.run(config, str(tmp_path / "run"))
  tables.write(tables.clicks(seed=1), path)
  longer = overrides.with_overrides(config, ["steps=30"])
  before = (tmp_path / "run" / "config.json").read_bytes()
  message = "was trained with the transforms in .* has the file"
  with pytest.raises(workdir.WorkdirError, match=message):
    loop.run(longer, str(tmp_path / "run"))
  assert (tmp_path / "run" / "config.json").read_bytes() == before
  with pytest.raises(workdir.WorkdirError, match=message):
    evaluate.evaluate(str(tmp_path / "run"))


def test_what_is_no_table_or_no_run_is_named(home, tmp_path):
  predictor = serving.load(home / "run")
  with pytest.raises(BadExampleError, match="column 'city' is missing"):
    predictor.predict(tables.clicks(3).drop_columns(["city"]))
  with pytest.raises(
    BadExampleError, match="predict: expected an Arrow table, a pandas frame or a"
  ):
    predictor.predict(3)
  with pytest.raises(ConfigError, match=r"holds no schema\.json, so no fitted transforms"):
    serving.load(tmp_path)
