"""A result stands for the files it was tested on, and a run is tested again on others."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from jaxrec import evaluate
from jaxrec.config import experiment, overrides
from jaxrec.features import schema as schema_lib
from jaxrec.runs import loop, test_inputs
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.setup import run
from tests.data import tables
from tests.runs.loop_test import Watcher, cache  # noqa: F401

SETTINGS = (
  "data.dataset=table", "data.labels=click", "steps=4", "eval_every=2", "batch_size=64",
  "baseline_steps=0", "model.name=logistic_regression", "test_examples=0",
)  # fmt: skip


def with_(config, *settings):
  return overrides.with_overrides(config, settings)


@pytest.fixture
def config(tmp_path, monkeypatch):
  """A table in a folder of two files, one of test rows, and a schema."""
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  tables.write(tables.clicks(), tmp_path / "all" / "a.parquet")
  tables.write(tables.clicks(100, seed=1), tmp_path / "all" / "b.parquet")
  tables.write(tables.clicks(200, seed=2), tmp_path / "test.parquet")
  (tmp_path / "s.json").write_text(schema_lib.to_json(tables.SCHEMA))
  return with_(
    experiment.ExperimentConfig(),
    *SETTINGS,
    f"data.data_dir={tmp_path}/all",
    f"data.test_dir={tmp_path}/test.parquet",
    f"data.schema={tmp_path}/s.json",
    "data.labels=click,like",
  )


def touch(path):
  os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def rewrite(path, old, new):
  """Another content at the same time."""
  time = path.stat().st_mtime_ns
  path.write_bytes(path.read_bytes().replace(old, new))
  os.utime(path, ns=(time, time))


CHANGES = {
  "a file grew": lambda home: rewrite(home / "test.parquet", b"PAR1", b"PAR1 "),
  "a file was written again": lambda home: touch(home / "all" / "b.parquet"),
  "a file came": lambda home: (home / "all" / "c.parquet").touch(),
  "a file went": lambda home: (home / "all" / "a.parquet").unlink(),
  "a file has another name": lambda home: (home / "all" / "a.parquet").rename(
    home / "all" / "aa.parquet"
  ),
  "the schema was edited": lambda home: rewrite(home / "s.json", b"yes", b"yea"),
}


def as_read(config):
  """What a result says that it was tested with."""
  return json.loads(json.dumps(test_inputs.tested_with(config)))


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_changed_are_other_files(config, tmp_path, change):
  then = as_read(config)
  assert test_inputs.is_same(then, test_inputs.tested_with(config))
  CHANGES[change](tmp_path)
  assert not test_inputs.is_same(then, test_inputs.tested_with(config))


def test_files_are_the_same_wherever_they_are_named_from(config, tmp_path, monkeypatch):
  then = as_read(config)
  monkeypatch.chdir(tmp_path)
  near = ("data.data_dir=all", "data.test_dir=./test.parquet", "data.schema=s.json")
  assert test_inputs.is_same(then, test_inputs.tested_with(with_(config, *near)))
  shutil.copytree(tmp_path / "all", tmp_path / "copy")
  assert not test_inputs.is_same(then, test_inputs.tested_with(with_(config, "data.data_dir=copy")))
  assert not test_inputs.is_same(then, test_inputs.tested_with(with_(config, "data.test_dir=null")))


def test_files_that_are_gone_have_not_changed(config, tmp_path):
  then = as_read(config)
  shutil.rmtree(tmp_path / "all")
  for name in ("test.parquet", "s.json"):
    (tmp_path / name).unlink()
  assert test_inputs.is_same(then, test_inputs.tested_with(config))
  for other in ("data_dir", "test_dir"):
    assert not test_inputs.is_same(
      then, test_inputs.tested_with(with_(config, f"data.{other}=/gone"))
    )


def test_a_word_that_is_no_path_is_the_same_word_from_anywhere(config, tmp_path, monkeypatch):
  word = with_(config, "data.data_dir=100k")  # as movielens has it
  then = as_read(word)
  monkeypatch.chdir(tmp_path)
  assert test_inputs.is_same(then, test_inputs.tested_with(word))
  assert not test_inputs.is_same(then, test_inputs.tested_with(with_(config, "data.data_dir=1m")))


def test_what_lies_in_folders_of_the_folder_is_not_data(config, tmp_path):
  then = as_read(config)
  (tmp_path / "all" / "runs" / "first").mkdir(parents=True)
  (tmp_path / "all" / "runs" / "first" / "config.json").touch()
  assert test_inputs.is_same(then, test_inputs.tested_with(config))


@pytest.fixture
def finished(config, tmp_path, monkeypatch):
  """A run that is done, in ``tmp_path / "run"``, when nothing can be trained any more."""
  loop.run(config, str(tmp_path / "run"))
  monkeypatch.setattr(run, "compile_step", None)
  return config


def files_of(folder):
  return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_finished_run_is_tested_on_other_test_files_and_prints_that_when_they_are_gone(
  finished, tmp_path
):
  path = str(tmp_path / "run")
  first = loop.run(finished, path)
  tables.write(tables.clicks(300, seed=3), tmp_path / "test.parquet")
  shown = Watcher()
  again = loop.run(finished, path, terminal=shown)
  assert "(trained before)" in shown.text.getvalue() and again["logloss"] != first["logloss"]
  new = str(tmp_path / "test.parquet")
  report = evaluate.evaluate(path, is_best=True, data_dir=new, num_examples=0)["metrics"]
  assert again["logloss"] == pytest.approx(report["logloss"], abs=1e-6)
  moved = tables.write(tables.clicks(150, seed=4), tmp_path / "moved.parquet")
  there = with_(finished, f"data.test_dir={moved}")
  last = loop.run(there, path)
  assert last["logloss"] not in (first["logloss"], again["logloss"])
  assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["test_dir"] == str(
    moved
  )
  shutil.rmtree(tmp_path / "all")
  moved.unlink()
  before = files_of(tmp_path / "run")
  assert loop.run(there, path) == last
  assert files_of(tmp_path / "run") == before


def test_a_finished_run_is_tested_again_on_data_of_the_same_transforms(finished, tmp_path):
  shutil.copytree(tmp_path / "all", tmp_path / "copy")
  before = json.loads((tmp_path / "run" / "result.json").read_text())
  there = with_(finished, f"data.data_dir={tmp_path}/copy")
  again = loop.run(there, str(tmp_path / "run"))
  assert again | {"examples_per_s": None} == before["result"] | {"examples_per_s": None}
  after = json.loads((tmp_path / "run" / "result.json").read_text())
  assert after["tested_with"]["data_dir"]["path"] == f"{tmp_path}/copy"


@pytest.mark.parametrize("change", ["other rows", "another schema"])
def test_a_finished_run_is_not_tested_on_data_of_other_transforms(finished, tmp_path, change):
  if change == "other rows":
    tables.write(tables.clicks(seed=5), tmp_path / "all" / "a.parquet")
  else:
    text = (tmp_path / "s.json").read_text()
    (tmp_path / "s.json").write_text(text.replace('"min_count": 2', '"min_count": 3'))
  before = files_of(tmp_path / "run")
  message = "run was trained with the transforms in .* has the file, or the --schema, changed"
  with pytest.raises(workdir_lib.WorkdirError, match=message):
    loop.run(finished, str(tmp_path / "run"))
  assert files_of(tmp_path / "run") == before


def test_what_changes_while_a_run_trains_is_seen_when_it_is_asked_again(
  config, tmp_path, monkeypatch
):
  test = tmp_path / "test.parquet"

  class Replaced(Watcher):
    def evaluation(self, step, figures, *, is_best):
      tables.write(tables.clicks(300, seed=3), test)

  first = loop.run(config, str(tmp_path / "run"), terminal=Replaced())
  assert loop.run(config, str(tmp_path / "run"))["logloss"] != first["logloss"]
