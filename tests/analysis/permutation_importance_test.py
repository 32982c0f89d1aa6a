"""Permutation importance: laws, and a naive computation over whole arrays."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxrec import config, data
from jaxrec.analysis import permutation_importance
from jaxrec.data import pipeline
from jaxrec.data.pipeline import shuffle
from jaxrec.inputs import id_bags
from jaxrec.training import metrics
from tests.data import tiny_clicks

TINY = tiny_clicks.TinyClicks(seed=1)
ROWS = {
  feature.name: np.random.default_rng(number).normal(size=feature.table.vocab_size)
  for number, feature in enumerate(TINY.spec.features)
}
KERNEL = np.array([1.5, -0.5])


def scores(batch, used=("user", "item", "tags", "age", "price")):
  """f32[B] logits of a linear model over some of the inputs, one example at a time."""
  logits = []
  for b in range(batch.batch_size):
    logit = sum(
      KERNEL[i] * float(batch.dense[b, i]) for i in range(2) if ("age", "price")[i] in used
    )
    for name in ("user", "item", "tags"):
      if name in used:
        logit += sum(ROWS[name][i] for i in batch.ids[name].to_lists()[b])
    logits.append(logit)
  return np.array(logits, np.float32)


def metrics_of(batch_size=64, used=("user", "item", "tags", "age", "price")):
  """A model's exact metrics on a source, as ``measure`` wants them."""

  def judge(source):
    found = pipeline.batches(source, batch_size, split=permutation_importance.IN_ORDER)
    parts = (
      metrics.BinaryMetrics.from_batch(scores(b, used), b.labels["click"], b.weights) for b in found
    )
    return metrics.merge_all(parts).compute()

  return judge


def naive(source, size, name, repeats, seed):
  """Mean and deviation of the AUC's fall and the log loss's rise, over whole arrays."""
  whole = source.read(np.arange(size), "val")
  labels = whole.labels["click"]

  def judged(batch):
    x = scores(batch).astype(np.float64)
    pairs = np.sign(x[labels == 1][:, None] - x[labels == 0][None, :])
    p = 1 / (1 + np.exp(-x))
    return (pairs.mean() + 1) / 2, -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))

  base, changes = judged(whole), []
  for repeat in range(repeats):
    moved = shuffle.permuted(np.arange(size), num_examples=size, seed=seed, epoch=repeat)
    if name in ("age", "price"):
      dense = whole.dense.copy()
      dense[:, ("age", "price").index(name)] = dense[moved, ("age", "price").index(name)]
      batch = whole.replace(dense=dense)
    elif name == "tags":
      lists = whole.ids[name].to_lists()
      bags = id_bags.IdBags.from_lists([lists[k] for k in moved])
      batch = whole.replace(ids=whole.ids | {name: bags})
    else:
      batch = whole.replace(
        ids=whole.ids | {name: id_bags.IdBags.single(whole.ids[name].values[moved])}
      )
    auc, logloss = judged(batch)
    changes.append((base[0] - auc, logloss - base[1]))
  return np.mean(changes, axis=0), np.std(changes, axis=0, ddof=1)


@pytest.mark.parametrize("size", [150, 70])
def test_importances_equal_a_naive_computation_over_the_whole_split(size):
  source = permutation_importance.Evaluated(TINY, "val", size)
  found = permutation_importance.measure(source, metrics_of(), repeats=3, seed=5)
  assert sorted(i.name for i in found) == ["age", "item", "price", "tags", "user"]
  for row in found:
    means, spreads = naive(TINY, size, row.name, 3, 5)
    assert (row.auc_drop, row.logloss_rise) == pytest.approx(tuple(means), rel=1e-6, abs=1e-9)
    assert (row.auc_spread, row.logloss_spread) == pytest.approx(tuple(spreads), rel=1e-5, abs=1e-9)
  assert [i.auc_drop for i in found] == sorted((i.auc_drop for i in found), reverse=True)
  assert found[0].auc_drop > 0.01


def test_the_size_of_batches_changes_nothing_and_the_seed_does():
  source = permutation_importance.Evaluated(TINY, "val", 150)
  found = permutation_importance.measure(source, metrics_of(64), repeats=2)
  assert permutation_importance.measure(source, metrics_of(17), repeats=2) == found
  assert permutation_importance.measure(source, metrics_of(64), repeats=2, seed=1) != found


def test_an_input_that_the_model_ignores_has_no_importance_at_all():
  source = permutation_importance.Evaluated(TINY, "val", 150)
  found = {
    i.name: i for i in permutation_importance.measure(source, metrics_of(used=("user", "age")))
  }
  for name in ("item", "tags", "price"):
    assert dataclasses.astuple(found[name])[1:] == (0.0, 0.0, 0.0, 0.0)
  assert found["user"].auc_drop != 0 and found["age"].auc_drop != 0


@dataclasses.dataclass(frozen=True)
class Decided(tiny_clicks.TinyClicks):
  """Clicks that are a function of the user."""

  def read(self, indices, split="train"):
    batch = super().read(indices, split)
    clicks = (ROWS["user"][batch.ids["user"].values] > 0).astype(np.float32)
    return batch.replace(labels={"click": clicks})


def test_without_its_only_informative_input_a_model_guesses():
  source = permutation_importance.Evaluated(Decided(seed=1), "train", 1000)
  judge = metrics_of(250, used=("user",))
  assert judge(source)["auc"] == 1.0
  (user, *others) = permutation_importance.measure(source, judge, repeats=3)
  assert user.name == "user" and 1 - user.auc_drop == pytest.approx(0.5, abs=0.05)
  assert user.logloss_rise > 0.3 and {i.auc_drop for i in others} == {0.0}


@pytest.mark.parametrize(
  "which", permutation_importance.inputs(TINY.spec), ids=lambda which: which.name
)
def test_one_input_is_permuted_across_the_split_and_all_else_stays(which):
  plain = permutation_importance.Evaluated(TINY, "val", 150)
  permuted = permutation_importance.Permuted(plain, which, seed=3)
  before, after = (
    s.read(np.arange(150), permutation_importance.IN_ORDER) for s in (plain, permuted)
  )
  for name in before.ids:
    old, new = ([tuple(b) for b in batch.ids[name].to_lists()] for batch in (before, after))
    assert sorted(new) == sorted(old) and (new != old) == (name == which.name)
  for column in range(2):
    old, new = before.dense[:, column], after.dense[:, column]
    assert sorted(new) == sorted(old) and (new != old).any() == (column == which.column)
  for field in ("labels", "weights", "groups"):
    np.testing.assert_equal(getattr(after, field), getattr(before, field))
  # Examples read in pieces are those of the whole, so the permutation spans the split.
  piece = permuted.read(np.array([149, 3]), permutation_importance.IN_ORDER)
  assert [piece.ids["tags"].to_lists(), piece.dense.tolist()] == [
    [after.ids["tags"].to_lists()[k] for k in (149, 3)], after.dense[[149, 3]].tolist()
  ]  # fmt: skip


def test_a_bag_moves_with_its_weights():
  features = [
    config.FeatureConfig("tags", config.TableConfig("tags", 90, 4), ids_per_bag=3, weighted=True)
  ]
  source = permutation_importance.Evaluated(data.synthetic(features, num_dense=1), "test", 50)
  permuted = permutation_importance.Permuted(source, permutation_importance.Input("tags"))

  def bags(batch):
    found = batch.ids["tags"]
    splits = list(zip(found.row_splits[:-1], found.row_splits[1:], strict=True))
    return sorted(tuple(zip(found.values[a:b], found.weights[a:b], strict=True)) for a, b in splits)

  assert bags(permuted.read(np.arange(50))) == bags(source.read(np.arange(50)))


def test_the_number_of_repeats_is_checked():
  with pytest.raises(config.ConfigError, match="repeats: must be at least 1, got 0"):
    permutation_importance.measure(
      permutation_importance.Evaluated(TINY, "val", 9), metrics_of(), repeats=0
    )
