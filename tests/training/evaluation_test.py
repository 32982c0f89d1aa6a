"""Each label, and each value of a group, is measured as if it were alone."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import optax
import pytest

from jaxrec import models, tables, training
from jaxrec.data import pipeline
from jaxrec.training import evaluation, metrics, slices
from tests.data import tiny_clicks

LABELS = ("click", "like")


@functools.cache
def scored():
  """A model of two labels, the batches of a split (the last one padded), and its logits."""
  source = tiny_clicks.TinyClicks(seed=0, labels=LABELS)
  model = models.DLRM(bottom_mlp=(8, 4), top_mlp=(8, 2))
  tx = training.Optimizers(dense=optax.adam(1e-2), rows=tables.rowwise_adagrad(0.5))
  state = training.init_state(jax.random.key(0), model, source.spec, tx=tx)
  step = jax.jit(training.make_step(model, tx, label=LABELS))
  for batch in pipeline.batches(source, 64, num_steps=20):
    state, _ = step(state, batch)
  batches = list(pipeline.batches(source, 64, split="val"))
  assert (batches[-1].weights == 0).any()
  logits = [np.asarray(training.predict(model, state.params, state.tables, b)) for b in batches]
  return model, state, batches, logits


def oracle(logits, labels, weights):
  """AUC, log loss and calibration in float64, by comparing all pairs."""
  x, y, w = (np.asarray(a, np.float64) for a in (logits, labels, weights))
  pairs = np.float32(logits)[:, None] - np.float32(logits)[None, :]
  pair_weights = np.outer(w * y, w * (1 - y))
  wins = (pair_weights * ((pairs > 0) + 0.5 * (pairs == 0))).sum()
  return {
    "auc": wins / pair_weights.sum() if pair_weights.sum() else math.nan,
    "logloss": (w * (y * np.logaddexp(0, -x) + (1 - y) * np.logaddexp(0, x))).sum() / w.sum(),
    "calibration": (w / (1 + np.exp(-x))).sum() / (w * y).sum() if (w * y).sum() else math.nan,
    "examples": np.count_nonzero(w),
  }


def columns_of(batches, logits):
  """Everything end to end: logits f32[n, T], labels by name, weights, groups by name."""
  return (
    np.concatenate(logits),
    {name: np.concatenate([b.labels[name] for b in batches]) for name in LABELS},
    np.concatenate([b.weights for b in batches]),
    {name: np.concatenate([b.groups[name] for b in batches]) for name in ("user", "day")},
  )


def test_each_label_has_the_figures_of_a_single_task_oracle_on_its_logits():
  model, state, batches, logits = scored()
  figures = training.evaluate(model, state, batches, label=LABELS, group="user")
  x, labels, weights, _ = columns_of(batches, logits)
  for column, (label, prefix) in enumerate({"click": "", "like": "like/"}.items()):
    expected = oracle(x[:, column], labels[label], weights)
    for name, value in expected.items():
      assert figures[prefix + name] == pytest.approx(value, rel=1e-6), (label, name)
    single = [
      metrics.BinaryMetrics.from_batch(
        part[:, column], b.labels[label], b.weights, b.groups["user"]
      )
      for part, b in zip(logits, batches, strict=True)
    ]
    for name, value in metrics.merge_all(single).compute().items():
      assert figures[prefix + name] == value, (label, name)
  assert figures["auc"] != figures["like/auc"] and figures["examples"] == 150


def test_the_order_of_labels_is_that_of_the_logits():
  model, state, batches, _ = scored()
  there = training.evaluate(model, state, batches, label=LABELS)
  swapped = training.evaluate(model, state, batches, label=LABELS[::-1])
  assert swapped["auc"] != there["like/auc"]  # column 0 against the labels of column 1


def test_a_model_with_another_number_of_logits_is_refused():
  model, state, batches, _ = scored()
  with pytest.raises(ValueError, match="yields 2 logits an example for 1 labels .click.; end its"):
    training.evaluate(model, state, batches)


def test_no_batches_have_no_figures():
  model, state, _, _ = scored()
  figures = training.evaluate(model, state, [], label=LABELS)
  assert figures["examples"] == figures["like/examples"] == 0 and math.isnan(figures["auc"])


def test_each_value_of_a_group_has_the_figures_of_its_examples_alone():
  model, state, batches, logits = scored()
  figures, found = slices.evaluate(
    model, state, batches, labels=LABELS, group="user", columns=("day", "user")
  )
  assert figures == training.evaluate(model, state, batches, label=LABELS, group="user")
  x, labels, weights, groups = columns_of(batches, logits)
  for name in ("day", "user"):
    values = set(groups[name][weights > 0].tolist())
    assert {one["value"] for one in found[name]} == values and len(found[name]) == len(values)
    for one in found[name]:
      chosen = groups[name] == one["value"]
      for column, (label, prefix) in enumerate({"click": "", "like": "like/"}.items()):
        expected = oracle(x[chosen, column], labels[label][chosen], weights[chosen])
        for figure, value in expected.items():
          assert one[prefix + figure] == pytest.approx(value, rel=1e-6, nan_ok=True), (name, one)
        alone = metrics.BinaryMetrics.from_batch(
          x[chosen, column], labels[label][chosen], weights[chosen]
        ).compute()
        for figure in ("auc", "logloss", "calibration"):
          np.testing.assert_equal(one[prefix + figure], alone[figure])
  sizes = [one["examples"] for one in found["day"]]
  assert sizes == sorted(sizes, reverse=True) and sum(sizes) == 150
  assert len({one["auc"] for one in found["day"]}) == 7


def test_negative_values_and_weights_keep_their_places():
  logits = np.float32([0.5, -1.0, 2.0, 0.1, 0.3])
  counts = metrics.BinaryMetrics.from_batch(
    logits, [1, 0, 1, 0, 1], [1, 2, 0.5, 3, 0], np.int32([-5, -5, 2**31 - 1, 0, 0])
  ).counts
  by_value = slices._by_value(counts)
  assert set(by_value) == {-5, 2**31 - 1, 0}
  assert by_value[-5].negatives.tolist() == [2, 0] and by_value[0].negatives.tolist() == [3]
  assert slices._by_value(metrics.ScoreCounts.empty()) == {}


def test_a_split_without_examples_has_no_slices():
  model, state, _, _ = scored()
  figures, found = slices.evaluate(model, state, [], labels=LABELS, columns=("day",))
  assert figures["examples"] == 0 and found == {"day": []}
  assert len(slices.table("day", [])) == 1


def test_the_table_shows_the_ten_largest_values_and_says_how_many_more_there_are():
  rows = [
    {"value": f"v{i}", "examples": 1200 - i, "auc": 0.7, "logloss": 0.25, "calibration": 1.01}
    for i in range(12)
  ]
  rows[1]["auc"] = math.nan
  lines = slices.table("country", rows)
  assert lines[0].split() == ["country", "examples", "auc", "logloss", "calibration"]
  assert lines[1].split() == ["v0", "1,200", "0.700", "0.250", "1.01"]
  assert lines[2].split() == ["v1", "1,199", "nan", "0.250", "1.01"]
  assert len(lines) == 1 + 10 + 1 and lines[-1] == " ... and 2 smaller ones in result.json"
  assert len({len(line) for line in lines[:-1]}) == 1


def test_scored_keeps_the_order_of_batches():
  model, state, batches, logits = scored()
  found = list(evaluation.scored(model, state, iter(batches)))
  for (ours, seen), batch, expected in zip(found, batches, logits, strict=True):
    assert seen is batch
    np.testing.assert_array_equal(ours, expected)
