"""What a run keeps of its data: transforms of its own, and copies that are there to be read."""

from __future__ import annotations

import json

import pytest

from jaxrec import data, serving
from jaxrec.config import ConfigError, experiment, overrides
from jaxrec.runs import loop, saved_transforms
from jaxrec.runs import workdir as workdir_lib
from tests.data import tables
from tests.runs.loop_test import Watcher, cache  # noqa: F401

SETTINGS = (
  "data.dataset=table", "data.labels=click", "data.time=ts", "steps=4", "eval_every=2",
  "batch_size=64", "baseline_steps=0", "model.name=logistic_regression",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tmp_path):
  path = tables.write(tables.clicks(), tmp_path / "clicks.csv")
  return with_(experiment.ExperimentConfig(), *SETTINGS, f"data.data_dir={path}")


def with_(config, *settings):
  return overrides.with_overrides(config, settings)


def test_an_inferred_schema_is_copied_to_be_edited_and_the_run_does_not_mind(config, tmp_path):
  path, shown = tmp_path / "run", Watcher()
  loop.run(config, str(path), terminal=shown)
  copy = path / "schema.json"
  assert copy.read_bytes() == (path / "features" / "schema.json").read_bytes()
  assert f"edit {copy} and start a new run with --schema={copy}\n" in shown.text.getvalue()
  schema = json.loads(copy.read_text())
  schema["features"]["city"]["min_count"] = 7
  copy.write_text(json.dumps(schema))
  edited = copy.read_bytes()
  assert loop.run(with_(config, "steps=6"), str(path))["steps"] == 6
  serving.load(path)
  assert copy.read_bytes() == edited
  again = with_(config, f"data.schema={copy}")
  loop.run(again, str(tmp_path / "again"))
  assert saved_transforms.load(tmp_path / "again").schema.columns["city"].min_count == 7
  assert not (tmp_path / "again" / "schema.json").exists()  # it is where its maker has it


def test_a_run_whose_own_schema_was_edited_says_so(config, tmp_path):
  path = tmp_path / "run"
  loop.run(config, str(path))
  own = path / "features" / "schema.json"
  own.write_text(own.read_text().replace('"list"', '"sequence"'))
  for use in (lambda: loop.run(with_(config, "steps=6"), str(path)), lambda: serving.load(path)):
    with pytest.raises(
      ConfigError, match="features: schema.json changed since .* is the run's own"
    ):
      use()


def test_rows_left_out_are_listed_one_a_line_as_of_the_last_start(config, tmp_path):
  clicks = (tmp_path / "clicks.csv").read_text().splitlines()
  test = tables.write(tables.clicks(60, seed=2), tmp_path / "test.csv")
  test.write_text(test.read_text() + "7\n")
  (tmp_path / "clicks.csv").write_text("\n".join([*clicks[:8], "1,2", *clicks[8:], "3,4"]))
  skip = with_(config, "data.on_bad_row=skip", f"data.test_dir={test}")
  path, shown = tmp_path / "run", Watcher()
  loop.run(skip, str(path), terminal=shown)
  lines = (path / "bad_rows.txt").read_text().splitlines()
  places = [line.split(": ")[0] for line in lines]
  assert places == [
    f"{tmp_path}/clicks.csv, line 9", f"{tmp_path}/clicks.csv, line 503", f"{test}, line 62"
  ]  # fmt: skip
  assert all("Expected Number of Columns" in line for line in lines)
  said = shown.text.getvalue()
  assert f"3 bad rows left out, listed in {path / 'bad_rows.txt'}\n" in said
  assert "; 3 bad rows left out\n" in said
  mended = tables.write(tables.clicks(), tmp_path / "mended.csv")
  good = tables.write(tables.clicks(60, seed=2), tmp_path / "good.csv")
  loop.run(with_(skip, f"data.data_dir={mended}", f"data.test_dir={good}"), str(path))
  assert not (path / "bad_rows.txt").exists()


def test_a_data_set_made_in_python_is_kept_like_any(tmp_path):
  clicks = data.from_arrow(tables.clicks(), label="click", time="ts", embedding_dim=1)
  workdir = workdir_lib.Workdir(tmp_path)
  saved_transforms.keep(clicks, workdir, Watcher())
  assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == [
    "features", "schema.json"
  ]  # fmt: skip
