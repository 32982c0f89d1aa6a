"""One step: the same as spelled out by hand, in one piece or in micro-batches."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import data, models, tables, training
from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.data import pipeline
from jaxrec.features import plan_rows, plan_tables, stack_batches
from tests.data import tiny_clicks

ROWS = {
  "rowwise_adagrad": lambda: tables.rowwise_adagrad(0.05),
  "adam": lambda: tables.lazily(optax.adam(1e-2)),
}


def features():
  item = TableConfig("item", 300, 8)
  return [
    FeatureConfig("user", TableConfig("user", 500, 8)),
    FeatureConfig("item", item),
    FeatureConfig("recent", item, combiner="mean", ids_per_bag=3),
  ]


def parts(rows="rowwise_adagrad", *, dtype=None):
  clicks = data.synthetic(features(), num_dense=4, seed=0)
  model = models.DLRM(bottom_mlp=(16, 8), top_mlp=(16, 1), dtype=dtype)
  tx = training.Optimizers(dense=optax.adam(1e-2), rows=ROWS[rows]())
  state = training.init_state(jax.random.key(0), model, clicks.spec, tx=tx)
  return clicks, model, tx, state


def by_hand(model, tx, state, batch):
  def loss_fn(params, embeddings):
    logits = model.apply(params, batch.dense, embeddings)
    return training.binary_cross_entropy(logits, batch.labels["click"], batch.weights)

  loss, grads, row_grads = tables.value_and_row_grad(loss_fn)(state.params, state.tables, batch)
  return training.apply_gradients(state, grads, row_grads, tx=tx), loss


@pytest.mark.parametrize("rows", ROWS)
def test_make_step_is_the_step_of_the_hello_world(rows):
  clicks, model, tx, state = parts(rows)
  hand_state = state
  step = jax.jit(training.make_step(model, tx))
  hand = jax.jit(functools.partial(by_hand, model, tx))
  losses = []
  for batch in clicks.batches(64, num_steps=5):
    state, seen = step(state, batch)
    hand_state, loss = hand(hand_state, batch)
    losses.append(float(loss))
    assert seen.compute()["loss"] == pytest.approx(float(loss), rel=1e-5)
  assert int(state.step) == 5 and len(set(losses)) == 5
  for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(hand_state), strict=True):
    if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
      continue
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("rows", ROWS)
def test_micro_batches_update_as_one_batch_and_touch_the_same_rows(rows):
  clicks, model, tx, state = parts(rows)
  micro = list(clicks.batches(32, num_steps=4))
  (whole,) = clicks.batches(128, num_steps=1)
  one, seen_one = jax.jit(training.make_step(model, tx))(state, whole)
  four_step = jax.jit(training.make_step(model, tx, accumulate_steps=4))
  four, seen_four = four_step(state, stack_batches(micro))
  for name, before in state.tables.values.items():
    moved_one = (np.asarray(one.tables.values[name]) != np.asarray(before)).any(axis=1)
    moved_four = (np.asarray(four.tables.values[name]) != np.asarray(before)).any(axis=1)
    np.testing.assert_array_equal(moved_one, moved_four)
    assert 50 < moved_one.sum() < len(before)
    np.testing.assert_allclose(
      one.tables.values[name], four.tables.values[name], rtol=1e-4, atol=2e-5
    )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), one.params, four.params
  )
  assert seen_one.compute()["loss"] == pytest.approx(seen_four.compute()["loss"], rel=1e-5)
  assert int(four.step) == 1


def test_examples_of_weight_zero_change_nothing():
  clicks, model, tx, state = parts("adam")
  plan = plan_tables(clicks.spec.features)
  (batch,) = clicks.batches(64, num_steps=1)
  weights = np.ones(64, np.float32)
  weights[40:] = 0
  first = plan_rows(batch.replace(weights=weights), plan)
  other = batch.replace(
    weights=weights,
    labels={"click": np.where(weights > 0, batch.labels["click"], 1 - batch.labels["click"])},
    dense=np.where(weights[:, None] > 0, batch.dense, 7.0).astype(np.float32),
  )
  step = jax.jit(training.make_step(model, tx))
  a, b = step(state, first)[0], step(state, plan_rows(other, plan))[0]
  jax.tree.map(np.testing.assert_array_equal, a.tables.values, b.tables.values)
  jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
  ids = batch.ids["user"].values
  only_padding = np.setdiff1d(ids[40:], ids[:40])
  assert len(only_padding) > 0
  before, after = np.asarray(state.tables.table("user")), np.asarray(a.tables.table("user"))
  np.testing.assert_array_equal(before[only_padding], after[only_padding])


def test_a_row_transform_sits_between_gradient_and_update():
  clicks, model, tx, state = parts()
  (batch,) = clicks.batches(64, num_steps=1)
  step = jax.jit(
    training.make_step(model, tx, row_transform=lambda g, now: tables.freeze(g, now, ["user"]))
  )
  after, _ = step(state, batch)
  np.testing.assert_array_equal(after.tables.table("user"), state.tables.table("user"))
  assert (np.asarray(after.tables.table("item")) != np.asarray(state.tables.table("item"))).any()


@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_step_counts_the_rows_it_has_written_that_are_not_finite(accumulate_steps, dtype):
  specs = [FeatureConfig(n, TableConfig(n, 300, 8, dtype=dtype)) for n in ("user", "item")]
  clicks = data.synthetic(specs, num_dense=4, seed=0)
  model = models.DLRM(bottom_mlp=(16, 8), top_mlp=(16, 1))
  tx = training.Optimizers(dense=optax.sgd(0.0), rows=tables.lazily(optax.sgd(1.0)))
  state = training.init_state(jax.random.key(0), model, clicks.spec, tx=tx)
  batches = list(clicks.batches(16, num_steps=accumulate_steps))
  batch = batches[0] if accumulate_steps == 1 else stack_batches(batches)
  ids = np.unique(np.concatenate([b.ids["user"].values for b in batches]))
  stack = state.tables.plan.stacks[0]
  offset = stack.offsets[[table.name for table in stack.tables].index("user")]
  largest = {"float32": jnp.inf, "float16": 1e5}[dtype]  # 1e5 overflows a float16 alone

  def poison(row_grads, _):
    (grad,) = row_grads.values()
    is_user = (grad.ids >= offset) & (grad.ids < offset + 300)
    return {stack.name: grad.replace(rows=jnp.where(is_user[:, None], largest, grad.rows))}

  for transform, expected in ((lambda row_grads, _: row_grads, 0), (poison, len(ids))):
    step = training.make_step(model, tx, accumulate_steps=accumulate_steps, row_transform=transform)
    after, seen = jax.jit(step)(state, batch)
    assert int(seen.num_bad_rows) == expected
    assert int(seen.merge(seen).num_bad_rows) == 2 * expected
    is_bad = ~np.isfinite(np.asarray(after.tables.table("user"), np.float32)).all(axis=1)
    assert is_bad.sum() == expected


def test_bf16_computes_narrow_and_keeps_wide_parameters():
  clicks, model, tx, state = parts(dtype=jnp.bfloat16)
  wide_model = parts()[1]
  (batch,) = clicks.batches(256, num_steps=1)
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
  narrow = training.predict(model, state.params, state.tables, batch)
  wide = training.predict(wide_model, state.params, state.tables, batch)
  assert narrow.dtype == jnp.float32
  assert 0 < np.abs(np.asarray(narrow) - np.asarray(wide)).max() < 0.05
  after, _ = jax.jit(training.make_step(model, tx))(state, batch)
  assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}


def test_a_step_is_a_function_of_its_inputs_alone():
  clicks, model, tx, state = parts("adam")
  (batch,) = clicks.batches(64, num_steps=1)
  step = jax.jit(training.make_step(model, tx))
  first, second = step(state, batch)[0], step(state, batch)[0]
  jax.tree.map(np.testing.assert_array_equal, first.tables.values, second.tables.values)


def test_evaluate_scores_every_example_once_and_groups_by_user():
  clicks, model, _, state = parts()
  batches = list(clicks.batches(64, num_steps=5, split="test"))
  group = clicks.spec.groups[0]
  figures = training.evaluate(model, state, batches, group=group)
  logits = np.concatenate(
    [training.predict(model, state.params, state.tables, b) for b in batches]
  ).astype(np.float64)
  labels = np.concatenate([b.labels["click"] for b in batches])
  positive, negative = logits[labels == 1], logits[labels == 0]
  pairs = positive[:, None] - negative[None, :]
  assert figures["auc"] == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)), abs=1e-9)
  assert figures["logloss"] == pytest.approx(
    np.mean(np.logaddexp(0, logits) - labels * logits), rel=1e-5
  )
  assert figures["examples"] == 320 and "gauc" in figures


LABELS = ("click", "like")


def two_labels(*, dropout=0.0):
  source = tiny_clicks.TinyClicks(seed=0, labels=LABELS)
  model = models.DLRM(bottom_mlp=(16, 4), top_mlp=(16, 2), dropout=dropout)
  tx = training.Optimizers(dense=optax.sgd(0.1), rows=tables.lazily(optax.sgd(0.1)))
  state = training.init_state(jax.random.key(0), model, source.spec, tx=tx)
  return source, model, tx, state


def assert_close(ours, theirs):
  for a, b in zip(
    jax.tree.leaves((ours.params, ours.tables)),
    jax.tree.leaves((theirs.params, theirs.tables)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_several_labels_are_learned_from_the_sum_of_their_weighted_losses():
  source, model, tx, state = two_labels()
  (batch,) = pipeline.batches(source, 64, num_steps=1)
  batch = batch.replace(weights=np.linspace(0, 2, 64, dtype=np.float32))
  loss = training.ClickLoss(label_weights=(1.0, 3.0), positive_weight=2.0)
  ours, seen = jax.jit(training.make_step(model, tx, label=LABELS, loss=loss))(state, batch)

  def loss_fn(params, embeddings):
    logits = model.apply(params, batch.dense, embeddings)
    total = 0.0
    for column, (label, label_weight) in enumerate(zip(LABELS, (1.0, 3.0), strict=True)):
      y = batch.labels[label]
      weights = label_weight * batch.weights * np.where(y == 1, 2.0, 1.0)
      chance = jax.nn.sigmoid(logits[:, column])
      total -= (weights * jnp.log(jnp.where(y == 1, chance, 1 - chance))).sum()
    return total / batch.weights.sum(), logits

  grad_fn = tables.value_and_row_grad(loss_fn, has_aux=True)
  (_, logits), grads, row_grads = jax.jit(grad_fn)(state.params, state.tables, batch)
  apply = jax.jit(functools.partial(training.apply_gradients, tx=tx))
  assert_close(ours, apply(state, grads, row_grads))
  figures = seen.compute(LABELS)
  assert set(figures) == {"loss", "auc", "calibration"} | {
    "like/loss", "like/auc", "like/calibration"
  }  # fmt: skip
  for column, (label, prefix) in enumerate({"click": "", "like": "like/"}.items()):
    x, y = np.float64(logits[:, column]), batch.labels[label]
    expected = np.average(np.logaddexp(0, x) - y * x, weights=batch.weights)
    assert figures[prefix + "loss"] == pytest.approx(expected, rel=1e-5)
    mean = np.average(1 / (1 + np.exp(-x)), weights=batch.weights)
    rate = np.average(y, weights=batch.weights)
    assert figures[prefix + "calibration"] == pytest.approx(mean / rate, rel=1e-5)


def test_a_sequence_of_one_label_is_that_label_bit_for_bit():
  clicks, model, tx, state = parts()
  (batch,) = clicks.batches(64, num_steps=1)
  one = jax.jit(training.make_step(model, tx))(state, batch)
  other = jax.jit(training.make_step(model, tx, label=["click"]))(state, batch)
  jax.tree.map(np.testing.assert_array_equal, one[0].tables.values, other[0].tables.values)
  jax.tree.map(np.testing.assert_array_equal, one[1], other[1])


def test_several_labels_add_up_over_micro_batches():
  source, model, tx, state = two_labels()
  micro = list(pipeline.batches(source, 16, num_steps=4))
  (whole,) = pipeline.batches(source, 64, num_steps=1)
  one, seen_one = jax.jit(training.make_step(model, tx, label=LABELS))(state, whole)
  step = jax.jit(training.make_step(model, tx, label=LABELS, accumulate_steps=4))
  four, seen_four = step(state, stack_batches(micro))
  assert_close(one, four)
  assert seen_four.loss_sum.shape == (2,)
  np.testing.assert_allclose(seen_one.loss_sum, seen_four.loss_sum, rtol=1e-5)
  np.testing.assert_array_equal(seen_one.histogram.sum(-1), seen_four.histogram.sum(-1))


def test_labels_and_logits_of_other_numbers_are_refused():
  source, model, tx, state = two_labels()
  (batch,) = pipeline.batches(source, 64, num_steps=1)
  with pytest.raises(ValueError, match=r"labels have shape \(64,\), logits \(64, 2\)"):
    training.make_step(model, tx)(state, batch)


def test_dropout_draws_another_mask_each_step_and_none_in_a_prediction():
  source, model, tx, state = two_labels(dropout=0.5)
  (batch,) = pipeline.batches(source, 64, num_steps=1)
  step = jax.jit(training.make_step(model, tx, label=LABELS))
  first, second = (
    step(state.replace(step=jnp.int32(number)), batch)[1].loss_sum for number in (0, 1)
  )
  again = step(state, batch)[1].loss_sum
  np.testing.assert_array_equal(first, again)
  assert (np.asarray(first) != np.asarray(second)).all()
  other_key = step(state.replace(rng=jax.random.key(5)), batch)[1].loss_sum
  assert (np.asarray(first) != np.asarray(other_key)).all()
  plain = two_labels()[1]
  np.testing.assert_array_equal(
    training.predict(model, state.params, state.tables, batch),
    training.predict(plain, state.params, state.tables, batch),
  )


def test_micro_batches_of_a_step_draw_different_masks():
  source, model, tx, state = two_labels(dropout=0.5)
  (batch,) = pipeline.batches(source, 64, num_steps=1)
  twice = jax.jit(training.make_step(model, tx, label=LABELS, accumulate_steps=2))
  seen = twice(state, stack_batches([batch, batch]))[1]
  halves = np.asarray(seen.histogram).reshape(-1)
  assert (halves % 2 == 1).any()  # with one mask each logit would have come twice


def test_dropout_of_nothing_keeps_the_bits_of_a_step_that_draws_nothing():
  clicks, model, tx, state = parts()
  (batch,) = clicks.batches(64, num_steps=1)
  step = jax.jit(training.make_step(model, tx))
  first, second = step(state, batch), step(state.replace(rng=jax.random.key(5)), batch)
  jax.tree.map(np.testing.assert_array_equal, first[0].params, second[0].params)


def test_a_label_that_the_data_does_not_have_is_named():
  clicks, model, tx, state = parts()
  (batch,) = clicks.batches(8, num_steps=1)
  with pytest.raises(ValueError, match="no label 'chosen'; the data has click: set label="):
    training.make_step(model, tx, label="chosen")(state, batch)
  with pytest.raises(ValueError, match="no label 'chosen'; the data has click: set label="):
    training.evaluate(model, state, [batch], label="chosen")
