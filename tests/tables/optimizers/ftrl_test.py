"""FTRL-proximal against its formula in float64, and what makes it FTRL (laws W1 and W2)."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec import tables

STEPS, WEIGHTS = 1000, 40


def reference(gradients, w, *, rate, l1=0.0, l2=0.0, shrinkage=0.0, power=-0.5, n0=0.1):
  """The documented op in float64, one weight at a time: values after each step, and z and n."""
  w = np.array(w, np.float64)
  z, n, history = np.zeros_like(w), np.full_like(w, n0), []
  for step, g in enumerate(np.asarray(gradients, np.float64)):
    lr = rate(step) if callable(rate) else rate
    for i in range(len(w)):
      n_new = n[i] + g[i] ** 2
      sigma = (n_new ** (-power) - n[i] ** (-power)) / lr
      z[i] += g[i] + 2 * shrinkage * w[i] - sigma * w[i]
      quadratic = n_new ** (-power) / lr + 2 * l2
      w[i] = (np.sign(z[i]) * l1 - z[i]) / quadratic if abs(z[i]) > l1 else 0.0
      n[i] = n_new
    history.append(w.copy())
  return np.array(history), z, n


def run(tx, gradients, w):
  """Values after each step, and the last state, in float32 on the device."""

  def step(carry, g):
    w, state = carry
    updates, state = tx.update(g, state, w)
    w = optax.apply_updates(w, updates)
    return (w, state), w

  start = jnp.asarray(w, jnp.float32)
  (_, state), history = jax.lax.scan(step, (start, tx.init(start)), jnp.asarray(gradients))
  return np.asarray(history), state


def some_gradients(seed=0, steps=STEPS):
  """Of many sizes, half of them zero, drifting one way for some weights."""
  rng = np.random.default_rng(seed)
  size = rng.lognormal(-2, 1.5, WEIGHTS)
  g = size * (rng.normal(size=(steps, WEIGHTS)) + np.linspace(-0.3, 0.3, WEIGHTS))
  return (g * (rng.random((steps, WEIGHTS)) < 0.5)).astype(np.float32)


CASES = [
  {},
  {"l1": 1.0},
  {"l1": 3.0, "l2": 0.5},
  {"l1": 0.5, "l2_shrinkage": 0.01},
  {"power": -0.4, "l1": 0.2},
  {"power": 0.0, "l2": 1.0},
  {"initial_accumulator": 0.0, "l1": 0.3},
  {"initial_accumulator": 2.0, "l1": 2.0, "l2": 0.1, "l2_shrinkage": 0.02},
]


@pytest.mark.parametrize("case", CASES)
def test_a_thousand_steps_are_those_of_the_formula(case):
  gradients = some_gradients()
  history, state = run(tables.ftrl(0.2, **case), gradients, np.zeros(WEIGHTS))
  names = {"l2_shrinkage": "shrinkage", "initial_accumulator": "n0"}
  options = {names.get(name, name): value for name, value in case.items()}
  expected, z, n = reference(gradients, np.zeros(WEIGHTS), rate=0.2, **options)
  scale = np.abs(expected).max(axis=0) + 1e-3
  assert np.max(np.abs(history - expected) / scale) < 2e-3
  np.testing.assert_allclose(state.n, n, rtol=1e-4)
  np.testing.assert_allclose(state.z, z, atol=2e-3 * np.abs(z).max())
  assert int(state.step) == STEPS
  # Zeros are exact, and the same ones but where z stands at the threshold.
  assert np.mean((history == 0) == (expected == 0)) > 0.999
  if case.get("l1"):
    assert (history[1:] == 0).any() and (history != 0).any()
    comes_back = (history[:-1] == 0) & (history[1:] != 0)
    assert comes_back[10:].any()  # a zero is not dead
  else:
    assert (history[-1] != 0).all()


@pytest.mark.parametrize("schedule", [
  optax.exponential_decay(0.5, 10, 0.7),
  optax.linear_schedule(0.01, 0.5, 40),
  optax.warmup_cosine_decay_schedule(1e-3, 0.3, 20, 100, 1e-3),
])  # fmt: skip
def test_under_a_schedule_it_is_adagrad_under_it_and_moves_nothing_by_itself(schedule):
  gradients = some_gradients(1, 60)
  history, _ = run(tables.ftrl(schedule), gradients, np.zeros(WEIGHTS))
  adagrad = optax.adagrad(schedule, initial_accumulator_value=0.1, eps=0.0)
  expected, _ = run(adagrad, gradients, np.zeros(WEIGHTS))
  np.testing.assert_allclose(history, expected, atol=1e-4 * np.abs(expected).max())
  start = np.linspace(-1, 1, WEIGHTS).astype(np.float32)
  still, _ = run(tables.ftrl(schedule, l1=0.3, l2=0.1), np.zeros((60, WEIGHTS), np.float32), start)
  np.testing.assert_allclose(still, np.tile(start, (60, 1)), rtol=1e-4)


def test_other_settings_take_the_weights_over():
  """As in a warm start: the state of one rate and penalty, gone on with under others."""
  gradients = some_gradients(3, 50)
  history, state = run(tables.ftrl(0.1, l1=0.2), gradients, np.zeros(WEIGHTS))
  for other in (
    tables.ftrl(0.5, l1=0.2),
    tables.ftrl(0.1, l1=2.0, l2=0.3),
    tables.ftrl(0.1, power=-0.4),
  ):
    updates, _ = other.update(jnp.zeros(WEIGHTS), state, jnp.asarray(history[-1]))
    moved = np.asarray(updates)[history[-1] != 0]
    np.testing.assert_allclose(moved, 0, atol=1e-5)
    assert len(moved) > 10


@pytest.mark.parametrize("n0", [0.1, 1.0])
def test_without_penalties_it_is_adagrad_from_zero(n0):
  gradients = some_gradients(2)
  history, _ = run(tables.ftrl(0.1, initial_accumulator=n0), gradients, np.zeros(WEIGHTS))
  adagrad = optax.adagrad(0.1, initial_accumulator_value=n0, eps=0.0)
  expected, _ = run(adagrad, gradients, np.zeros(WEIGHTS))
  np.testing.assert_allclose(history, expected, atol=1e-4 * np.abs(expected).max())


@hypothesis.given(
  st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3),
  st.floats(0, 2),
  st.floats(0, 1),
  st.sampled_from([0.0, 0.1, 1.0]),
)
def test_where_it_starts_is_not_forgotten(w, l1, l2, n0):
  w = np.array(w, np.float32)
  tx = tables.ftrl(0.3, l1=l1, l2=l2, initial_accumulator=n0)
  history, state = run(tx, np.zeros((3, 3), np.float32), w)
  np.testing.assert_allclose(history, np.tile(w, (3, 1)), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(np.asarray(state.n), np.float32(n0))
  if n0:  # with z = 0 instead, L1 alone would leave nothing of it
    forgotten, _, _ = reference(np.zeros((1, 3)), w, rate=0.3, l1=l1, l2=l2, n0=n0)
    assert (forgotten == 0).all()


def _click_problem(num_rows=4000, num_ids=300):
  rng = np.random.default_rng(3)
  ids = rng.zipf(1.4, (num_rows, 4)) % num_ids
  truth = np.where(rng.random(num_ids) < 0.2, rng.normal(0, 1.5, num_ids), 0.0)
  labels = rng.random(num_rows) < 1 / (1 + np.exp(-truth[ids].sum(1)))
  return jnp.asarray(ids), jnp.asarray(labels.astype(np.float32)), num_ids


@pytest.mark.parametrize("as_rows", [False, True])
def test_a_larger_l1_leaves_fewer_weights(as_rows):
  ids, labels, num_ids = _click_problem()

  def loss(w, ids, labels):
    return optax.sigmoid_binary_cross_entropy(w[ids, 0].sum(1), labels).sum()

  def nonzeros(l1: float) -> int:
    tx = tables.ftrl(0.1, l1=l1)
    w = jnp.zeros((num_ids, 1))
    optimizer = tables.lazily(tx)
    state = tx.init({"w": w}) if not as_rows else optimizer.init({"w": w})

    @jax.jit
    def step(w, state, ids, labels):
      g = jax.grad(loss)(w, ids, labels)
      if not as_rows:
        updates, state = tx.update({"w": g}, state, {"w": w})
        return optax.apply_updates({"w": w}, updates)["w"], state
      new, rows, globals_ = optimizer.update({"w": g}, state.rows, state.globals, {"w": w})
      return new["w"], type(state)(rows=rows, globals=globals_)

    for k in (*range(0, len(ids), 100), *range(0, len(ids), 100)):
      w, state = step(w, state, ids[k : k + 100], labels[k : k + 100])
    return int(jnp.count_nonzero(w))

  counts = [nonzeros(l1) for l1 in (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)]
  assert counts == sorted(counts, reverse=True) and len(set(counts)) == len(counts)
  seen = len(np.unique(np.asarray(ids)))
  assert counts[0] == seen and counts[-1] < seen / 10


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"l1": -1.0}, "l1 must be a finite number >= 0, got -1"),
    ({"l2": float("nan")}, "l2 must be a finite number >= 0"),
    ({"l2_shrinkage": float("inf")}, "l2_shrinkage must be"),
    ({"initial_accumulator": -0.1}, "initial_accumulator must be"),
    ({"power": 0.5}, r"power must lie in \[-1, 0\], got 0.5"),
    ({"power": -1.5}, r"power must lie in \[-1, 0\], got -1.5"),
  ],
)
def test_a_bad_number_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    tables.ftrl(0.1, **options)


def test_the_parameters_are_asked_for():
  tx = tables.ftrl(0.1)
  with pytest.raises(ValueError, match="update needs the parameters"):
    tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
