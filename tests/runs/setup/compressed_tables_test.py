"""Compressed tables train end to end: ids are split, vectors merged, and nobody else knows."""

from __future__ import annotations

import collections
import dataclasses
import pickle

import jax
import numpy as np
import optax
import pytest

from jaxrec import config, data, features, layers, models, tables, training
from jaxrec.config import experiment as experiment_lib
from jaxrec.data import pipeline
from jaxrec.runs import loop
from jaxrec.runs.setup import compressed_tables
from jaxrec.training import evaluation, state
from tests.data import tiny_clicks
from tests.runs import run_helpers
from tests.runs.loop_test import Watcher, cache, tiny  # noqa: F401

SPLIT = experiment_lib.CompressionConfig("quotient_remainder", threshold=20, num_collisions=4)


def model() -> models.DLRM:
  return models.DLRM(bottom_mlp=(8, 4), top_mlp=(8, 1))


def test_split_ids_name_the_row_that_the_whole_table_would_have():
  source = tiny_clicks.TinyClicks(seed=0)
  small, _ = compressed_tables.compressed(source, model(), SPLIT)
  indices = np.arange(100)
  before, after = source.read(indices), small.read(indices)
  names = [feature.name for feature in small.spec.features]
  assert names == ["user/quotient", "user/remainder", "item/quotient", "item/remainder", "tags"]
  assert set(after.ids) == set(names)
  for name in ("user", "item"):
    quotients, remainders = (after.ids[name + part].values for part in ("/quotient", "/remainder"))
    np.testing.assert_array_equal(quotients * 4 + remainders, before.ids[name].values)
  np.testing.assert_array_equal(after.ids["tags"].values, before.ids["tags"].values)
  np.testing.assert_array_equal(after.labels["click"], before.labels["click"])
  assert small.num_examples("val") == 150


def test_the_model_sees_the_merged_vectors():
  source = tiny_clicks.TinyClicks(seed=0)
  small, wrapped = compressed_tables.compressed(source, model(), SPLIT)
  tx = training.Optimizers(dense=optax.sgd(0.1), rows=tables.rowwise_adagrad(0.1))
  current = state.init_state(jax.random.key(0), wrapped, small.spec, tx=tx)
  (batch,) = pipeline.batches(small, 32, num_steps=1)
  logits = evaluation.predict(wrapped, current.params, current.tables, batch)
  vectors = {
    name: np.asarray(current.tables.table(f"{name}/quotient"))[batch.ids[f"{name}/quotient"].values]
    * np.asarray(current.tables.table(f"{name}/remainder"))[batch.ids[f"{name}/remainder"].values]
    for name in ("user", "item")
  }
  bags = batch.ids["tags"].to_lists()
  tags = np.asarray(current.tables.table("tag"))
  vectors["tags"] = np.stack([tags[bag].mean(0) if bag else np.zeros(4) for bag in bags])
  inner = {"params": current.params["params"]["model"]}
  expected = model().apply(
    inner,
    batch.dense,
    collections.OrderedDict((k, v.astype(np.float32)) for k, v in vectors.items()),
  )
  np.testing.assert_allclose(logits, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("operation", ["mult", "add", "concat"])
def test_a_run_with_split_tables_learns_and_says_how_much_smaller_they_are(operation, tmp_path):
  source = tiny_clicks.TinyClicks(seed=0)
  shown = Watcher()
  settings = run_helpers.tiny_config(
    "compression.kind=quotient_remainder",
    "compression.threshold=20",
    f"compression.operation={operation}",
    "baseline_steps=8",
    "eval_every=24",
  )
  result = loop.run(settings, str(tmp_path / "run"), terminal=shown)
  assert result["auc"] > 0.55
  small, _ = compressed_tables.compressed(source, model(), settings.compression)
  ratio = compressed_tables.memory_ratio(small)
  assert ratio == layers.memory_ratio(source.spec.features, small.spec.features) > 1.5
  assert f"quotient_remainder: {ratio:.1f}x smaller" in shown.text.getvalue()


def test_mixed_dimensions_narrow_the_large_tables_and_the_model_projects_them(tmp_path):
  source = tiny_clicks.TinyClicks(seed=0)
  mixed = experiment_lib.CompressionConfig("mixed_dims", threshold=0, alpha=1.0)
  small, same = compressed_tables.compressed(source, model(), mixed)
  widths = {feature.name: feature.table.embedding_dim for feature in small.spec.features}
  assert widths == {"user": 1, "item": 1, "tags": 4}  # 1/40, 1/30 and 3/20 lookups a row
  assert same == model()
  settings = run_helpers.tiny_config(
    "compression.kind=mixed_dims",
    "compression.threshold=0",
    "compression.alpha=1",
    "eval_every=24",
  )
  assert loop.run(settings, str(tmp_path / "run"))["auc"] > 0.55


def test_mixed_dimensions_fit_a_model_whose_width_is_no_power_of_two(tmp_path):
  settings = run_helpers.tiny_config(
    "compression.kind=mixed_dims",
    "compression.threshold=0",
    "model.embedding_dim=5",
    "model.bottom_mlp=8,5",
    "steps=2",
  )
  assert loop.run(settings, str(tmp_path / "run"))["steps"] == 2


def test_a_source_with_small_tables_travels_to_worker_processes():
  small, _ = compressed_tables.compressed(tiny_clicks.TinyClicks(seed=0), model(), SPLIT)
  again = pickle.loads(pickle.dumps(small))
  assert again == small


def test_an_id_that_the_whole_table_lacks_is_refused_before_it_is_split():
  source = tiny_clicks.TinyClicks(seed=0, fault="id_out_of_range")  # id 30 of 30: a quotient of 7
  small, _ = compressed_tables.compressed(source, model(), SPLIT)
  with pytest.raises(features.BadExampleError, match=r"feature 'item': id 30 is out.*ids 0\.\.29"):
    list(pipeline.batches(small, 64, num_steps=16))
  low = dataclasses.replace(SmallIds(seed=0), first_id=-7)
  small, _ = compressed_tables.compressed(low, model(), SPLIT)
  with pytest.raises(features.BadExampleError, match=r"feature 'user': id -7 .* \(split 'test'\)"):
    small.read(np.arange(4), "test")


@dataclasses.dataclass(frozen=True)
class SmallIds(tiny_clicks.TinyClicks):
  first_id: int = -1

  def read(self, indices, split="train"):
    batch = super().read(indices, split)
    values = batch.ids["user"].values.copy()
    values[0] = self.first_id
    return batch.replace(ids=batch.ids | {"user": features.IdBags(values=values)})


def test_an_absent_id_stays_absent_when_it_is_split():
  small, _ = compressed_tables.compressed(SmallIds(seed=0), model(), SPLIT)
  ids = small.read(np.arange(4)).ids
  assert ids["user/quotient"].values[0] == ids["user/remainder"].values[0] == -1


def test_a_compressed_source_offers_its_own_batches_and_what_describes_the_data():
  clicks = data.synthetic(data.default_features()[:3], num_dense=2, seed=0)
  small, _ = compressed_tables.compressed(clicks, model(), SPLIT)
  (batch,) = small.batches(8, num_steps=1, split="test")
  assert set(batch.ids) == {feature.name for feature in small.spec.features}
  assert small.describe() == clicks.describe()
  assert small.ceiling(1000) == clicks.ceiling(1000)
  assert not hasattr(small, "teacher_logits")
  tiny_source, _ = compressed_tables.compressed(tiny_clicks.TinyClicks(seed=0), model(), SPLIT)
  assert not hasattr(tiny_source, "ceiling")


def test_an_unknown_kind_names_the_known_ones():
  with pytest.raises(
    config.ConfigError, match="compression.kind: 'mixed'; did you mean 'mixed_dims"
  ):
    experiment_lib.CompressionConfig("mixed")
