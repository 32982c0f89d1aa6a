"""FTRL-proximal: Adagrad that ends at exactly zero where a weight does not pay for itself.

Each weight keeps ``n``, the sum of its squared gradients, and ``z``, the gradient of all losses
seen so far as if they were linear, seen from zero. The weight is what minimises that linear loss
with an L1 and an L2 penalty, so it has a closed form, and below L1's threshold it is zero:

    n' = n + g^2 ;  sigma = (n'^-p - n^-p) / lr ;  z' = z + g + 2 shrinkage w - sigma w
    w' = (sign(z') l1 - z') / (n'^-p / lr + 2 l2)   if |z'| > l1, else 0        (p = power = -1/2)

While a weight is not zero, z follows from it: it is -sign(w) l1 - w (n^-p / lr + 2 l2). So it is
computed anew from the weight, under the rate and the penalties of the step, which is the same at
constant settings. Under a schedule, in a warm start with other settings, or from random first
weights, the formula with the old z would rescale every weight by the ratio of the settings.

A weight at zero is not dead: z goes on accumulating and may bring it back. ``n`` and ``z`` belong
to the weight's row, so ``tables.lazily(ftrl(...))`` is FTRL on touched rows; optax has none.

Source: McMahan et al., "Ad click prediction: a view from the trenches" (KDD 2013), algorithm 1; in
the form of TensorFlow's op, as Wide & Deep (Cheng et al. 2016) trains its wide part.
Read next: jaxrec/tables/optimizers/lazy.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class FtrlState(NamedTuple):
  """State of ``ftrl``.

  Attributes:
    step: i32[] updates made.
    z: like the parameters: gradients minus what the proximal terms have absorbed.
    n: like the parameters: sums of squared gradients.
  """

  step: jax.Array
  z: Any
  n: Any


def ftrl(
  learning_rate: float | Callable[[jax.Array], jax.Array],
  *,
  l1: float = 0.0,
  l2: float = 0.0,
  l2_shrinkage: float = 0.0,
  power: float = -0.5,
  initial_accumulator: float = 0.1,
) -> optax.GradientTransformation:
  """FTRL-proximal as an optax transform; it needs the parameters and sets them.

  The first parameters are where it starts from; elsewhere, with z = 0, they are gone after a step.

  Args:
    learning_rate: a number, or an optax schedule.
    l1: threshold of z below which a weight is zero, >= 0.
    l2: penalty l2 w^2, >= 0.
    l2_shrinkage: penalty as l2 on the gradient alone, without a part in n, >= 0.
    power: how n scales the rate: -1/2 as in Adagrad; 0: not at all.
    initial_accumulator: n at first, >= 0.

  Raises:
    ValueError: a number out of its range.

  >>> tx = ftrl(0.5, l1=1.0)
  >>> state = tx.init({"w": jnp.zeros(2)})
  >>> updates, _ = tx.update({"w": jnp.array([0.9, -3.0])}, state, {"w": jnp.zeros(2)})
  >>> [round(float(x), 3) for x in updates["w"]]
  [0.0, 0.331]
  """
  _check(l1, l2, l2_shrinkage, power, initial_accumulator)

  def init(params: Any) -> FtrlState:
    n = jax.tree.map(lambda w: jnp.full_like(w, initial_accumulator), params)
    return FtrlState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), n)

  def update(grads: Any, state: FtrlState, params: Any | None = None) -> tuple[Any, FtrlState]:
    if params is None:
      raise ValueError("ftrl: update needs the parameters: tx.update(grads, state, params)")
    rate = _rate(learning_rate, state.step)
    n = jax.tree.map(lambda n, g: n + g * g, state.n, grads)

    def curvature(n: jax.Array) -> jax.Array:
      return _raised(n, -power) / rate + 2 * l2

    def next_z(z: jax.Array, g: jax.Array, n: jax.Array, w: jax.Array) -> jax.Array:
      # With which the new n and the rate of this step would give w back.
      anchor = -jnp.sign(w) * l1 - w * curvature(n)
      return jnp.where(w == 0, z, anchor) + g + 2 * l2_shrinkage * w

    def move(z: jax.Array, n: jax.Array, w: jax.Array) -> jax.Array:
      kept = (jnp.sign(z) * l1 - z) / curvature(n)
      # Where no gradient was ever seen, and n began at 0, there is nothing to go by.
      return jnp.where(n > 0, jnp.where(jnp.abs(z) > l1, kept, 0.0), w) - w

    z = jax.tree.map(next_z, state.z, grads, n, params)
    updates = jax.tree.map(move, z, n, params)
    return updates, FtrlState(state.step + 1, z, n)

  return optax.GradientTransformation(init, update)


def _rate(
  learning_rate: float | Callable[[jax.Array], jax.Array], count: jax.Array
) -> jax.Array | float:
  return learning_rate(count) if callable(learning_rate) else learning_rate


def _raised(n: jax.Array, power: float) -> jax.Array:
  return jnp.sqrt(n) if power == 0.5 else n**power


def _check(
  l1: float, l2: float, l2_shrinkage: float, power: float, initial_accumulator: float
) -> None:
  least = {
    "l1": l1,
    "l2": l2,
    "l2_shrinkage": l2_shrinkage,
    "initial_accumulator": initial_accumulator,
  }
  for name, value in least.items():
    if not 0 <= value < float("inf"):
      raise ValueError(f"ftrl: {name} must be a finite number >= 0, got {value}")
  if not -1 <= power <= 0:
    raise ValueError(f"ftrl: power must lie in [-1, 0], got {power}")
