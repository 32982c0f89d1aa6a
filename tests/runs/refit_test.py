"""A refit trains on val too, as many passes as were best, and is the model that is tested."""

from __future__ import annotations

import dataclasses
import json
import signal

import numpy as np
import pytest

from jaxrec import serving
from jaxrec.config import ConfigError, experiment, overrides
from jaxrec.runs import loop
from jaxrec.runs.process import interrupt
from jaxrec.runs.setup import run
from tests.data import tables
from tests.runs import run_helpers
from tests.runs.loop_test import Watcher, cache, handlers  # noqa: F401

SETTINGS = (
  "data.dataset=table", "data.labels=click", "data.time=ts", "epochs=4", "eval_every=3",
  "batch_size=64", "log_every=5", "baseline_steps=0", "model.embedding_dim=4",
  "model.bottom_mlp=8,4", "model.top_mlp=8,1", "refit=true",
)  # fmt: skip


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  path = tables.write(tables.clicks(), tmp_path / "clicks.parquet")
  return overrides.with_overrides(
    experiment.ExperimentConfig(), [*SETTINGS, f"data.data_dir={path}"]
  )


def test_the_refitted_model_is_that_of_a_run_told_to_train_on_both(config, tmp_path):
  result = loop.run(config, str(tmp_path / "run"))
  again = json.loads((tmp_path / "run" / "refit" / "config.json").read_text())
  assert again["data"]["val_fraction"] == 0.0
  (steps,) = run_helpers.committed(tmp_path / "run" / "refit")
  times = np.sort(tables.clicks()["ts"].to_numpy())
  num_both = np.count_nonzero(times <= times[449])
  num_train = np.count_nonzero(times <= times[404])
  assert steps == round(result["best_step"] * num_both / num_train)
  by_hand = dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, val_fraction=0.0),
    refit=False,
    epochs=0.0,
    steps=steps,
    eval_every=10**6,
  )
  wanted = loop.run(by_hand, str(tmp_path / "hand"))
  assert (result["auc"], result["logloss"]) == (wanted["auc"], wanted["logloss"])
  assert result["val_auc"] is not None and wanted["val_auc"] is None
  predictor, new = serving.load(tmp_path / "run"), tables.clicks(9, seed=1)
  assert predictor.step == steps
  np.testing.assert_array_equal(
    predictor.predict(new), serving.load(tmp_path / "hand").predict(new)
  )


@pytest.mark.parametrize("step", [5, pytest.param(10, marks=pytest.mark.nightly)])
def test_a_refit_that_is_interrupted_goes_on_to_the_same_result(config, tmp_path, step, handlers):  # noqa: F811
  config = overrides.with_overrides(config, ["eval_every=12"])  # so that the refit is as long
  whole = loop.run(config, str(tmp_path / "whole"))
  assert whole["best_step"] >= 12
  is_refit = []

  class InRefit(Watcher):
    def line(self, text):
      is_refit.append("[2/3]" in text)

  stop = InRefit(
    lambda now: signal.raise_signal(signal.SIGINT) if sum(is_refit) == 2 and now == step else None
  )
  with pytest.raises(interrupt.Interrupted):
    loop.run(config, str(tmp_path / "run"), terminal=stop)
  assert run_helpers.committed(tmp_path / "run" / "refit") == [step]
  result = loop.run(config, str(tmp_path / "run"))
  for place_or_speed in ("workdir", "examples_per_s"):
    result.pop(place_or_speed)
    whole.pop(place_or_speed)
  assert result == whole


def test_a_refitted_run_that_is_asked_for_slices_tests_the_refitted_model_again(
  config, tmp_path, monkeypatch
):
  grouped = overrides.with_overrides(config, ["data.group=user"])
  result = loop.run(grouped, str(tmp_path / "run"))
  monkeypatch.setattr(run, "compile_step", None)  # nothing could be trained
  again = loop.run(overrides.with_overrides(grouped, ["slices=user"]), str(tmp_path / "run"))
  assert again | {"examples_per_s": None} == result | {"examples_per_s": None}
  details = json.loads((tmp_path / "run" / "result.json").read_text())
  users = details["slices"]["user"]
  assert sum(user["examples"] for user in users) == details["test"]["examples"] > 0


def test_what_cannot_be_refitted_is_refused_before_it_is_trained(config, tmp_path):
  endless = run_helpers.tiny_config("refit=true", "data.dataset=synthetic")
  sampled = overrides.with_overrides(config, ["data.negative_keep_rate=0.5"])
  for refused in (endless, sampled):
    with pytest.raises(ConfigError, match="refit: needs a table that the config names"):
      loop.run(refused, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
