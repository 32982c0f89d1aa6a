"""Law M7: the learning-rate policy at its corner points."""

from __future__ import annotations

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.training import schedules

pytestmark = pytest.mark.usefixtures("strict_promotion")
FLOOR = 1e-7


def oracle(step, peak, *, warmup_steps, decay_start, decay_steps):
  """The policy in exact fractions, phase by phase."""
  peak = fractions.Fraction(peak)
  if step < warmup_steps:
    return float(peak * (step + 1) / warmup_steps)
  if decay_steps == 0 or step < decay_start:
    return float(peak)
  if step >= decay_start + decay_steps:
    return FLOOR
  k = step - decay_start
  return max(FLOOR, float(peak * fractions.Fraction(decay_steps - k, decay_steps) ** 2))


@pytest.mark.parametrize(
  ("phase", "step", "expected"),
  [
    ("first step", 0, 0.02),
    ("mid warm-up", 49, 1.0),
    ("last warm-up step", 99, 2.0),
    ("first held step", 100, 2.0),
    ("mid hold", 150, 2.0),
    ("decay start", 200, 2.0),
    ("first step below the peak", 201, 2.0 * 0.9975**2),
    ("mid decay", 400, 0.5),
    ("last decaying step", 599, 2.0 / 400**2),
    ("end", 600, FLOOR),
    ("beyond the end", 10_000_000, FLOOR),
  ],
)
def test_the_policy_at_its_corner_points(phase, step, expected):
  schedule = schedules.warmup_hold_decay(2.0, warmup_steps=100, decay_start=200, decay_steps=400)
  np.testing.assert_allclose(schedule(step), expected, rtol=1e-6, err_msg=phase)


def test_the_floor_bounds_the_decay_before_its_end():
  schedule = schedules.warmup_hold_decay(1.0, decay_start=0, decay_steps=10, floor=0.1)
  np.testing.assert_allclose(schedule(6), 0.16, rtol=1e-6)
  np.testing.assert_allclose([schedule(7), schedule(10)], [0.1, 0.1], rtol=1e-6)


def test_without_warmup_the_first_step_is_at_the_peak():
  schedule = schedules.warmup_hold_decay(0.5, decay_start=5, decay_steps=5)
  assert [float(schedule(step)) for step in (0, 5)] == [0.5, 0.5]
  assert schedule(6) < 0.5


def test_without_decay_the_peak_is_held_for_ever():
  schedule = schedules.warmup_hold_decay(0.5, warmup_steps=4)
  assert [float(schedule(step)) for step in (0, 3, 4, 2**31 - 2)] == [0.125, 0.5, 0.5, 0.5]


def test_decay_may_start_where_the_warmup_ends():
  schedule = schedules.warmup_hold_decay(1.0, warmup_steps=3, decay_start=3, decay_steps=2)
  np.testing.assert_allclose(
    [schedule(step) for step in range(6)], [1 / 3, 2 / 3, 1, 1, 0.25, FLOOR], rtol=1e-6
  )


@given(
  warmup_steps=st.integers(0, 50),
  hold_steps=st.integers(0, 50),
  decay_steps=st.integers(0, 50),
  peak=st.floats(1e-3, 10),
)
def test_every_step_equals_the_exact_policy(warmup_steps, hold_steps, decay_steps, peak):
  phases = {
    "warmup_steps": warmup_steps,
    "decay_start": warmup_steps + hold_steps,
    "decay_steps": decay_steps,
  }
  steps = np.arange(160)  # one shape, so one compilation; past the end of every policy
  rates = schedules.warmup_hold_decay(peak, **phases)(jnp.asarray(steps, jnp.int32))
  expected = [oracle(int(step), peak, **phases) for step in steps]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_steps_past_2_to_the_24_are_told_apart():
  start = 2**24
  schedule = schedules.warmup_hold_decay(1.0, decay_start=start, decay_steps=4)
  np.testing.assert_allclose(
    [schedule(start + k) for k in range(4)], [1, 0.5625, 0.25, 0.0625], rtol=1e-6
  )


def test_it_drives_an_optax_optimizer_under_jit():
  schedule = schedules.warmup_hold_decay(1.0, warmup_steps=2, decay_start=2, decay_steps=2)
  tx = optax.sgd(schedule)
  state, sizes = tx.init(jnp.zeros(())), []
  for _ in range(5):
    update, state = jax.jit(tx.update)(jnp.ones(()), state)
    sizes.append(-float(update))
  np.testing.assert_allclose(sizes, [0.5, 1, 1, 0.25, FLOOR], rtol=1e-6)
  assert schedule(jnp.int32(0)).dtype == jnp.float32


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"warmup_steps": -1}, "warmup_steps must be >= 0, got -1"),
    ({"decay_steps": -2}, "decay_steps must be >= 0, got -2"),
    (
      {"warmup_steps": 10, "decay_start": 9, "decay_steps": 1},
      "decay_start=9 comes before the end of the warm-up at warmup_steps=10",
    ),
    ({"floor": 2.0}, "expected peak >= floor >= 0, got peak=1.0 and floor=2.0"),
  ],
)
def test_impossible_policies_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    schedules.warmup_hold_decay(1.0, **settings)
