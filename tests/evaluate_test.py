"""``python -m jaxrec.evaluate``: the run's own figures, and the importance of its inputs."""

from __future__ import annotations

import json
import types

import pytest
from absl import app, flags
from absl.testing import flagsaver

from jaxrec import config as config_lib
from jaxrec import data
from jaxrec import evaluate as program
from jaxrec.data import registry
from jaxrec.runs import loop
from tests import program_flags
from tests.data import tiny_clicks
from tests.runs import run_helpers

RUN = ("steps=12", "eval_every=6", "batch_size=16", "model.name=logistic_regression")


@pytest.fixture(scope="module", autouse=True)
def tiny():
  loaders = {**registry.LOADERS, "tiny": tiny_clicks.load}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, "LOADERS", types.MappingProxyType(loaders))
    yield


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
  path = tmp_path_factory.mktemp("evaluate") / "run"
  loop.run(run_helpers.tiny_config(*RUN), str(path))
  return path


def call(*words):
  program_flags.define(program)
  with flagsaver.flagsaver():
    return program.main(flags.FLAGS(["evaluate", *map(str, words)]))


def report(capsys, *words):
  assert call(*words, "--json") == 0
  return json.loads(capsys.readouterr().out)


def test_figures_are_those_that_the_run_itself_found(workdir, capsys):
  found = report(capsys, workdir, "--best")
  result = json.loads((workdir / "result.json").read_text())
  assert found["metrics"] == result["test"]
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  for line in (line for line in lines if line["split"] == "val"):
    if line["step"] in run_helpers.committed(workdir):
      step = line["step"]
      found = report(capsys, workdir, f"--step={step}", "--split=val")
      assert found["metrics"] == {k: v for k, v in line.items() if k not in ("step", "split")}
      assert found["step"] == step


def test_any_number_of_examples_of_any_split_is_evaluated(workdir, capsys):
  for split, number, count in [("train", 7, 7), ("train", 0, 1000), ("test", 1000, 150)]:
    found = report(capsys, workdir, f"--split={split}", f"--num_examples={number}")
    assert found["metrics"]["examples"] == count


def test_importance_is_printed_largest_first(workdir, capsys):
  found = report(capsys, workdir, "--importance", "--repeats=2")
  assert {row["name"] for row in found["importance"]} == {"user", "item", "tags", "age", "price"}
  drops = [row["auc_drop"] for row in found["importance"]]
  assert drops == sorted(drops, reverse=True) and drops[0] > 0
  assert found["metrics"] == report(capsys, workdir)["metrics"]
  assert report(capsys, workdir, "--importance", "--repeats=2") == found
  assert call(workdir, "--importance", "--repeats=2") == 0
  out = capsys.readouterr().out.splitlines()
  assert "input  auc drop        ±  logloss rise        ±" in out
  assert out[out.index("input  auc drop        ±  logloss rise        ±") + 1].startswith(
    found["importance"][0]["name"]
  )


def test_a_feature_of_compressed_tables_is_one_input(tmp_path, capsys):
  settings = (*RUN, "compression.kind=quotient_remainder", "compression.threshold=25")
  loop.run(run_helpers.tiny_config(*settings), str(tmp_path / "run"))
  found = report(capsys, tmp_path / "run", "--importance", "--repeats=1", "--best")
  assert {row["name"] for row in found["importance"]} == {"user", "item", "tags", "age", "price"}
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  assert found["metrics"] == result["test"]


def test_what_cannot_be_evaluated_is_one_clear_message(workdir, tmp_path, capsys):
  for words, message in [
    ((tmp_path / "nowhere",), "nowhere: no such folder"),
    ((tmp_path,), "is not a run of jaxrec: it has no config.json"),
    ((workdir, "--split=tset"), "no split 'tset'; did you mean 'test'"),
    ((workdir, "--num_examples=-1"), "--num_examples: must be at least 0, got -1"),
    ((workdir, "--importance", "--repeats=0"), "repeats: must be at least 1, got 0"),
    ((workdir, "--step=7"), "has no checkpoint of step 7; it has"),
  ]:
    assert call(*words) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and message in captured.err
  for words in [(), (workdir, "--best", "--step=12")]:
    with pytest.raises(app.UsageError):
      call(*words)


def test_a_split_without_an_end_needs_a_number():
  source = data.synthetic(data.default_features(), num_dense=1)
  config = run_helpers.tiny_config("eval_examples=0")
  run = types.SimpleNamespace(dataset=source, config=config)
  assert program.evaluated(run, "train", 24).size == 24
  with pytest.raises(config_lib.ConfigError, match="split 'train' has no end; say how many"):
    program.evaluated(run, "train", None)
