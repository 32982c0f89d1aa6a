"""The learning-rate policy of DLRM: warm up, hold, decay.

A large batch at its full rate diverges while the tables are still random, hence the warm-up; the
decay lets the last steps average over what the hold has found.

Source: papers/dlrm.md section 3: linear warm-up, hold, quadratic decay ((N - k) / N)^2, floor 1e-7.
Where the note leaves room we choose: steps count from 0 and the first is trained at
peak / warmup_steps (at 0 its batch would be wasted); the hold is at the peak exactly; the floor
bounds the decay, not the warm-up, and is the rate of every step past the end.
Read next: jaxrec/training/losses.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


def warmup_hold_decay(
  peak: float,
  *,
  warmup_steps: int = 0,
  decay_start: int = 0,
  decay_steps: int = 0,
  floor: float = 1e-7,
) -> optax.Schedule:
  """Linear warm-up to ``peak``, hold, quadratic decay to ``floor``.

  Args:
    peak: the rate held.
    warmup_steps: step s < warmup_steps is trained at peak (s + 1) / warmup_steps; 0: no warm-up.
    decay_start: the last step at the peak; unused without decay.
    decay_steps: N; step decay_start + k is trained at max(floor, peak ((N - k) / N)^2); 0: no
      decay.
    floor: the least rate of the decay.

  Returns:
    A function of the step, i32[] -> f32[].

  Raises:
    ValueError: a negative count, decay that starts before the warm-up ends, or peak < floor.

  >>> schedule = warmup_hold_decay(1.0, warmup_steps=2, decay_start=4, decay_steps=4)
  >>> [float(schedule(step)) for step in (0, 1, 4, 6)]
  [0.5, 1.0, 1.0, 0.25]
  """
  for name, count in (
    ("warmup_steps", warmup_steps),
    ("decay_start", decay_start),
    ("decay_steps", decay_steps),
  ):
    if count < 0:
      raise ValueError(f"warmup_hold_decay: {name} must be >= 0, got {count}")
  if decay_steps and decay_start < warmup_steps:
    raise ValueError(
      f"warmup_hold_decay: decay_start={decay_start} comes before the end of the warm-up at "
      f"warmup_steps={warmup_steps}; start the decay later or shorten the warm-up"
    )
  if not peak >= floor >= 0:
    raise ValueError(
      f"warmup_hold_decay: expected peak >= floor >= 0, got peak={peak} and floor={floor}"
    )

  def schedule(step: ArrayLike) -> jax.Array:
    # Differences are taken in int32: a float32 step is inexact past 2^24.
    step = jnp.asarray(step, jnp.int32)
    rate = jnp.float32(peak)
    if decay_steps:
      left = decay_steps - jnp.clip(step - decay_start, 0, decay_steps)
      fraction = left.astype(jnp.float32) / jnp.float32(decay_steps)
      rate = jnp.maximum(rate * fraction**2, jnp.float32(floor))
    if warmup_steps:
      done = jnp.minimum(step + 1, warmup_steps)
      rate *= done.astype(jnp.float32) / jnp.float32(warmup_steps)
    return rate

  return schedule
