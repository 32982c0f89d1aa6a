"""A data set read twice, and Wide & Deep trained end to end (laws W3, W7, W8)."""

from __future__ import annotations

import dataclasses
import pickle

import jax
import numpy as np
import pyarrow as pa
import pytest

from jaxrec import data, serving
from jaxrec.config import Initializer, experiment
from jaxrec.data.views import view as view_lib
from jaxrec.data.views import wide_features
from jaxrec.features.schema import Column, Cross, Schema
from jaxrec.runs import loop, open_run, terminal, workdir
from jaxrec.runs.setup import run as run_lib
from tests.data import tiny_clicks

SCHEMA = Schema(
  {"click": None},
  {"a": Column("categorical"), "b": Column("categorical"), "tags": Column("list")},
  crosses={"a*b": Cross(("a", "b")), "a*tags": Cross(("a", "tags"))},
)
FTRL = experiment.FtrlConfig(learning_rate=0.1, l1=1e-4)


def planted(seed: int, size: int, num_values: int = 40) -> pa.Table:
  """Clicks with both kinds of structure: a smooth one of a factor, that embeddings find, and exact
  pairs, that only memory has; a few pairs are frequent and most are rare.
  """
  truth, rng = np.random.default_rng(77), np.random.default_rng(seed)
  factors = truth.normal(0, 1.0, (2, num_values))
  signs = truth.choice([-3.0, 3.0], (num_values, num_values))
  exact = np.where(truth.random((num_values, num_values)) < 0.15, signs, 0.0)
  popularity = 1 / np.arange(1, num_values + 1) ** 0.8
  a, b = rng.choice(num_values, (2, size), p=popularity / popularity.sum())
  logit = 1.5 * factors[0][a] * factors[1][b] + exact[a, b] - 0.3
  return pa.table({
    "a": a,
    "b": b,
    "tags": [[int(k)] for k in rng.integers(0, 5, size)],
    "click": (rng.random(size) < 1 / (1 + np.exp(-logit))).astype(int),
  })  # fmt: skip


def config(model: str = "wide_deep", **changes) -> experiment.ExperimentConfig:
  fields = {
    "data": experiment.DataConfig("table"),
    "model": experiment.ModelConfig(model, 4, top_mlp=(16, 1)),
    "optimizer": experiment.OptimizerConfig(table_learning_rate=0.05, ftrl=FTRL),
    "steps": 60,
    "eval_every": 60,
    "batch_size": 128,
    "eval_examples": 0,
    "baseline_steps": 0,
  }
  return experiment.ExperimentConfig(**{**fields, **changes})


@pytest.fixture(scope="module")
def clicks() -> data.StoredTable:
  return data.from_arrow(planted(0, 4000), label="click", schema=SCHEMA, embedding_dim=4)


def test_ids_are_read_twice_and_crosses_once(clicks):
  both, wide = wide_features.widened(clicks, has_wide=True, has_deep=True)
  names = [feature.name for feature in both.spec.features]
  assert names == ["a", "b", "tags", *wide]
  assert wide == ("wide/a", "wide/b", "wide/tags", "wide/a*b", "wide/a*tags")
  indices = np.arange(50)
  before, after = clicks.read(indices), both.read(indices)
  assert set(after.ids) == set(names)
  for name in names:
    source = before.ids[name.removeprefix("wide/")]
    assert after.ids[name].to_lists() == source.to_lists()
  for feature in both.spec.features[3:]:
    table = feature.table
    assert (table.embedding_dim, table.optimizer, feature.combiner) == (1, "wide", "sum")
    assert table.initializer == Initializer("constant", 0.0)
  for has_wide, has_deep, expected in ((True, False, list(wide)), (False, True, names[:3])):
    part, _ = wide_features.widened(clicks, has_wide=has_wide, has_deep=has_deep)
    assert [feature.name for feature in part.spec.features] == expected
    assert set(part.read(indices).ids) == set(expected)
  assert wide_features.sources(both) == {name: name.removeprefix("wide/") for name in wide}
  assert wide_features.sources(clicks) == {}


def test_a_view_hides_what_it_does_not_know_and_goes_to_other_processes(clicks):
  view, _ = wide_features.widened(clicks, has_wide=True, has_deep=True)
  assert view.describe() == clicks.describe() and view.num_examples("val") > 0
  with pytest.raises(AttributeError, match="no attribute 'transforms'"):
    view.transforms  # noqa: B018
  again = pickle.loads(pickle.dumps(view))
  assert again.spec == view.spec
  assert view_lib.original(view) is clicks
  other = tiny_clicks.TinyClicks(seed=0)
  assert view_lib.around(view, other).source is other and view_lib.around(clicks, other) is other
  batch = clicks.read(np.arange(5))
  assert set(view_lib.convert(view, batch).ids) == set(view.read(np.arange(5)).ids)


def run_of(settings, path, dataset) -> run_lib.Run:
  return run_lib.build(settings, workdir.Workdir(path), terminal.silent(), dataset)


def test_wide_weights_have_an_optimizer_of_their_own_and_end_at_exact_zeros(clicks, tmp_path):
  settings = config(
    optimizer=dataclasses.replace(
      config().optimizer, ftrl=dataclasses.replace(FTRL, l1=0.02), l2_rows=0.1
    )
  )
  loop.run(settings, str(tmp_path / "run"), dataset=clicks)
  found = open_run.reopen(str(tmp_path / "run"), dataset=clicks)
  tables = found.state.tables
  stacks = {stack.optimizer: stack.name for stack in tables.plan.stacks}
  leaves = {label: found.state.row_state.rows[name] for label, name in stacks.items()}
  assert len(leaves[None]) == 1 and len(leaves["wide"]) == 2  # Adagrad's sum; FTRL's z and n
  z, n = leaves["wide"]
  weights = np.asarray(tables.values[stacks["wide"]])
  seen = np.asarray(n) > np.float32(FTRL.initial_accumulator)
  assert 0 < np.count_nonzero(weights) < np.count_nonzero(seen) < weights.size
  at_zero = seen & (weights == 0)
  assert (np.abs(np.asarray(z))[at_zero] <= np.float32(0.02)).all() and at_zero.any()
  np.testing.assert_array_equal(np.asarray(z)[~seen], 0)  # rows never touched (law W2)


def test_the_penalty_on_rows_is_not_on_those_of_ftrl(clicks, tmp_path):
  weights = []
  for l2_rows in (0.0, 0.5):
    path = str(tmp_path / str(l2_rows))
    optimizer = dataclasses.replace(config().optimizer, l2_rows=l2_rows)
    settings = config("wide", steps=10, eval_every=10, optimizer=optimizer)
    loop.run(settings, path, dataset=clicks)
    tables = open_run.reopen(path, dataset=clicks).state.tables
    weights.append(np.asarray(tables.table("wide/a*b")))
  np.testing.assert_array_equal(*weights)
  assert weights[0].any()


def test_it_serves_what_it_evaluated(clicks, tmp_path):
  settings = config(steps=20, eval_every=20)
  loop.run(settings, str(tmp_path / "run"), dataset=clicks)
  found = open_run.reopen(str(tmp_path / "run"), dataset=clicks)
  table = planted(5, 64).drop_columns(["click"])
  predictor = serving.load(str(tmp_path / "run"))
  whole = predictor.predict(table)
  assert whole.shape == (64,) and np.ptp(whole) > 0.01
  one_by_one = np.concatenate([predictor.predict(table.slice(k, 1)) for k in range(8)])
  np.testing.assert_array_equal(one_by_one, whole[:8])
  batch = view_lib.convert(found.run.dataset, clicks.transforms.batch(table))
  logit = np.zeros(64, np.float64)
  for name in found.run.model.wide:
    feature = next(f for f in found.run.spec.features if f.name == name)
    weights = np.asarray(found.state.tables.table(feature.table.name))[:, 0]
    logit += [weights[bag].sum() for bag in batch.ids[name].to_lists()]
  silent = jax.tree.map(np.zeros_like, found.state.params)
  wide_alone = dataclasses.replace(predictor, state=found.state.replace(params=silent))
  np.testing.assert_allclose(wide_alone.predict(table), 1 / (1 + np.exp(-logit)), rtol=1e-5)


@pytest.mark.parametrize("kind", ["quotient_remainder", "mixed_dims"])
def test_compression_leaves_the_wide_part_alone(clicks, tmp_path, kind):
  compression = experiment.CompressionConfig(kind, threshold=20, operation="add", alpha=0.5)
  run = run_of(config(compression=compression), tmp_path / "run", clicks)
  names = [feature.name for feature in run.spec.features]
  assert ("a/quotient" in names) == (kind == "quotient_remainder")
  wide = [feature for feature in run.spec.features if feature.name in run.model.model.wide] if (
    kind == "quotient_remainder"
  ) else [f for f in run.spec.features if f.name in run.model.wide]  # fmt: skip
  assert len(wide) == 5 and {feature.table.embedding_dim for feature in wide} == {1}
  if kind == "mixed_dims":
    assert {f.table.embedding_dim for f in run.spec.features[:3]} != {4}
  result = loop.run(
    config(compression=compression, steps=10, eval_every=10), str(tmp_path / "r"), dataset=clicks
  )
  assert result["steps"] == 10


def test_several_labels_have_a_weight_each(tmp_path):
  table = planted(0, 2000)
  table = table.append_column("like", table["click"])
  schema = dataclasses.replace(SCHEMA, labels={"click": None, "like": None})
  both = data.from_arrow(table, label=("click", "like"), schema=schema, embedding_dim=4)
  result = loop.run(config(steps=30, eval_every=30), str(tmp_path / "run"), dataset=both)
  found = open_run.reopen(str(tmp_path / "run"), dataset=both)
  assert found.state.tables.table("wide/a*b").shape[1] == 2
  assert 0.5 < result["auc"] < 1
  loop.run(config("wide", steps=10, eval_every=10), str(tmp_path / "wide"), dataset=both)


def test_a_data_set_without_a_table_is_widened_too(tmp_path):
  settings = config(steps=10, eval_every=10)
  run = run_of(settings, tmp_path / "run", tiny_clicks.TinyClicks(seed=0))
  assert run.model.wide == ("wide/user", "wide/item", "wide/tags")
  result = loop.run(settings, str(tmp_path / "r"), dataset=tiny_clicks.TinyClicks(seed=0))
  assert result["model"] == "wide_deep"


@pytest.mark.nightly
def test_on_planted_clicks_both_parts_beat_each_by_a_hundredth(nightly, tmp_path):
  """Law W7."""
  clicks = data.from_arrow(
    planted(1, 60_000, 300), label="click", schema=SCHEMA, embedding_dim=4, test_fraction=0.3
  )
  margins = []
  for seed in range(nightly.trials(3, sample=1)):
    found = {}
    for model in ("wide_deep", "wide", "deep"):
      settings = config(
        model,
        epochs=8,
        eval_every=0,
        early_stop_patience=3,
        seed=seed,
        optimizer=experiment.OptimizerConfig(
          table_learning_rate=0.05, ftrl=experiment.FtrlConfig(learning_rate=0.1, l1=1e-3)
        ),
      )
      settings = dataclasses.replace(
        settings, model=experiment.ModelConfig(model, 4, top_mlp=(32, 1))
      )
      path = str(tmp_path / f"{model}{seed}")
      found[model] = loop.run(settings, path, dataset=clicks)["auc"]
    margins.append(found["wide_deep"] - max(found["wide"], found["deep"]))
  assert np.mean(margins) > 0.01, margins


def with_rows_more(more: int):
  """A run with so many rows more in its wide stack."""
  cross = Cross(("b", "tags"), encoding="hash", num_hash_buckets=100 + more)
  schema = dataclasses.replace(SCHEMA, crosses={**SCHEMA.crosses, "b*tags": cross})
  clicks = data.from_arrow(planted(0, 4000), label="click", schema=schema, embedding_dim=4)
  return run_of(config(), "/nowhere", clicks)


def test_a_sharded_run_equals_that_of_one_device():
  """Law W8, by the compiler's own partitioning; sharding of jaxrec's own has its own tests."""
  rows = with_rows_more(0).initial_state().tables.values["d1_float32_wide"].shape[0]
  run = with_rows_more(-rows % 8)
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))

  def spread(leaf):  # whole stacks and their moments by rows, where these can be dealt out evenly
    is_dealt = leaf.ndim > 0 and leaf.shape[0] % 8 == 0 and leaf.shape[0] > 100
    axes = jax.sharding.PartitionSpec(*["rows"] * is_dealt)
    return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, axes))

  step = jax.jit(run.step_fn())

  def train(state):
    for batch in run.train_batches(0, 20):
      state, _ = step(state, batch)
    return jax.tree.map(np.asarray, (state.tables, state.row_state, state.params))

  first = run.initial_state()
  alone = train(first)
  dealt = first.replace(
    tables=jax.tree.map(spread, first.tables),
    row_state=jax.tree.map(spread, first.row_state),
    params=jax.tree.map(spread, first.params),
    opt_state=jax.tree.map(spread, first.opt_state),
    step=spread(first.step),
    rng=first.rng,
  )
  wide = dealt.tables.values["d1_float32_wide"]
  assert len(wide.sharding.device_set) == 8
  assert wide.addressable_shards[0].data.shape[0] * 8 == len(wide)
  together = train(dealt)
  for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
    assert np.abs(a - b).max(initial=0) <= 1e-5 * max(np.abs(a).max(initial=0), 1e-3), a.shape
  assert np.abs(alone[0].values["d1_float32_wide"]).max() > 0.01
