"""Law M5: AUC equals the exact rank statistic, with ties, streaming and sharded."""

from __future__ import annotations

import fractions
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.training import metrics

NAN = float("nan")
FIELDS = ("keys", "positives", "negatives")


def oracle_auc(scores, labels, weights):
  """Every positive against every negative, in exact fractions; None when a class is absent."""
  rows = list(zip(map(float, scores), map(int, labels), map(float, weights), strict=True))
  wins = pairs = fractions.Fraction(0)
  for score, label, weight in rows:
    for other_score, other_label, other_weight in rows:
      if label == 1 and other_label == 0:
        product = fractions.Fraction(weight) * fractions.Fraction(other_weight)
        pairs += product
        wins += product * fractions.Fraction((score > other_score) + (score >= other_score), 2)
  return wins / pairs if pairs else None


def oracle_gauc(scores, labels, weights, groups):
  """Mean of the groups' AUCs by weight, over groups with both classes."""
  total = impressions = fractions.Fraction(0)
  for group in set(groups.tolist()):
    member = groups == group
    auc = oracle_auc(scores[member], labels[member], weights[member])
    if auc is not None:
      size = sum(map(fractions.Fraction, weights[member].tolist()))
      total, impressions = total + size * auc, impressions + size
  return total / impressions if impressions else None


def assert_equals_oracle(actual, expected):
  if expected is None:
    assert np.isnan(actual)
  else:
    assert actual == pytest.approx(float(expected), rel=1e-13)


def assert_same_counts(a, b):
  for field in FIELDS:
    np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


@st.composite
def batches(draw, max_examples=24):
  """(scores, labels, integer weights, groups) with many ties, both zeros and both signs."""
  count = draw(st.integers(0, max_examples))
  score = st.sampled_from([-3.0, -1.5, -0.0, 0.0, 1e-40, 0.5, 0.5000001, 2.0, float("-inf")])

  def column(elements, dtype):
    return np.array(draw(st.lists(elements, min_size=count, max_size=count)), dtype)

  return (
    column(score, np.float32),
    column(st.integers(0, 1), np.float32),
    column(st.integers(0, 3), np.float32),
    column(st.sampled_from([-1, 0, 7]), np.int32),
  )


def random_batch(seed, count, *, num_groups=40, decimals=2):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=count).round(decimals).astype(np.float32)
  labels = (rng.random(count) < 1 / (1 + np.exp(1 - logits))).astype(np.float32)
  weights = rng.integers(0, 4, count).astype(np.float32)
  groups = rng.integers(-3, num_groups - 3, count).astype(np.int32)
  assert len(np.unique(logits)) < count or decimals > 4, "no ties"
  return logits, labels, weights, groups


def split(columns, parts):
  return list(zip(*(np.array_split(column, parts) for column in columns), strict=True))


# --- ScoreCounts ---------------------------------------------------------------------------------


@given(batches())
def test_auc_equals_every_pair_compared(batch):
  scores, labels, weights, _ = batch
  counts = metrics.ScoreCounts.from_batch(scores, labels, weights)
  assert_equals_oracle(counts.auc(), oracle_auc(scores, labels, weights))


@given(batches())
def test_gauc_equals_the_weighted_mean_of_the_groups(batch):
  counts = metrics.ScoreCounts.from_batch(*batch)
  assert_equals_oracle(counts.auc(), oracle_gauc(*batch))


def test_fractional_weights_count_exactly_as_given():
  scores, labels, _, groups = random_batch(1, 200)
  weights = np.random.default_rng(2).random(200).astype(np.float32)
  plain = metrics.ScoreCounts.from_batch(scores, labels, weights)
  grouped = metrics.ScoreCounts.from_batch(scores, labels, weights, groups)
  assert_equals_oracle(plain.auc(), oracle_auc(scores, labels, weights))
  assert plain.auc() != metrics.ScoreCounts.from_batch(scores, labels, weights**2).auc()
  assert grouped.auc() == pytest.approx(
    float(oracle_gauc(scores, labels, weights, groups)), rel=1e-12
  )


def test_all_ties_score_one_half():
  counts = metrics.ScoreCounts.from_batch(np.zeros(5), [0, 1, 0, 1, 1], np.ones(5))
  assert counts.auc() == 0.5


def test_a_perfect_ranking_scores_one_and_its_reverse_zero():
  labels, scores = np.float32([0, 0, 1, 1]), np.float32([-2, -1, 1, 2])
  assert metrics.ScoreCounts.from_batch(scores, labels, np.ones(4)).auc() == 1.0
  assert metrics.ScoreCounts.from_batch(-scores, labels, np.ones(4)).auc() == 0.0


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_auc_of_a_single_class_is_nan(label):
  counts = metrics.ScoreCounts.from_batch([1.0, 2.0], [label, label], [1, 1])
  assert np.isnan(counts.auc())


def test_scores_come_back_sorted_and_unique():
  counts = metrics.ScoreCounts.from_batch([2.0, -0.0, -5.0, 0.0, 1e-40], [1] * 5, [1] * 5)
  np.testing.assert_array_equal(counts.scores, np.float32([-5.0, 0.0, 1e-40, 2.0]))
  assert not np.signbit(counts.scores[1])
  np.testing.assert_array_equal(counts.positives, [1, 2, 1, 1])


def test_groups_of_one_class_do_not_enter_gauc():
  scores, labels = np.float32([1, 2, 9, 0]), np.float32([0, 1, 1, 1])
  counts = metrics.ScoreCounts.from_batch(scores, labels, np.ones(4), np.array([5, 5, 6, 7]))
  assert counts.auc() == 1.0
  assert counts.without_groups().auc() == pytest.approx(2 / 3)


@given(batches(), batches(), batches())
def test_merging_is_exact_associative_and_commutative(a, b, c):
  whole = metrics.ScoreCounts.from_batch(
    *(np.concatenate(columns) for columns in zip(a, b, c, strict=True))
  )
  a, b, c = (metrics.ScoreCounts.from_batch(*batch) for batch in (a, b, c))
  assert_same_counts(a.merge(b).merge(c), whole)
  assert_same_counts(a.merge(b.merge(c)), whole)
  assert_same_counts(c.merge(b).merge(a), whole)
  assert_same_counts(a.merge(metrics.ScoreCounts.empty()), a)


# --- BinaryMetrics -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_parts", [1, 2, 7, 64])
def test_streamed_and_sharded_metrics_equal_the_wholes_bit_for_bit(num_parts):
  columns = random_batch(3, 3000)
  whole = metrics.BinaryMetrics.from_batch(*columns)
  parts = split(columns, num_parts)
  streamed = functools.reduce(
    lambda total, part: total.update(*part), parts, metrics.BinaryMetrics.empty()
  )
  sharded = metrics.merge_all(metrics.BinaryMetrics.from_batch(*part) for part in reversed(parts))
  assert whole.compute()["gauc"] > 0.5
  for merged in (streamed, sharded):
    assert_same_counts(merged.counts, whole.counts)
    assert merged.compute() == whole.compute()


def test_merge_all_merges_equal_amounts_and_of_nothing_is_empty(monkeypatch):
  merged_sizes = []
  merge = metrics.BinaryMetrics.merge

  def recording_merge(self, other):
    merged_sizes.append((self.num_examples, other.num_examples))
    return merge(self, other)

  monkeypatch.setattr(metrics.BinaryMetrics, "merge", recording_merge)
  part = metrics.BinaryMetrics.from_batch([0.0], [1], [1])
  assert metrics.merge_all([part] * 8).num_examples == 8
  assert sorted(merged_sizes) == [(1, 1)] * 4 + [(2, 2)] * 2 + [(4, 4)]
  assert metrics.merge_all([]).num_examples == 0


def test_logloss_ne_and_calibration_follow_their_formulas():
  logits, labels, weights, _ = random_batch(4, 500, decimals=6)
  actual = metrics.BinaryMetrics.from_batch(logits, labels, weights).compute()
  p = 1 / (1 + np.exp(-logits.astype(np.float64)))
  mean = functools.partial(np.average, weights=weights)
  rate = mean(labels.astype(np.float64))
  logloss = mean(-np.where(labels == 1, np.log(p), np.log(1 - p)))
  entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
  assert 0.1 < rate < 0.9
  assert actual == pytest.approx(
    {
      "auc": float(oracle_auc(logits, labels, weights)),
      "logloss": logloss,
      "ne": logloss / entropy,
      "calibration": mean(p) / rate,
      "examples": np.count_nonzero(weights),
    },
    rel=1e-12,
  )


def test_predicting_the_base_rate_has_ne_one_and_calibration_one():
  labels = np.float32([1, 0, 0, 0])
  logits = np.full(4, np.log(1 / 3))
  actual = metrics.BinaryMetrics.from_batch(logits, labels, np.ones(4)).compute()
  assert actual["ne"] == pytest.approx(1, abs=1e-7)  # the logit is a float32
  assert actual["calibration"] == pytest.approx(1, abs=1e-7)


def test_extreme_logits_give_exact_losses():
  def logloss(logits, labels):
    return metrics.BinaryMetrics.from_batch(logits, labels, [1] * len(labels)).compute()["logloss"]

  assert logloss([200.0, -200.0], [0, 1]) == pytest.approx(200, rel=1e-12)
  assert logloss([50.0, -50.0], [1, 0]) == pytest.approx(np.exp(-50), rel=1e-12)
  assert logloss([np.inf, -np.inf, 0.0], [1, 0, 1]) == pytest.approx(np.log(2) / 3, rel=1e-12)
  assert logloss([np.inf, 0.0], [0, 1]) == np.inf


def test_padding_is_ignored_whatever_it_holds():
  clean = metrics.BinaryMetrics.from_batch([1.0, -1.0], [1, 0], [2, 1], np.array([1, 1]))
  padded = metrics.BinaryMetrics.from_batch(
    [1.0, NAN, -1.0, 9.0], [1, NAN, 0, -1], [2, 0, 1, 0], np.array([1, 4, 1, 1])
  )
  assert padded.compute() == clean.compute()
  assert padded.compute()["examples"] == 2
  assert_same_counts(padded.counts, clean.counts)


def test_no_examples_compute_to_nan():
  values = metrics.BinaryMetrics.empty().compute()
  assert values.pop("examples") == 0
  assert sorted(values) == ["auc", "calibration", "logloss", "ne"]
  assert all(np.isnan(value) for value in values.values())


def test_ne_and_calibration_of_absent_classes():
  never = metrics.BinaryMetrics.from_batch([-1.0], [0], [1]).compute()
  assert np.isnan(never["ne"]) and np.isnan(never["calibration"])
  always = metrics.BinaryMetrics.from_batch([0.0], [1], [1]).compute()
  assert np.isnan(always["ne"]) and always["calibration"] == 0.5


def test_gauc_is_reported_only_with_groups():
  batch = random_batch(5, 50)
  assert "gauc" not in metrics.BinaryMetrics.from_batch(*batch[:3]).compute()
  actual = metrics.BinaryMetrics.from_batch(*batch).compute()
  assert_equals_oracle(actual["gauc"], oracle_gauc(*batch))
  assert actual["gauc"] != actual["auc"]


def test_merging_with_and_without_groups_is_refused():
  grouped = metrics.BinaryMetrics.from_batch([1.0], [1], [1], np.array([3]))
  plain = metrics.BinaryMetrics.from_batch([1.0], [1], [1])
  with pytest.raises(ValueError, match="expected groups in both or in neither"):
    grouped.merge(plain)
  assert metrics.BinaryMetrics.empty().merge(grouped).has_groups
  assert grouped.merge(metrics.BinaryMetrics.empty()).has_groups


def test_jax_arrays_and_bfloat16_logits_are_accepted():
  logits = jnp.array([1.0, 1.001, -2.0], jnp.bfloat16)  # the first two are one bfloat16
  batch = metrics.BinaryMetrics.from_batch(logits, jnp.array([1.0, 0.0, 0.0]), jnp.ones(3))
  assert batch.compute()["auc"] == 0.75


@pytest.mark.parametrize(
  ("column", "value", "message"),
  [
    ("logits", NAN, r"example 1 of 3 has a NaN score; .* \(score nan.*1 such example"),
    ("labels", -1.0, r"example 1 of 3 has a label outside \[0, 1\] .*label -1.0"),
    ("labels", NAN, r"example 1 of 3 has a label outside \[0, 1\]"),
    ("weights", -2.0, r"example 1 of 3 has a weight that is negative or not finite .*weight -2.0"),
    ("weights", NAN, r"example 1 of 3 has a weight that is negative or not finite"),
  ],
)
def test_values_without_a_meaning_are_refused(column, value, message):
  columns = {"logits": np.zeros(3), "labels": np.zeros(3), "weights": np.ones(3)}
  columns[column][1] = value
  with pytest.raises(ValueError, match=message):
    metrics.BinaryMetrics.from_batch(**columns)


@pytest.mark.parametrize("column", ["logits", "labels", "weights", "groups"])
def test_columns_of_different_shapes_are_refused(column):
  columns = dict.fromkeys(("logits", "labels", "weights", "groups"), np.ones(3))
  columns[column] = np.ones((3, 1))
  with pytest.raises(ValueError, match=r"expected one value an example, \[B\].*\(3, 1\)"):
    metrics.BinaryMetrics.from_batch(**columns)


# --- WindowMetrics -------------------------------------------------------------------------------


def window_of(columns):
  return jax.jit(metrics.WindowMetrics.from_batch)(*map(jnp.asarray, columns[:3]))


def tie_bound(columns):
  """Half the share of (positive, negative) pairs that fall into one bin: the most AUC can move."""
  logits, labels, weights, _ = columns
  edges = np.linspace(-12, 12, metrics.NUM_BINS + 1)
  bins = np.clip(np.digitize(logits, edges) - 1, 0, metrics.NUM_BINS - 1)
  positives = np.bincount(bins, weights * labels, metrics.NUM_BINS)
  negatives = np.bincount(bins, weights * (1 - labels), metrics.NUM_BINS)
  return (positives * negatives).sum() / (positives.sum() * negatives.sum()) / 2


@pytest.mark.usefixtures("strict_promotion")
def test_window_metrics_agree_with_the_exact_ones():
  columns = random_batch(6, 2048, decimals=6)
  exact = metrics.BinaryMetrics.from_batch(*columns).compute()
  window = window_of(columns).compute()
  assert 0 < tie_bound(columns) < 0.004
  assert abs(window["auc"] - exact["auc"]) <= tie_bound(columns) + 1e-6
  assert window["loss"] == pytest.approx(exact["logloss"], rel=1e-5)
  assert window["calibration"] == pytest.approx(exact["calibration"], rel=1e-5)


def test_bins_divide_the_logits_evenly():
  width = 24 / metrics.NUM_BINS
  centers = np.float32(-12 + width * (np.arange(metrics.NUM_BINS) + 0.5))
  ones = np.ones(metrics.NUM_BINS, np.float32)
  histogram = window_of((centers, ones, ones)).histogram
  np.testing.assert_array_equal(histogram, np.stack([0 * ones, ones]))


def test_logits_beyond_the_bins_keep_their_weight_and_rank():
  logits = np.float32([-1e30, -13, 11.9, 13, np.inf])
  labels = np.float32([0, 0, 0, 1, 1])
  window = window_of((logits, labels, np.ones(5, np.float32)))
  assert window.histogram.sum() == 5
  assert window.compute()["auc"] == 1.0


@pytest.mark.usefixtures("strict_promotion")
def test_windows_merge_by_addition_under_jit():
  columns = random_batch(7, 2048, decimals=6)
  step = jax.jit(lambda total, *batch: total.merge(metrics.WindowMetrics.from_batch(*batch)))
  total = metrics.WindowMetrics.zeros()
  shapes = jax.tree.map(jnp.shape, total)
  for part in split(columns[:3], 4):
    total = step(total, *map(jnp.asarray, part))
  whole = window_of(columns)
  assert jax.tree.map(jnp.shape, total) == shapes
  np.testing.assert_array_equal(total.histogram, whole.histogram)  # integer weights: exact
  assert total.compute()["auc"] == whole.compute()["auc"]
  assert total.compute() == pytest.approx(whole.compute(), rel=1e-5)


def test_a_window_computed_again_has_the_same_bits():
  columns = random_batch(8, 2048, decimals=6)
  fractional = (*columns[:2], columns[2] / np.float32(3))
  first, second = window_of(fractional), window_of(fractional)
  jax.tree.map(np.testing.assert_array_equal, first, second)
  assert first.loss_sum > 0


def test_a_window_ignores_padding_and_is_nan_when_empty():
  columns = random_batch(9, 256)
  assert (columns[2] == 0).any()
  moved = (np.where(columns[2] == 0, np.float32(5), columns[0]), *columns[1:])
  assert window_of(moved).compute() == window_of(columns).compute()
  values = metrics.WindowMetrics.zeros().compute()
  assert sorted(values) == ["auc", "calibration", "loss"]
  assert all(np.isnan(value) for value in values.values())


def test_a_diverged_window_shows_a_nan_loss():
  window = window_of((np.float32([NAN, 0]), np.float32([1, 0]), np.ones(2, np.float32)))
  assert np.isnan(window.compute()["loss"])
