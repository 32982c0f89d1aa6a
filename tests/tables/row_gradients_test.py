"""A table's gradient is a value: rows, each once, and functions over them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import tables
from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.features import Batch, IdBags, plan_rows, plan_tables

B = 12


def problem(seed=0, *, planned=True):
  rng = np.random.default_rng(seed)
  features = [
    FeatureConfig("single", TableConfig("user", 6, 4)),
    FeatureConfig("bag", TableConfig("item", 9, 4), combiner="mean", ids_per_bag=3),
    FeatureConfig("weighted", TableConfig("item", 9, 4), ids_per_bag=2, weighted=True),
    FeatureConfig("history", TableConfig("item", 9, 4), combiner="none", ids_per_bag=3),
  ]

  def lists(n):
    return [rng.integers(0, 9, rng.integers(0, n + 1)).tolist() for _ in range(B)]

  weighted = lists(2)
  batch = Batch(
    dense=np.zeros((B, 1), np.float32),
    ids={
      "single": IdBags.single(rng.integers(-1, 6, B).astype(np.int32)),
      "bag": IdBags.from_lists(lists(3), capacity=3 * B),
      "weighted": IdBags.from_lists(
        weighted,
        capacity=2 * B,
        weights=[rng.normal(size=len(w)).tolist() for w in weighted],
      ),
      "history": IdBags.from_lists(lists(3), capacity=3 * B),
    },
    labels={},
    weights=np.ones(B, np.float32),
  )
  plan = plan_tables(features)
  device = tables.create(plan, jax.random.key(seed))
  return device, plan_rows(batch, plan) if planned else batch, rng


def loss_fn(params, embeddings):
  history = embeddings["history"].embeddings()
  pooled = embeddings["single"] * params[0] + embeddings["bag"] ** 2 + embeddings["weighted"]
  return jnp.sum(jnp.sin(pooled)) + jnp.sum(history**3)


def dense_loss(table, params, batch):
  """float64, one example at a time, straight from a whole table."""
  total = 0.0
  ids = {name: bags.to_lists() for name, bags in batch.ids.items()}
  splits = batch.ids["weighted"].row_splits
  for b in range(B):
    one = sum((table["user"][i] for i in ids["single"][b]), np.zeros(4))
    bag = [table["item"][i] for i in ids["bag"][b]]
    mean = sum(bag) / len(bag) if bag else np.zeros(4)
    scales = batch.ids["weighted"].weights[splits[b] : splits[b + 1]].astype(np.float64)
    weighted = sum(
      (s * table["item"][i] for s, i in zip(scales, ids["weighted"][b], strict=True)), np.zeros(4)
    )
    total += np.sin(one * params[0] + mean**2 + weighted).sum()
    total += sum((table["item"][i] ** 3).sum() for i in ids["history"][b])
  return total


@pytest.mark.parametrize("planned", [True, False])
def test_row_gradients_equal_finite_differences_of_a_dense_table(planned):
  device, batch, _ = problem(planned=planned)
  params = jnp.array([1.3])
  fn = jax.jit(tables.value_and_row_grad(loss_fn))
  loss, grads, row_grads = fn(params, device, batch)
  table = {name: np.asarray(device.table(name), np.float64) for name in ("user", "item")}
  assert float(loss) == pytest.approx(dense_loss(table, [1.3], batch), rel=1e-5)
  step = 1e-5
  numeric = (dense_loss(table, [1.3 + step], batch) - dense_loss(table, [1.3 - step], batch)) / (
    2 * step
  )
  assert float(grads[0]) == pytest.approx(numeric, rel=1e-4, abs=1e-5)
  (g,) = row_grads.values()
  dense = np.zeros((15, 4))
  dense[np.asarray(g.ids)[: int(g.num_valid)]] = np.asarray(g.rows)[: int(g.num_valid)]
  assert int(g.num_valid) > 5
  for name, offset in (("user", 0), ("item", 6)):
    for row in range(len(table[name])):
      for d in range(4):
        moved = []
        for sign in (1, -1):
          table[name][row, d] += sign * step
          moved.append(dense_loss(table, [1.3], batch))
          table[name][row, d] -= sign * step
        numeric = (moved[0] - moved[1]) / (2 * step)
        assert dense[offset + row, d] == pytest.approx(numeric, rel=1e-3, abs=1e-5), (name, row, d)


def test_an_l2_penalty_adds_its_gradient_to_touched_rows_and_leaves_padding_zero():
  device, batch, _ = problem()
  _, _, row_grads = tables.value_and_row_grad(loss_fn)(jnp.ones(1), device, batch)
  added = jax.jit(tables.add_l2)(row_grads, device, 0.25)
  for stack in device.plan.stacks:
    g, penalised = row_grads[stack.name], added[stack.name]
    num_valid = int(g.num_valid)
    assert 5 < num_valid < len(g.ids)
    table = np.concatenate([np.asarray(device.table(t.name), np.float64) for t in stack.tables])
    ids = np.asarray(g.ids)[:num_valid]
    expected = np.asarray(g.rows, np.float64)[:num_valid] + 0.25 * table[ids]
    np.testing.assert_allclose(penalised.rows[:num_valid], expected, rtol=1e-6)
    np.testing.assert_array_equal(penalised.rows[num_valid:], 0)
    np.testing.assert_array_equal(penalised.ids, g.ids)


def test_planned_and_unplanned_batches_give_the_same_bits():
  device, batch, _ = problem()
  fn = jax.jit(tables.value_and_row_grad(loss_fn))
  planned = fn(jnp.ones(1), device, batch)
  unplanned = fn(jnp.ones(1), device, batch.replace(rows=None))
  jax.tree.map(np.testing.assert_array_equal, planned, unplanned)


def gradients(seed=0):
  device, batch, rng = problem(seed)
  _, _, row_grads = tables.value_and_row_grad(loss_fn)(jnp.ones(1), device, batch)
  return device, row_grads, rng


def dense_of(row_grads, num_rows=15):
  (g,) = row_grads.values()
  count = int(g.num_valid)
  ids = np.asarray(g.ids)
  assert len(set(ids.tolist())) == len(ids) and (ids[count:] >= num_rows).all()
  dense = np.zeros((num_rows, g.rows.shape[1]), np.float64)
  dense[ids[:count]] = np.asarray(g.rows)[:count]
  return dense


def test_clip_by_global_norm_scales_as_if_the_gradient_were_dense():
  _, row_grads, _ = gradients()
  dense = dense_of(row_grads)
  norm = np.sqrt((dense**2).sum())
  assert float(tables.global_norm(row_grads)) == pytest.approx(norm, rel=1e-5)
  clipped = tables.clip_by_global_norm(row_grads, 0.5)
  np.testing.assert_allclose(dense_of(clipped), dense * 0.5 / norm, rtol=1e-5, atol=1e-7)
  same = tables.clip_by_global_norm(row_grads, 10 * norm)
  np.testing.assert_array_equal(dense_of(same), dense)


def test_clipping_a_zero_gradient_gives_zero_and_not_nan():
  _, row_grads, _ = gradients()
  clipped = tables.clip_by_global_norm(tables.scale(row_grads, 0.0), 1.0)
  assert float(tables.global_norm(clipped)) == 0.0


def test_accumulated_gradients_add_where_rows_meet():
  device, first, _ = gradients(0)
  _, second, _ = gradients(1)
  total = jax.jit(lambda a, b: tables.accumulate([a, b], device))(first, second)
  np.testing.assert_allclose(dense_of(total), dense_of(first) + dense_of(second), rtol=1e-6)
  (a,), (b,) = first.values(), second.values()
  assert set(np.asarray(a.ids)[: int(a.num_valid)]) & set(np.asarray(b.ids)[: int(b.num_valid)])


def test_frozen_tables_leave_the_gradient_and_the_rest_stays():
  device, row_grads, _ = gradients()
  frozen = tables.freeze(row_grads, device, ["user"])
  dense, rest = dense_of(row_grads), dense_of(frozen)
  assert np.abs(dense[:6]).max() > 0
  np.testing.assert_array_equal(rest[:6], 0)
  np.testing.assert_array_equal(rest[6:], dense[6:])
  (g,) = frozen.values()
  assert (np.asarray(g.ids)[: int(g.num_valid)] >= 6).all()
  with pytest.raises(KeyError, match="no table 'usr'.*did you mean 'user'"):
    tables.freeze(row_grads, device, ["usr"])


def test_noise_reaches_touched_rows_only():
  _, row_grads, _ = gradients()
  noisy = tables.add_noise(row_grads, jax.random.key(0), stddev=0.1)
  (before,), (after,) = row_grads.values(), noisy.values()
  count = int(before.num_valid)
  moved = np.asarray(after.rows) != np.asarray(before.rows)
  assert moved[:count].all() and not moved[count:].any()
