"""A model goes on from an earlier one with another vocabulary (law W6)."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import numpy as np
import pyarrow as pa
import pytest

from jaxrec import data
from jaxrec.config import ConfigError, experiment
from jaxrec.features.schema import Column, Cross, Schema
from jaxrec.runs import loop, open_run, warm_start, workdir
from jaxrec.runs import terminal as terminal_lib
from jaxrec.runs.checkpoints import restore_rows
from jaxrec.runs.process import interrupt
from jaxrec.runs.setup import run as run_lib
from tests.data import tables, tiny_clicks
from tests.runs.loop_test import handlers, raise_at, tiny  # noqa: F401
from tests.sharding import cases
from tests.tables import in_lines

SCHEMA = Schema(
  {"click": None},
  {
    "city": Column("categorical", oov_buckets=2),
    "item": Column("categorical"),
    "age": Column("numeric", buckets=8),
    "agent": Column("categorical", encoding="hash", num_hash_buckets=20),
  },
  crosses={"city*item": Cross(("city", "item")), "age*city": Cross(("age", "city"))},
)


def clicks(seed: int, first: int, *, cities: int = 12, youngest: int = 0) -> data.StoredTable:
  rng = np.random.default_rng(seed)
  size = 3000
  city, item = first + rng.integers(0, cities, size), 3 * first + rng.integers(0, 30, size)
  age = youngest + rng.integers(0, 40, size).astype(float)
  effect = np.random.default_rng(9).normal(0, 1.5, (60, 60))
  logit = effect[city, item] + np.sin(age / 6) + effect[item, 0]
  table = pa.table({
    "city": [f"city {k}" for k in city],
    "item": item,
    "age": age,
    "agent": [f"agent {k}" for k in rng.integers(0, 200, size)],
    "click": (rng.random(size) < 1 / (1 + np.exp(-logit))).astype(int),
  })  # fmt: skip
  return data.from_arrow(table, label="click", schema=SCHEMA, embedding_dim=4, seed=1)


def config(**changes) -> experiment.ExperimentConfig:
  fields = {
    "data": experiment.DataConfig("table"),
    "model": experiment.ModelConfig("wide_deep", 4, top_mlp=(8, 1)),
    "optimizer": experiment.OptimizerConfig(
      dense="adagrad", learning_rate=0.05, ftrl=experiment.FtrlConfig(l1=0.001)
    ),
    "steps": 120,
    "eval_every": 120,
    "batch_size": 64,
    "eval_examples": 0,
    "baseline_steps": 0,
  }
  return experiment.ExperimentConfig(**{**fields, **changes})


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> str:
  path = str(tmp_path_factory.mktemp("earlier") / "run")
  loop.run(config(), path, dataset=clicks(0, 0))
  return path


def prepared(settings, path, dataset) -> run_lib.Run:
  return run_lib.build(settings, workdir.Workdir(path), terminal_lib.silent(), dataset)


def rows_by_key(run: run_lib.Run, current, table: str, keys):
  """Row and moments of each key of a table, by its name."""
  for stack in current.tables.plan.stacks:
    for one, offset in zip(stack.tables, stack.offsets, strict=True):
      if one.name == table:
        arrays = (current.tables.values[stack.name], *current.row_state.rows[stack.name])
        parts = [np.asarray(array)[offset : offset + one.vocab_size] for array in arrays]
        return {key: tuple(part[k].tobytes() for part in parts) for k, key in enumerate(keys)}
  raise KeyError(table)


def test_rows_and_moments_follow_their_keys_and_the_rest_begins_anew(earlier, tmp_path):
  old_data, new_data = clicks(0, 0), clicks(1, 4, cities=17, youngest=20)
  run = prepared(config(), tmp_path / "new", new_data)
  fresh = run.initial_state()
  warm, report = warm_start.warm_start(run, earlier)
  before = open_run.reopen(earlier, is_best=True, dataset=old_data)
  by_table = {one.table: one for one in report}
  assert len(by_table) == 4 + 6  # deep, and wide with the crosses
  for prefix in ("", "wide/"):
    for table in ("city", "item"):
      names = [d.transforms.rows[table].names() for d in (old_data, new_data)]
      old = rows_by_key(before.run, before.state, prefix + table, names[0])
      first = rows_by_key(run, fresh, prefix + table, names[1])
      found = rows_by_key(run, warm, prefix + table, names[1])
      for name in names[1]:
        assert found[name] == (old[name] if name in old else first[name])
      kept = set(names[0]) & set(names[1])
      assert by_table[prefix + table] == warm_start.Followed(
        prefix + table, len(kept), len(names[1]) - len(kept), len(names[0]) - len(kept)
      )
      assert 3 < len(kept) < len(names[1])
  assert by_table["wide/city*item"].kept > 50 and by_table["wide/city*item"].new > 50
  assert by_table["agent"] == warm_start.Followed("agent", 21, 0, 0)
  old_ages, ages = (d.transforms.quantiles["age"] for d in (old_data, new_data))
  gone = old_ages.num_rows - 1 - len(np.unique(old_ages.buckets(ages.boundaries - 1e-6)))
  assert by_table["age_buckets"] == warm_start.Followed("age_buckets", ages.num_rows, 0, gone)
  assert gone > 0
  for name in ("params", "opt_state"):
    jax.tree.map(np.testing.assert_array_equal, getattr(warm, name), getattr(before.state, name))
  jax.tree.map(
    np.testing.assert_array_equal, warm.row_state.globals, before.state.row_state.globals
  )
  assert int(warm.step) == 0


def same(ours, theirs) -> bool:
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, theirs)))


def test_the_best_checkpoint_is_taken_and_not_the_latest(tmp_path):
  source, path = clicks(0, 0), tmp_path / "old"
  settings = config(steps=30, eval_every=10, log_every=5)
  with pytest.raises(interrupt.Interrupted):
    loop.run(settings, str(path), dataset=source, terminal=raise_at(15))
  best, latest = (open_run.reopen(path, step=step, dataset=source).state for step in (10, 15))
  run = prepared(settings, tmp_path / "new", source)
  warm, _ = warm_start.warm_start(run, path)
  for name in ("params", "opt_state", "tables", "row_state"):
    jax.tree.map(np.testing.assert_array_equal, getattr(warm, name), getattr(best, name))
    assert not same(getattr(latest, name), getattr(best, name))


def test_of_a_refitted_run_the_refitted_model_is_taken_once_the_run_is_over(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  file = tables.write(tables.clicks(), tmp_path / "clicks.parquet")
  source = experiment.DataConfig("table", str(file), labels=("click",))
  linear = experiment.ModelConfig("logistic_regression", 4)
  settings = config(data=source, model=linear, steps=4, eval_every=4, refit=True)
  path = tmp_path / "old"
  loop.run(settings, str(path))
  chosen, refitted = (
    open_run.reopen(folder, is_best=True).state.params for folder in (path, path / "refit")
  )
  assert not same(chosen, refitted)
  run = prepared(settings, tmp_path / "new", None)
  warm, _ = warm_start.warm_start(run, path)
  jax.tree.map(np.testing.assert_array_equal, warm.params, refitted)
  (path / "result.json").unlink()  # as while it is refitted
  warm, _ = warm_start.warm_start(run, path)
  jax.tree.map(np.testing.assert_array_equal, warm.params, chosen)


def test_it_begins_below_a_cold_start_and_trains_to_the_end(earlier, tmp_path, monkeypatch):
  new_data, lines = clicks(1, 4), []
  run = prepared(config(), tmp_path / "new", new_data)
  fresh = run.initial_state()
  warm, _ = warm_start.warm_start(run, earlier)
  losses = [run.evaluate(state, "val", 0)["logloss"] for state in (fresh, warm)]
  assert losses[1] < losses[0] - 0.02
  settings = config(warm_start=earlier, steps=30, eval_every=30)
  terminal = terminal_lib.silent()
  monkeypatch.setattr(type(terminal), "line", lambda self, text: lines.append(text))
  result = loop.run(settings, str(tmp_path / "run"), dataset=new_data, terminal=terminal)
  assert f"warm start from {earlier}; rows by table:" in lines
  assert any(line.split()[:1] == ["wide/city*item"] for line in lines)
  (shared,) = (line for line in lines if line.startswith("cross city*item: "))
  assert " combinations have a row of their own; the others are " in shared
  cold = loop.run(config(steps=30, eval_every=30), str(tmp_path / "cold"), dataset=new_data)
  assert result["logloss"] < cold["logloss"] and result["steps"] == 30


def test_a_warm_run_that_is_stopped_resumes_with_the_same_bits(earlier, tmp_path):
  new_data = clicks(1, 4)
  settings = config(warm_start=earlier, steps=20, eval_every=10, checkpoint_every=5)
  whole = loop.run(settings, str(tmp_path / "whole"), dataset=new_data)
  first = dataclasses.replace(settings, steps=10)
  loop.run(first, str(tmp_path / "parts"), dataset=new_data)
  parts = loop.run(settings, str(tmp_path / "parts"), dataset=new_data)
  assert {**parts, "workdir": "", "examples_per_s": 0} == {
    **whole, "workdir": "", "examples_per_s": 0
  }  # fmt: skip


def test_rows_follow_their_keys_onto_a_mesh_and_into_lines(earlier, tmp_path, monkeypatch):
  monkeypatch.setattr(restore_rows, "PIECE_BYTES", 100)  # many pieces, the last ones short
  new_data = clicks(1, 4, cities=17, youngest=20)
  rules = ("item=row_wise(model)", "wide/.*=table_wise", ".*=row_wise")
  on_mesh = config(sharding=experiment.ShardingConfig("data:2,model:2", rules))
  found = []
  by_row = contextlib.nullcontext
  for settings, layout in ((config(), by_row), (on_mesh, by_row), (config(), in_lines.as_on_a_tpu)):
    with layout():
      run = prepared(settings, tmp_path / "new", new_data)
      warm, report = warm_start.warm_start(run, earlier)
    found.append((cases.by_table(warm), jax.device_get((warm.params, warm.opt_state)), report))
  assert len(warm.tables.placement.layouts) > 1
  for rows, rest, report in found[1:]:
    assert report == found[0][2]
    jax.tree.map(np.testing.assert_array_equal, (rows, rest), found[0][:2])


def test_without_vocabularies_an_id_is_its_row(tiny, tmp_path):  # noqa: F811
  source = tiny_clicks.TinyClicks(seed=0)
  settings = config(
    data=experiment.DataConfig("tiny"),
    model=experiment.ModelConfig("dlrm", 4, bottom_mlp=(8, 4), top_mlp=(8, 1)),
    steps=20,
    eval_every=20,
  )
  loop.run(settings, str(tmp_path / "old"))
  run = prepared(settings, tmp_path / "new", source)
  warm, report = warm_start.warm_start(run, tmp_path / "old")
  before = open_run.reopen(str(tmp_path / "old"), is_best=True, dataset=source)
  jax.tree.map(np.testing.assert_array_equal, warm.tables, before.state.tables)
  jax.tree.map(np.testing.assert_array_equal, warm.row_state, before.state.row_state)
  assert all(one.new == one.dropped == 0 for one in report)
  smaller = tiny_clicks.TinyClicks(seed=0, max_rows=25)
  run = prepared(settings, tmp_path / "small", smaller)
  with pytest.raises(ConfigError, match="table 'user' has 40 rows there and 25 here, and no vocab"):
    warm_start.warm_start(run, tmp_path / "old")


def test_a_table_that_only_has_the_name_of_an_earlier_one_begins_anew(tmp_path):
  table = pa.table({"a": ["x", "y"] * 50, "b": ["p", "q", "q", "p"] * 25, "pair": ["u", "v"] * 50,
                    "click": [0, 0, 1, 1] * 25})  # fmt: skip
  columns = {name: Column("categorical") for name in ("a", "b")}
  schemas = (
    Schema({"click": None}, columns, crosses={"pair": Cross(("a", "b"))}),
    Schema({"click": None}, {**columns, "pair": Column("categorical")}),
  )
  old, new = (data.from_arrow(table, label="click", schema=schema) for schema in schemas)
  settings = config(model=experiment.ModelConfig("wide", 4, top_mlp=(1,)), steps=2, eval_every=2)
  loop.run(settings, str(tmp_path / "old"), dataset=old)
  run = prepared(settings, tmp_path / "new", new)
  fresh = run.initial_state()
  warm, report = warm_start.warm_start(run, tmp_path / "old")
  by_table = {one.table: one for one in report}
  num_rows = new.transforms.num_rows("pair")
  num_gone = old.transforms.crosses["pair"].num_rows
  assert by_table["wide/pair"] == warm_start.Followed("wide/pair", 0, num_rows, num_gone)
  assert by_table["wide/a"].kept == new.transforms.num_rows("a")
  np.testing.assert_array_equal(warm.tables.table("wide/pair"), fresh.tables.table("wide/pair"))
