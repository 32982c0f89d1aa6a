"""The teacher against a teacher written out example by example."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxrec import config
from jaxrec.data.datasets import synthetic_teacher
from jaxrec.data.pipeline import counter_rng


def feature(name, vocab_size, *, table=None, **kwargs):
  table_config = config.TableConfig(table or name, vocab_size, 4)
  return config.FeatureConfig(name, table_config, **kwargs)


FEATURES = (
  feature("user", 900),
  feature("item", 300),
  feature("country", 12),
  feature("sex", 2),
  feature("tags", 40, ids_per_bag=4, weighted=True),
  feature("history", 300, table="item", combiner="none", ids_per_bag=6),
)


def random_examples(num_examples=30, num_dense=4):
  rng = np.random.default_rng(0)
  bags = []
  for one in FEATURES:
    shape = (num_examples, one.ids_per_bag)
    slots = rng.integers(0, one.table.vocab_size, shape)
    weights = None
    if not one.is_single_valued:
      weights = rng.uniform(0.5, 1.5, shape) * (rng.random(shape) < 0.6)
    bags.append(synthetic_teacher.Bags(slots, weights))
  return rng.normal(size=(num_examples, num_dense)).astype(np.float32), bags


def effects_of(seed, table, slot):
  word = int(counter_rng.bits(counter_rng.stream_key("id", seed, table), np.array([slot]))[0])
  parts = [(word >> shift) % 2**16 for shift in (0, 16, 32, 48)]
  return [(part - 32767.5) / math.sqrt((2**32 - 1) / 12) for part in parts]


def pooled_effects(model, number, bag, row):
  table = model.tables[number]
  total, weight_sum = [0.0] * 4, 0.0
  for place, slot in enumerate(bag.slots[row]):
    weight = 1.0 if bag.weights is None else bag.weights[row, place]
    weight_sum += weight
    effects = effects_of(model.seed, table, int(slot))
    total = [t + weight * e for t, e in zip(total, effects, strict=True)]
  return [t / weight_sum if weight_sum else 0.0 for t in total]


def logit_in_python(model, dense, bags, row):
  curves = []
  for column, x in enumerate(dense[row].astype(float)):
    curves.append([x, (x * x - 1) / math.sqrt(2), math.tanh(2 * x)][column % 3])
  effects = [pooled_effects(model, number, bag, row) for number, bag in enumerate(bags)]
  from_ids = sum(w * e[0] for w, e in zip(model.weights, effects, strict=True))
  from_dense = 0.0
  for column, curve in enumerate(curves):
    word = counter_rng.bits(counter_rng.stream_key("dense", model.seed), np.array([column]))[0]
    from_dense += curve if int(word) % 2 else -curve
  latents = [e[1:] for e in effects] + [(curves + [0.0] * 3)[:3]]
  interactions = 0.0
  for term in model.terms:
    for d in range(3):
      interactions += term.weight * math.prod(latents[member][d] for member in term.members)
  parts = (from_ids, from_dense, interactions)
  return model.bias + sum(s * p for s, p in zip(model.scales, parts, strict=True))


@pytest.mark.parametrize("kind", synthetic_teacher.KINDS)
@pytest.mark.parametrize("num_dense", [0, 2, 7])
def test_logits_equal_those_worked_out_example_by_example(kind, num_dense):
  dense, bags = random_examples(num_dense=num_dense)
  model = synthetic_teacher.make_teacher(FEATURES, num_dense=num_dense, seed=4, kind=kind)
  model = model.calibrated(model.parts(dense, bags))
  assert any((bag.weights == 0).all(axis=1).any() for bag in bags if bag.weights is not None)
  expected = [logit_in_python(model, dense, bags, row) for row in range(len(dense))]
  np.testing.assert_allclose(model.logits(dense, bags), expected, rtol=1e-12, atol=1e-12)


def test_interactions_follow_the_chain_from_small_to_large_vocabularies():
  terms = synthetic_teacher.make_teacher(FEATURES, num_dense=1, seed=0).terms
  numbers = {one.name: number for number, one in enumerate(FEATURES)} | {"dense": len(FEATURES)}
  names = {number: name for name, number in numbers.items()}
  assert [tuple(names[member] for member in term.members) for term in terms] == [
    ("history", "item"),  # the candidate, from the history's own table
    ("dense", "country"),  # "sex" has too few ids to be in the chain
    ("country", "tags"),
    ("tags", "item"),
    ("item", "history"),
    ("history", "user"),
  ]
  assert terms[0].weight == 1.0
  assert [term.weight for term in terms[1:]] == sorted((t.weight for t in terms[1:]), reverse=True)


def test_multiplicative_teacher_multiplies_three():
  terms = synthetic_teacher.make_teacher(FEATURES, num_dense=0, seed=0, kind="multiplicative").terms
  assert [len(term.members) for term in terms] == [2, 3, 3, 3]


def test_one_feature_alone_interacts_with_nothing():
  model = synthetic_teacher.make_teacher(FEATURES[:1], num_dense=0, seed=0)
  assert model.terms == ()


@pytest.mark.parametrize("num_dense", [0, 13])
def test_calibration_fixes_ceiling_and_click_rate(num_dense):
  dense, bags = random_examples(20_000, num_dense)
  model = synthetic_teacher.make_teacher(FEATURES, num_dense=num_dense, seed=0)
  model = model.calibrated(model.parts(dense, bags))
  logits = model.logits(dense, bags)
  chances = 1 / (1 + np.exp(-logits))
  assert chances.mean() == pytest.approx(synthetic_teacher.CLICK_RATE, abs=1e-6)
  # The AUC to expect, pair by pair: one example clicked, the other not.
  some = np.random.default_rng(0).choice(chances, 2000)
  pairs = some[:, None] * (1 - some[None, :])
  is_above = (some[:, None] > some[None, :]) + 0.5 * (some[:, None] == some[None, :])
  assert (pairs * is_above).sum() / pairs.sum() == pytest.approx(
    synthetic_teacher.CEILING, abs=0.01
  )


def test_a_vocabulary_weighs_less_the_larger_it_is():
  weights = synthetic_teacher.make_teacher(FEATURES, num_dense=0, seed=0).weights
  by_size = np.argsort([one.table.vocab_size for one in FEATURES], kind="stable")
  assert np.all(np.diff(np.array(weights)[by_size]) <= 0)
  assert max(weights) == weights[by_size[0]] > 1.9 * weights[by_size[-1]] > 0


def test_unknown_kind_is_refused_with_the_nearest_name():
  with pytest.raises(config.ConfigError, match="no kind 'multiplicativ'; did you mean 'multipli"):
    synthetic_teacher.make_teacher(FEATURES, num_dense=0, seed=0, kind="multiplicativ")


def test_inputs_that_never_vary_are_refused():
  constant = (np.zeros(10), np.zeros(10), np.ones(10))
  with pytest.raises(config.ConfigError, match="nothing, because no feature varies; give at least"):
    synthetic_teacher.make_teacher(FEATURES, num_dense=0, seed=0).calibrated(constant)


def test_bags_are_pooled_by_their_weights():
  effects = np.arange(6.0).reshape(1, 2, 3)
  weights = np.array([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
  np.testing.assert_allclose(synthetic_teacher.pool(effects, weights), [[1.5, 0.0]])
