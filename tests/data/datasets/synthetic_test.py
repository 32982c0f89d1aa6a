"""The click log: addressable, skewed as asked, and with a ceiling that is the teacher's."""

from __future__ import annotations

import concurrent.futures
import pickle
import tracemalloc

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from jaxrec import config, features
from jaxrec.data.datasets import synthetic_teacher
from jaxrec.data.datasets.synthetic import SPLITS, default_features, synthetic, zipf_ranks


def feature(name, vocab_size, *, table=None, **kwargs):
  return config.FeatureConfig(name, config.TableConfig(table or name, vocab_size, 4), **kwargs)


ALL_KINDS = (
  feature("user", 5000),
  feature("item", 2000),
  feature("history", 2000, table="item", combiner="none", ids_per_bag=9),
  feature("tags", 40, combiner="mean", ids_per_bag=4),
  feature("shares", 60, ids_per_bag=3, weighted=True),
  feature("score", 7, weighted=True),
  feature("constant", 1),
)


def all_kinds(**kwargs):
  options = {"num_dense": 5, "seed": 1, "drift": 0.02, "correlation": 0.3} | kwargs
  return synthetic(ALL_KINDS, **options)


@pytest.fixture(scope="module")
def clicks():
  return all_kinds()


@pytest.fixture(scope="module")
def default_clicks():
  return synthetic(default_features(), num_dense=13, seed=0)


def examples(batch):
  """Each example's dense numbers, ids, id weights, labels and group, as Python values."""
  bags = {}
  for name, bag in batch.ids.items():
    bags[name] = bag.to_lists()
    if bag.weights is not None:
      splits = bag.row_splits
      bags[name + " weights"] = [
        bag.weights[a:b].tolist() for a, b in zip(splits, splits[1:], strict=False)
      ]
  return [
    (
      batch.dense[row].tolist(),
      {name: lists[row] for name, lists in bags.items()},
      batch.labels["click"][row].item(),
      batch.groups["user"][row].item(),
    )
    for row in range(batch.batch_size)
  ]


def auc_of_all_pairs(scores, labels):
  positives, negatives = scores[labels > 0], scores[labels == 0]
  above = positives[:, None] > negatives[None, :]
  ties = positives[:, None] == negatives[None, :]
  return (above + 0.5 * ties).mean()


POSITIONS = st.lists(st.one_of(st.integers(0, 50), st.integers(0, 2**40)), min_size=1, max_size=30)


@hypothesis.given(POSITIONS, st.sampled_from(SPLITS), st.integers(1, 29))
def test_an_example_is_the_same_however_it_is_read(clicks, positions, split, cut):
  positions = np.array(positions)
  together = examples(clicks.read(positions, split))
  apart = examples(clicks.read(positions[:cut], split)) + examples(
    clicks.read(positions[cut:], split)
  )
  assert together == apart
  alone = [examples(clicks.read(positions[k : k + 1], split))[0] for k in range(len(positions))]
  assert together == alone


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_logits_have_the_same_bits_in_any_chunks(clicks, chunk):
  positions = np.arange(150 * chunk)
  whole = clicks.teacher_logits(positions, "val")
  cuts = range(0, len(positions), chunk)
  parts = [clicks.teacher_logits(positions[k : k + chunk], "val") for k in cuts]
  np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_threads_and_pickled_copies_read_the_same(clicks):
  chunks = [np.arange(k, k + 500) for k in range(0, 4000, 500)]
  expected = [clicks.read(chunk) for chunk in chunks]
  copy = pickle.loads(pickle.dumps(clicks))
  assert copy == clicks
  assert hash(copy) == hash(clicks)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for ours, theirs in zip(expected, pool.map(copy.read, chunks), strict=True):
      jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_splits_and_seeds_are_streams_of_their_own(clicks):
  positions = np.arange(500)
  logs = [examples(clicks.read(positions, split)) for split in SPLITS]
  logs.append(examples(all_kinds(seed=2).read(positions)))
  dense = [{tuple(example[0]) for example in log} for log in logs]
  assert all(len(one) == 500 for one in dense)
  assert len(set.union(*dense)) == 4 * 500


def test_batches_hold_what_the_spec_says(clicks):
  batch = clicks.read(np.arange(200))
  assert clicks.spec == features.BatchSpec(ALL_KINDS, 5, ("click",), ("user",))
  assert batch.dense.shape == (200, 5)
  assert batch.rows is None
  assert set(batch.labels["click"].tolist()) == {0.0, 1.0}
  assert batch.weights.tolist() == [1.0] * 200
  assert {leaf.dtype for leaf in jax.tree.leaves(batch)} == {np.dtype("f4"), np.dtype("i4")}
  assert list(batch.ids) == [one.name for one in ALL_KINDS]
  for one in ALL_KINDS:
    bag = batch.ids[one.name]
    assert (bag.row_splits is None) == one.is_single_valued
    assert (bag.weights is not None) == one.weighted
    assert bag.capacity == 200 * one.ids_per_bag
    present = bag.values[bag.values >= 0]
    assert len(present) > 0
    assert present.max() < one.table.vocab_size
  np.testing.assert_array_equal(batch.groups["user"], batch.ids["user"].values)
  assert features.plan_rows(batch, features.plan_tables(ALL_KINDS)).rows is not None


def test_bags_take_every_length_equally_often_and_weights_their_range(clicks):
  batch = clicks.read(np.arange(20_000))
  for name, longest in [("history", 9), ("tags", 4), ("shares", 3), ("score", 1)]:
    lengths = np.bincount(batch.ids[name].lengths(), minlength=longest + 1)
    assert len(lengths) == longest + 1
    assert stats.chisquare(lengths).pvalue > 1e-4
  shares = batch.ids["shares"]
  weights = shares.weights[shares.values >= 0]
  assert 0.5 <= weights.min() < 0.51
  assert 1.49 < weights.max() < 1.5


def test_train_has_no_end_and_the_others_say_theirs(clicks):
  assert clicks.num_examples("train") is None
  assert clicks.num_examples("val") == clicks.num_examples("test") == 1_000_000
  assert clicks.read(np.array([2**50]), "train").batch_size == 1


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 1.05, 1.4])
@pytest.mark.parametrize("vocab_size", [1, 2, 50, 3000])
def test_ranks_follow_the_bounded_pareto_law(exponent, vocab_size):
  num_draws = 200_000
  draws = (np.arange(num_draws) + 0.5) / num_draws
  counts = np.bincount(zipf_ranks(draws, vocab_size, exponent), minlength=vocab_size)
  # The probability of rank r is the integral of x^-exponent over [r + 1, r + 2), normalised.
  edges = np.arange(1.0, vocab_size + 2.0)
  integral = np.log(edges) if exponent == 1.0 else edges ** (1 - exponent) / (1 - exponent)
  expected = num_draws * np.diff(integral) / (integral[-1] - integral[0])
  np.testing.assert_allclose(counts, expected, atol=1.01)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 1.05, 1.4])
@pytest.mark.parametrize("vocab_size", [6, 51, 8040, 62_911])
def test_first_and_last_draw_are_the_first_and_last_rank(vocab_size, exponent):
  ranks = zipf_ranks(np.array([0.0, 1 - 2.0**-53]), vocab_size, exponent)
  assert ranks.tolist() == [0, vocab_size - 1]  # although x may be rounded up to H


def test_ids_are_as_skewed_as_asked_and_the_popular_lie_anywhere():
  one = [feature(name, 10_000) for name in ("a", "b", "c", "d")]
  clicks = synthetic(one, num_dense=0, zipf_exponent={"b": 1.4, "c": 0.0})
  batch = clicks.read(np.arange(100_000))
  popular = {}
  for name, exponent in [("a", 1.05), ("b", 1.4), ("c", 0.0), ("d", 1.05)]:
    counts = np.bincount(batch.ids[name].values, minlength=10_000)
    popular[name] = counts.argsort()[::-1][:20]
    tail = exponent - 1
    share = (1 - 101**-tail) / (1 - 10_001**-tail)  # of the 100 most popular ids
    assert np.sort(counts)[-100:].sum() / 100_000 == pytest.approx(share, abs=0.01)
  assert popular["a"].max() > 5000 and popular["a"].min() < 5000  # not 0, 1, 2, ...
  assert len(set(popular["a"]) & set(popular["d"])) < 3  # nor the same in every table


def test_features_that_share_a_table_agree_on_what_is_popular():
  pair = (feature("clicked", 1000, table="item"), feature("bought", 1000, table="item"))
  batch = synthetic(pair, num_dense=0).read(np.arange(20_000))
  tops = [set(np.bincount(bag.values).argsort()[-5:]) for bag in batch.ids.values()]
  assert len(tops[0] & tops[1]) >= 4


@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_drift_turns_popularity_by_its_share_of_the_vocabulary(drift):
  clicks = synthetic([feature("a", 1000)], num_dense=0, drift=drift)
  tops = []
  for position in (0, 1_000_000, 2_000_000):
    for split in ("train", "test"):
      ids = clicks.read(np.arange(position, position + 2_000), split).ids["a"].values
      tops.append(int(np.bincount(ids).argmax()))
  assert tops[0] == tops[1] and tops[2] == tops[3]  # splits share one clock
  assert (tops[0] != tops[2]) == (drift > 0)
  assert tops[0] == tops[4]  # turned once all the way round


def test_drift_leaves_an_ids_effects_alone():
  still, moving = (synthetic([feature("a", 50)], num_dense=0, drift=d) for d in (0.0, 0.37))
  logits = []
  for clicks in (still, moving):
    ids = clicks.read(np.arange(10**6, 10**6 + 3000)).ids["a"].values
    chosen = clicks.teacher_logits(np.arange(10**6, 10**6 + 3000))
    logits.append({int(one): logit for one, logit in zip(ids, chosen, strict=True)})
  shared = sorted(set(logits[0]) & set(logits[1]))
  assert len(shared) > 40
  first, second = (np.array([one[k] for k in shared]) for one in logits)
  assert np.corrcoef(first, second)[0, 1] == pytest.approx(1.0, abs=1e-9)  # scaled, not redrawn


@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
def test_correlated_features_share_draws_as_often_as_asked(correlation):
  four = [feature(name, 100_000, table="t") for name in ("a", "b", "c", "d")]
  clicks = synthetic(
    four, num_dense=0, zipf_exponent=0.0, correlated=[("a", "b")], correlation=correlation
  )
  ids = {name: bag.values for name, bag in clicks.read(np.arange(20_000)).ids.items()}
  assert (ids["a"] == ids["b"]).mean() == pytest.approx(correlation, abs=0.015)
  for other in ("c", "d"):
    assert (ids["a"] == ids[other]).mean() < 0.001


def test_without_named_groups_all_features_are_one_group():
  three = [feature(name, 100_000, table="t") for name in ("a", "b", "c")]
  clicks = synthetic(three, num_dense=0, zipf_exponent=0.0, correlation=0.5)
  ids = [bag.values for bag in clicks.read(np.arange(20_000)).ids.values()]
  assert ((ids[0] == ids[1]) & (ids[1] == ids[2])).mean() == pytest.approx(0.5, abs=0.015)


def test_correlated_bags_share_place_by_place_and_stay_varied():
  pair = [feature(name, 100_000, table="t", ids_per_bag=4) for name in ("a", "b")]
  batch = synthetic(pair, num_dense=0, zipf_exponent=0.0, correlation=1.0).read(np.arange(500))
  both = zip(batch.ids["a"].to_lists(), batch.ids["b"].to_lists(), strict=True)
  for first, second in both:
    shorter = min(len(first), len(second))
    assert first[:shorter] == second[:shorter]
    assert len(set(first)) == len(first)


def test_histories_follow_their_users_tastes():
  clicks = synthetic(
    (
      feature("user", 6),
      feature("item", 500),
      feature("history", 500, table="item", combiner="none", ids_per_bag=20),
    ),
    num_dense=0,
    zipf_exponent=0.0,
  )
  batch = clicks.read(np.arange(20_000))
  counts = np.zeros((6, 500))
  history = batch.ids["history"]
  owners = history.bag_ids()[history.values >= 0]
  np.add.at(counts, (batch.ids["user"].values[owners], history.values[history.values >= 0]), 1)
  shares = counts / counts.sum(axis=1, keepdims=True)
  # Uniform ids would give every user 1/500 of each; taste moves it between 0 and 2/500.
  spread = (shares * 500).std(axis=1)
  np.testing.assert_allclose(spread, 1 / np.sqrt(3), atol=0.08)
  likeness = np.corrcoef(shares)[np.triu_indices(6, 1)]
  assert likeness.min() < 0
  assert likeness.max() < 0.95
  first_half = np.zeros((6, 500))
  half = owners < 10_000
  np.add.at(first_half, (batch.ids["user"].values[owners[half]], history.values[: half.sum()]), 1)
  for user in range(6):  # a user's taste is the same all along
    assert np.corrcoef(first_half[user], (counts - first_half)[user])[0, 1] > 0.6


def test_histories_hold_what_the_teacher_says_their_users_like(clicks):
  _, bags = clicks._draw(np.arange(2000), "train")
  user, _, history = bags[:3]
  tastes = synthetic_teacher.id_effects(clicks.seed, "user", user.slots)[1:]
  likings = (synthetic_teacher.id_effects(clicks.seed, "item", history.slots)[1:] * tastes).sum(
    axis=0
  )
  # The better of two draws from a standard normal is 1 / sqrt(pi) = 0.56 on average.
  assert (likings / likings.std()).mean() == pytest.approx(0.56, abs=0.15)


@pytest.mark.parametrize(
  "names, group", [(("big", "user"), "user"), (("small", "tags", "big"), "big"), (("tags",), None)]
)
def test_group_is_the_user_or_else_the_largest_single_feature(names, group):
  known = {
    "big": feature("big", 900),
    "small": feature("small", 9),
    "user": feature("user", 90),
    "tags": feature("tags", 9000, ids_per_bag=2),
  }
  clicks = synthetic([known[name] for name in names], num_dense=1)
  assert clicks.spec.groups == ((group,) if group else ())
  assert list(clicks.read(np.arange(3)).groups) == list(clicks.spec.groups)


def test_clicks_come_as_often_as_the_teacher_says(default_clicks):
  positions = np.arange(40_000)
  chances = 1 / (1 + np.exp(-default_clicks.teacher_logits(positions)))
  labels = default_clicks.read(positions).labels["click"]
  for chunk in np.array_split(np.argsort(chances), 20):
    error = np.sqrt((chances[chunk] * (1 - chances[chunk])).sum()) / len(chunk)
    assert abs(labels[chunk].mean() - chances[chunk].mean()) < 4 * error


def test_ceiling_is_the_teachers_auc_over_all_pairs(clicks):
  for split, start in [("test", 0), ("test", 5000), ("train", 0)]:
    positions = np.arange(start, start + 5000)
    labels = clicks.read(positions, split).labels["click"]
    expected = auc_of_all_pairs(clicks.teacher_logits(positions, split), labels)
    assert clicks.ceiling(5000, split, start) == pytest.approx(expected, abs=1e-12)


def test_ceiling_counts_ties_half():
  clicks = synthetic([feature("a", 3)], num_dense=0)
  positions = np.arange(2000)
  expected = auc_of_all_pairs(
    clicks.teacher_logits(positions, "test").round(9),
    clicks.read(positions, "test").labels["click"],
  )
  assert clicks.ceiling(2000) == pytest.approx(expected, abs=1e-9)
  assert len(np.unique(clicks.teacher_logits(positions, "test"))) == 3


def test_ceiling_of_one_class_is_not_a_number(clicks):
  assert np.isnan(clicks.ceiling(1))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("teacher", ["dot", "multiplicative"])
def test_default_ceiling_and_click_rate_lie_where_promised(seed, teacher):
  clicks = synthetic(default_features(), num_dense=13, seed=seed, teacher=teacher)
  assert 0.78 < clicks.ceiling(50_000) < 0.82
  assert clicks.read(np.arange(20_000)).labels["click"].mean() == pytest.approx(0.25, abs=0.02)


def test_a_linear_model_stays_below_the_ceiling_and_crosses_reach_it():
  clicks = synthetic([feature("a", 9), feature("b", 12)], num_dense=0, seed=3)
  aucs = {}
  for is_crossed in (False, True):
    columns = []
    for split in ("train", "test"):
      batch = clicks.read(np.arange(30_000), split)
      a, b = np.eye(9)[batch.ids["a"].values], np.eye(12)[batch.ids["b"].values]
      crosses = (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)
      columns.append((crosses if is_crossed else np.hstack([a, b]), batch.labels["click"]))
    (train, train_labels), (test, test_labels) = columns
    gram = train.T @ train + 10 * np.eye(train.shape[1])
    fitted = test @ np.linalg.solve(gram, train.T @ (train_labels - 0.25))
    aucs[is_crossed] = auc_of_all_pairs(fitted[:10_000], test_labels[:10_000])
  ceiling = clicks.ceiling(10_000)
  assert aucs[False] < ceiling - 0.02
  assert aucs[True] > ceiling - 0.01


def test_default_is_shaped_like_criteo():
  default = default_features()
  assert len(default) == 26
  assert sum(one.table.num_bytes for one in default) / 2**20 == pytest.approx(25, abs=3)
  assert {(one.combiner, one.ids_per_bag) for one in default} == {
    ("sum", 1),
    ("mean", 3),
    ("mean", 5),
  }


def expected_distinct_rows(clicks, num_examples):
  """Exactly: a row is touched unless all draws miss it."""
  total = 0.0
  for one, exponent in zip(clicks.spec.features, clicks.zipf_exponents, strict=True):
    edges = np.arange(1.0, one.table.vocab_size + 2) ** (1 - exponent)
    chances = np.diff(edges) / (edges[-1] - edges[0])
    ids_per_example = 1 if one.is_single_valued else one.ids_per_bag / 2
    total += (1 - np.exp(num_examples * ids_per_example * np.log1p(-chances))).sum()
  return total


def test_four_million_default_examples_touch_100k_distinct_rows(default_clicks):
  batch = default_clicks.read(np.arange(100_000))
  counted = sum(len(np.unique(bag.values[bag.values >= 0])) for bag in batch.ids.values())
  assert counted == pytest.approx(expected_distinct_rows(default_clicks, 100_000), rel=0.01)
  assert expected_distinct_rows(default_clicks, 4_000_000) > 100_000


def test_default_is_as_skewed_as_criteo(default_clicks):
  batch = default_clicks.read(np.arange(200_000))
  counts = [np.bincount(bag.values[bag.values >= 0]) for bag in batch.ids.values()]
  counts = np.sort(np.concatenate([one[one > 0] for one in counts]))[::-1]
  share = counts[: len(counts) // 100].sum() / counts.sum()
  assert 0.5 < share < 0.85, share


def test_large_vocabularies_cost_no_memory():
  tracemalloc.start()
  clicks = synthetic([feature("a", 25_000_000), feature("b", 2**31 - 2**27)], num_dense=2)
  ids = clicks.read(np.arange(2048)).ids
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 16 * 2**20
  assert ids["a"].values.max() > 20_000_000


def test_dense_inputs_are_scaled_and_every_other_one_is_a_logarithm_of_counts(default_clicks):
  dense = default_clicks.read(np.arange(20_000)).dense
  assert dense.shape == (20_000, 13)
  assert np.abs(dense.mean(axis=0)).max() < 0.2
  assert dense.std(axis=0).min() > 0.7
  assert dense.std(axis=0).max() < 1.3
  counts = np.expm1(dense[:, 1::2].astype(np.float64) + 1.2)
  np.testing.assert_allclose(counts, counts.round(), atol=1e-3)
  assert len(np.unique(dense[:, 0])) > 15_000


@pytest.mark.parametrize(
  "options, message",
  [
    ({"zipf_exponent": {"itm": 1.0}}, "zipf_exponent names no feature 'itm'; did you mean 'item'"),
    ({"zipf_exponent": -0.5}, "zipf_exponent of feature 'user' must lie in .*got -0.5"),
    ({"zipf_exponent": float("nan")}, "zipf_exponent of feature 'user' must lie in .*got nan"),
    ({"drift": -1.0}, "drift must lie in .*got -1.0"),
    ({"correlation": 1.5}, r"correlation must lie in \[0.0, 1.0\], got 1.5"),
    ({"correlated": [("usr",)]}, "correlated names no feature 'usr'; did you mean 'user'"),
    ({"correlated": [("user",), ("user", "item")]}, "correlated names a feature twice"),
    ({"num_dense": -1}, "num_dense must lie in"),
    ({"teacher": "product"}, "teacher: no kind 'product'; Known: dot, multiplicative"),
  ],
)
def test_impossible_options_are_refused_by_name(options, message):
  with pytest.raises(config.ConfigError, match=message):
    all_kinds(**options)


def test_a_log_without_anything_to_learn_is_refused():
  with pytest.raises(config.ConfigError, match="clicks can depend on nothing"):
    synthetic([feature("constant", 1)], num_dense=0)


def test_unknown_split_is_refused_everywhere(clicks):
  for read in (clicks.read, clicks.teacher_logits):
    with pytest.raises(config.ConfigError, match="no split 'tset'; did you mean 'test'"):
      read(np.arange(3), "tset")
  with pytest.raises(config.ConfigError, match="no split 'calibration'"):
    clicks.num_examples("calibration")


@pytest.mark.parametrize("bad", [np.array([3, -1]), np.zeros((2, 2), np.int64)])
def test_positions_that_do_not_exist_are_refused(clicks, bad):
  with pytest.raises(ValueError, match=r"positions i64\[n\] >= 0 in split 'train', got"):
    clicks.read(bad)
