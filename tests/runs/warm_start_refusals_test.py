"""What a warm start cannot map is named, and nothing is written for it (law W6)."""

# ruff: noqa: F811 (fixtures of another module)

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pyarrow as pa
import pytest

from jaxrec import data
from jaxrec.config import ConfigError, experiment
from jaxrec.features.schema import Column
from jaxrec.runs import loop, open_run, warm_start, workdir
from jaxrec.runs.checkpoints import checkpoint
from jaxrec.runs.setup import run as run_lib
from tests.data import tiny_clicks
from tests.runs.loop_test import handlers, raise_at, tiny  # noqa: F401
from tests.runs.warm_start_test import SCHEMA, clicks, config, earlier, prepared  # noqa: F401


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"model": experiment.ModelConfig("wide_deep", 4, top_mlp=(9, 1))},
      r"layer .*layer_0.* has sh",
    ),
    (
      {"model": experiment.ModelConfig("deep", 4, top_mlp=(8, 1))},
      "the model is wide_deep there and deep here; use the same",
    ),
    (
      {"optimizer": experiment.OptimizerConfig(dense="adam")},
      "optimizer.dense is adagrad there and adam here; use the same",
    ),
    (
      {"optimizer": experiment.OptimizerConfig(dense="adagrad", table="adagrad")},
      "optimizer.table is rowwise_adagrad there and adagrad here; use the same",
    ),
    (
      {"optimizer": dataclasses.replace(config().optimizer, decay_start=1, decay_steps=9)},
      "the optimizer's steps are counted on, so a warm-up or decay would not begin anew",
    ),
    (
      {"optimizer": dataclasses.replace(config().optimizer, warmup_steps=5)},
      "the optimizer's steps are counted on, so a warm-up or decay would not begin anew",
    ),
    (
      {"optimizer": dataclasses.replace(config().optimizer, l2_dense=0.1)},
      "optimizer state .* has shape none there and .* here",
    ),
    (
      {"compression": experiment.CompressionConfig("mixed_dims", alpha=0.0)},
      "rows of compressed tables are shared by ids and cannot be followed; leave compression out",
    ),
  ],
)
def test_what_has_no_place_is_named(earlier, tmp_path, changes, message):
  run = prepared(config(**changes), tmp_path / "new", clicks(1, 4))
  with pytest.raises(ConfigError, match=f"warm start: {message}"):
    warm_start.warm_start(run, earlier)


TINY = config(data=experiment.DataConfig("tiny", labels=("click", "like")), steps=2, eval_every=2)


@pytest.fixture(scope="module")
def earlier_tiny(tiny, tmp_path_factory) -> str:  # noqa: F811
  path = str(tmp_path_factory.mktemp("earlier_tiny") / "run")
  loop.run(TINY, path)
  return path


def of_user(features, **changes):
  """``features`` with changes to the table that the first one looks up."""
  user, *rest = features
  table = dataclasses.replace(user.table, **changes)
  return (dataclasses.replace(user, table=table), *rest)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      lambda spec: {"labels": spec.labels[::-1]},
      "labels are click, like there and like, click here; layers read them by their order",
    ),
    (
      lambda spec: {"dense_names": spec.dense_names[::-1]},
      "dense inputs are age, price there and price, age here; layers read them by their order",
    ),
    (
      lambda spec: {"features": of_user(spec.features, dtype="bfloat16")},
      "table 'user' has dtype 'float32' there and 'bfloat16' here; make the two equal",
    ),
    (
      lambda spec: {"features": of_user(spec.features, optimizer="wide")},
      "table 'user' has optimizer None there and 'wide' here; make the two equal",
    ),
  ],
)
def test_arrays_of_the_same_shape_that_mean_something_else_are_named(
  earlier_tiny, tmp_path, changes, message
):
  spec = tiny_clicks.TinyClicks(seed=0, labels=("click", "like")).spec
  source = types.SimpleNamespace(spec=dataclasses.replace(spec, **changes(spec)))
  run = prepared(TINY, tmp_path / "new", source)
  with pytest.raises(ConfigError, match=f"warm start: {message}"):
    warm_start.warm_start(run, earlier_tiny)


def test_ids_of_other_data_are_not_taken_for_rows(earlier_tiny, tmp_path):
  other = dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, seed=1))
  run = prepared(other, tmp_path / "new", None)
  with pytest.raises(ConfigError, match="the runs' data differ, and without vocabularies nothing"):
    warm_start.warm_start(run, earlier_tiny)


def beginning(run, change):
  """``run``, its fresh state changed."""

  class Changed(run_lib.Run):
    def initial_state(self):
      return change(super().initial_state())

  return Changed(**vars(run))


def test_tables_of_another_width_are_named(earlier, tmp_path):
  columns = {**SCHEMA.columns, "city": Column("categorical", oov_buckets=2, embedding_dim=6)}
  schema = dataclasses.replace(SCHEMA, columns=columns)
  table = pa.table({"city": ["a", "b"] * 50, "item": [1, 2] * 50, "age": [1.0, 2.0] * 50,
                    "agent": ["x", "y"] * 50, "click": [0, 1] * 50})  # fmt: skip
  wider = data.from_arrow(table, label="click", schema=schema, embedding_dim=4)
  run = prepared(config(), tmp_path / "new", wider)
  with pytest.raises(ConfigError, match=r"warm start: layer .*kernel.* has shape \(17, 8\) there"):
    warm_start.warm_start(run, earlier)
  old = open_run.reopen(earlier, is_best=True, dataset=clicks(0, 0)).state
  layers = {"params": old.params, "opt_state": old.opt_state}
  same_layers = beginning(run, lambda fresh: dataclasses.replace(fresh, **layers))
  with pytest.raises(ConfigError, match="table 'city' has embedding_dim 4 there and 6 here"):
    warm_start.warm_start(same_layers, earlier)


def test_layers_that_are_new_or_gone_are_named(earlier, tmp_path):
  run = prepared(config(), tmp_path / "new", clicks(1, 4))
  layers = run.initial_state().params["params"]["deep"]
  for changed, message in (
    ({**layers, "more": np.ones(3)}, r"\['more'\] has shape none there and \(3,\) here"),
    (
      {"layer_0": layers["layer_0"]},
      r"\['layer_1'\]\['bias'\] has shape \(1,\) there and none here",
    ),
  ):
    params = {"params": {"deep": changed}}
    other = beginning(run, lambda fresh, new=params: dataclasses.replace(fresh, params=new))
    with pytest.raises(ConfigError, match=f"warm start: layer .*{message}"):
      warm_start.warm_start(other, earlier)


def test_rows_with_other_moments_are_named(earlier, tmp_path):
  run = prepared(config(), tmp_path / "new", clicks(1, 4))

  def widened(fresh):
    kept = fresh.row_state.rows
    rows = {name: (*leaves[:-1], leaves[-1][:, None]) for name, leaves in kept.items()}
    return dataclasses.replace(fresh, row_state=dataclasses.replace(fresh.row_state, rows=rows))

  with pytest.raises(
    checkpoint.CheckpointError,
    match="moment_0 of stack 'd4_float32' are None float32 a row there, and 1 float32 here",
  ):
    warm_start.warm_start(beginning(run, widened), earlier)


def test_a_folder_without_a_run_is_named(tmp_path):
  run = prepared(config(), tmp_path / "new", clicks(1, 4))
  with pytest.raises(workdir.WorkdirError, match="nowhere: no such folder"):
    warm_start.warm_start(run, tmp_path / "nowhere")


def test_columns_in_another_order_are_named_and_not_mapped_by_place(earlier, tmp_path):
  columns = {name: SCHEMA.columns[name] for name in ("item", "city", "age", "agent")}
  schema = dataclasses.replace(SCHEMA, columns=columns)
  source = clicks(1, 4)
  table = pa.table({"city": ["a", "b"] * 50, "item": [1, 2] * 50, "age": [1.0, 2.0] * 50,
                    "agent": ["x", "y"] * 50, "click": [0, 1] * 50})  # fmt: skip
  other = data.from_arrow(table, label="click", schema=schema, embedding_dim=4)
  run = prepared(config(), tmp_path / "new", other)
  with pytest.raises(
    ConfigError, match="features are city, item, .* there and item, city, .* here"
  ):
    warm_start.warm_start(run, earlier)
  fewer = dataclasses.replace(SCHEMA, crosses={"city*item": SCHEMA.crosses["city*item"]})
  less = data.from_arrow(table, label="click", schema=fewer, embedding_dim=4)
  run = prepared(config(), tmp_path / "fewer", less)
  _, report = warm_start.warm_start(run, earlier)
  dropped = source.transforms.crosses["age*city"].num_rows
  (gone,) = (one for one in report if one.table == "wide/age*city")
  assert (gone.kept, gone.new) == (0, 0) and gone.dropped > dropped / 3


def test_a_typo_leaves_the_folder_as_it_was(tmp_path):
  settings = config(warm_start=str(tmp_path / "typo"))
  with pytest.raises(workdir.WorkdirError, match="typo: no such folder"):
    loop.run(settings, str(tmp_path / "run"), dataset=clicks(1, 4))
  assert not (tmp_path / "run" / "config.json").exists()


def test_a_warm_start_that_is_refused_leaves_the_folder_free(earlier, tmp_path):
  wrong = config(warm_start=earlier, model=experiment.ModelConfig("wide_deep", 4, top_mlp=(9, 1)))
  with pytest.raises(ConfigError, match="only rows of tables can be mapped"):
    loop.run(wrong, str(tmp_path / "run"), dataset=clicks(1, 4))
  assert not (tmp_path / "run" / "config.json").exists()
  right = config(warm_start=earlier, steps=4, eval_every=4)
  assert loop.run(right, str(tmp_path / "run"), dataset=clicks(1, 4))["steps"] == 4


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    (
      {"age": Column("numeric", buckets=8, dense=("log",))},
      r"column 'age' has dense \('cdf',\) th",
    ),
    ({"item": Column("list")}, "column 'item' has kind 'categorical' there and 'list' here"),
  ],
)
def test_a_column_that_means_something_else_is_named(earlier, tmp_path, changed, message):
  schema = dataclasses.replace(SCHEMA, columns={**SCHEMA.columns, **changed})
  table = pa.table({"city": ["a", "b"] * 50, "item": ["1", "2"] * 50, "age": [1.0, 2.0] * 50,
                    "agent": ["x", "y"] * 50, "click": [0, 1] * 50})  # fmt: skip
  other = data.from_arrow(table, label="click", schema=schema, embedding_dim=4)
  run = prepared(config(), tmp_path / "new", other)
  with pytest.raises(ConfigError, match=f"warm start: {message}"):
    warm_start.warm_start(run, earlier)


def test_a_refit_whose_earlier_folder_is_gone_says_what_is_safe_and_goes_on_later(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  rng = np.random.default_rng(0)
  path = tmp_path / "clicks.csv"
  lines = [f"{rng.integers(9)},{rng.integers(5)},{k % 2}" for k in range(400)]
  path.write_text("a,b,click\n" + "\n".join(lines) + "\n")
  settings = config(
    data=experiment.DataConfig("table", data_dir=str(path), labels=("click",), crosses=("a*b",)),
    steps=6,
    eval_every=6,
  )
  loop.run(settings, str(tmp_path / "old"))
  warm = dataclasses.replace(settings, warm_start=str(tmp_path / "old"), refit=True)

  class GoneInTheMeantime(loop.Loop):
    def train(self, *args):
      super().train(*args)
      (tmp_path / "old").rename(tmp_path / "away")

  with monkeypatch.context() as patch:
    patch.setattr(loop, "Loop", GoneInTheMeantime)
    message = (
      "the refit starts from .*old as the run did, and now .*no such folder.*bring that fold"
    )
    with pytest.raises(workdir.WorkdirError, match=message):
      loop.run(warm, str(tmp_path / "run"))
  (tmp_path / "away").rename(tmp_path / "old")
  assert loop.run(warm, str(tmp_path / "run"))["steps"] == 6
