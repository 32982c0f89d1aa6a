"""Runs of train.py's loop on a mesh: the same figures as on one device, and room by the data."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest

from jaxrec import config as config_lib
from jaxrec import sharding
from jaxrec.config import experiment
from jaxrec.data import pipeline, registry
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import id_counts
from jaxrec.runs import loop
from jaxrec.runs import terminal as terminal_lib
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.process import host
from jaxrec.runs.setup import optimizers, placement
from jaxrec.runs.setup import run as run_lib
from tests.data import tiny_clicks
from tests.runs import run_helpers

SETTINGS = ("steps=12", "eval_every=6", "log_every=3", "baseline_steps=0")


@pytest.fixture(scope="module", autouse=True)
def tiny():
  loaders = {**registry.LOADERS, "tiny": tiny_clicks.load}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, "LOADERS", loaders)
    yield


def config_of(mesh: str, *settings: str, **how) -> experiment.ExperimentConfig:
  config = run_helpers.tiny_config(*SETTINGS, *settings)
  return dataclasses.replace(config, sharding=experiment.ShardingConfig(mesh=mesh, **how))


def run(path, config) -> tuple[list[dict], str]:
  """Its lines of metrics, and what the terminal showed."""
  seen = io.StringIO()
  loop.run(config, str(path), terminal=terminal_lib.Terminal(seen))
  lines = workdir_lib.Workdir(path).metrics_path.read_text().splitlines()
  return [json.loads(line) for line in lines], seen.getvalue()


@pytest.mark.parametrize(
  ("mesh", "settings", "capacity"),
  [
    pytest.param("data:4", (), None, marks=pytest.mark.nightly),
    ("data:2,model:2", ("accumulate_steps=2", "optimizer.clip_norm=0.1"), 3),
  ],
)
def test_a_run_on_a_mesh_reads_as_one_on_a_device(tmp_path, mesh, settings, capacity):
  alone, _ = run(tmp_path / "none", config_of("none", *settings))
  spread, seen = run(tmp_path / "mesh", config_of(mesh, *settings, capacity=capacity))
  assert len(alone) == len(spread) > 4
  rounds = [one.pop("extra_rounds") for one in spread if one["split"] == "train"]
  assert min(rounds) > 0 if capacity else set(rounds) == {0}
  assert ("extra rounds" in seen) == bool(capacity)
  for one, other in zip(alone, spread, strict=True):
    assert one.keys() == other.keys() and one["step"] == other["step"]
    for name in one.keys() & {"loss", "logloss", "auc", "ne"}:
      np.testing.assert_allclose(one[name], other[name], rtol=5e-4, err_msg=f"{name} {one}")


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_the_exchange_has_room_for_what_the_data_ask(tmp_path, accumulate_steps):
  config = config_of("data:4", f"accumulate_steps={accumulate_steps}")
  made = run_lib.build(config, workdir_lib.Workdir(tmp_path / "run"), None)
  batches = list(made.train_batches(0, 4))

  def with_room(most):
    return -(-int(np.ceil(most + 6 * np.sqrt(most)) + 8) // 8) * 8

  for sharded in made.placement.plan.sharded:
    name, asked, sent = sharded.stack.name, [], []
    for rows in (batch.rows[name] for batch in batches):
      parts = rows.rows.reshape(accumulate_steps, 4, -1)
      counts = rows.num_rows.reshape(accumulate_steps, 4)
      for part in range(4):
        micro = [parts[k, part, : counts[k, part]] for k in range(accumulate_steps)]
        asked += [np.bincount(one // sharded.rows_per_shard).max() for one in micro]
        union = np.unique(np.concatenate(micro))
        sent.append(np.bincount(union // sharded.rows_per_shard).max())
    assert sharded.capacity == with_room(max(asked))
    assert sharded.for_gradients.capacity == with_room(max(sent))
  assert any(s.for_gradients != s for s in made.placement.plan.sharded) == (accumulate_steps > 1)


def test_a_capacity_that_is_given_is_taken(tmp_path):
  fixed = dataclasses.replace(
    config_of("data:4"), sharding=experiment.ShardingConfig(mesh="data:4", capacity=3)
  )
  made = run_lib.build(fixed, workdir_lib.Workdir(tmp_path / "run"), None)
  assert {sharded.capacity for sharded in made.placement.plan.sharded} == {3}


def planned(**how) -> experiment.ShardingConfig:
  return experiment.ShardingConfig(mesh="data:4", rules=("auto",), **how)


def test_a_run_is_planned_by_its_own_data(tmp_path):
  config = dataclasses.replace(config_of("data:4"), sharding=planned())
  seen = io.StringIO()
  terminal = terminal_lib.Terminal(seen)
  made = run_lib.build(config, workdir_lib.Workdir(tmp_path / "run"), terminal)
  tables = {feature.table.name: feature.table for feature in made.spec.features}
  batches = pipeline.batches(made.dataset, config.batch_size, num_steps=4, seed=config.seed)
  counts = id_counts.count_ids(batches, made.spec.features)
  found = sharding.find_plan(
    made.spec.features,
    {"data": 4},
    dataclasses.replace(sharding.CPU, memory_bytes=host.memory_bytes() // 4),
    batch_size=config.batch_size,
    moments=sharding.ROWWISE_ADAGRAD,
    profiles={
      n: sharding.profile_of_counts(counts[n].counts, t.vocab_size) for n, t in tables.items()
    },
  )
  room = {one.stack.name: one.capacity for one in made.placement.plan.sharded}
  assert made.placement.plan == found.plan.with_capacities(room)
  assert str(found) in seen.getvalue()
  fixed = dataclasses.replace(config, sharding=planned(capacity=3))
  made = run_lib.build(fixed, workdir_lib.Workdir(tmp_path / "run"), None)
  assert {sharded.capacity for sharded in made.placement.plan.sharded} == {3}


@pytest.mark.parametrize("has_fingerprints", [False, True])
def test_a_planned_table_with_fingerprints_keeps_its_rows_whole(monkeypatch, has_fingerprints):
  monkeypatch.setattr(placement, "_numbers_of", lambda device, count: sharding.H100)
  settings = ("model.name=eta", f"model.history.has_fingerprints={has_fingerprints}")
  config = dataclasses.replace(config_of("data:4", *settings), sharding=planned())
  items = config_lib.TableConfig("item", 10**9, 64)  # too large to copy
  spec = batch_lib.BatchSpec((config_lib.FeatureConfig("item", items),), num_dense=0)
  tx = optimizers.build(config.optimizer)
  found = placement.placement_on(sharding.make_mesh({"data": 4}), config, spec, tx)
  (stack,) = found.plan.sharded
  assert stack.column_axes == (() if has_fingerprints else ("data",))


@pytest.mark.parametrize(
  ("sharding", "message"),
  [
    ({"mesh": "data"}, "sharding.mesh: expected axes and sizes such as data:2,model:4"),
    ({"mesh": "data:4", "rules": ("auto", ".*=row_wise")}, "'auto': expected pattern=layout"),
    ({"mesh": "data:2,data:2"}, "sharding.mesh: expected axes and sizes"),
    ({"mesh": "data:64"}, "needs 64 devices and there are 8; on a CPU set"),
    (
      {"mesh": "data:3"},
      "batch_size: 3 devices cannot share 64 examples evenly; choose a",
    ),
    ({"mesh": "data:4", "rules": ("nothing=row_wise",)}, "no rule matches it; the patterns are"),
    ({"mesh": "data:4", "rules": (".*=row_wise(modle)",)}, "no mesh axis 'modle'"),
    ({"mesh": "data:4", "rules": (".*=rowwise",)}, "did you mean 'row_wise'"),
    ({"mesh": "data:4", "rules": (".*=replicated(data)",)}, "replicated takes no arguments"),
    (
      {"mesh": "data:4", "rules": ("*=row_wise",)},
      "pattern '*' of a rule is no regular expression",
    ),
  ],
)
def test_a_mesh_or_rule_that_does_not_fit_is_named(tmp_path, sharding, message):
  config = run_helpers.tiny_config("batch_size=64")
  with pytest.raises(config_lib.ConfigError) as error:
    config = dataclasses.replace(config, sharding=experiment.ShardingConfig(**sharding))
    run_lib.build(config, workdir_lib.Workdir(tmp_path / "run"), None)
  assert message in str(error.value)
