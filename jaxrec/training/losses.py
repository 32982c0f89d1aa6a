"""Binary cross-entropy on logits.

Computed from the logit, never from the probability: at a logit of 20 a float32 sigmoid is 1 minus a
rounding error, and its logarithm is mostly that error. The batch mean is weighted, so padding
(weight 0) counts for nothing. Gradient accumulation divides each part's
``binary_cross_entropy_sum`` by the weight of the whole batch, so that the parts add up to its
mean.

Source: papers/dlrm.md section 3 (BCE, optional clamp of the output). Our clamp acts on logits: the
same values and no gradient outside, without a division by p (1 - p).
Read next: jaxrec/training/metrics.py.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Log loss of each example, -y log(p) - (1 - y) log(1 - p) with p = sigmoid(logit).

  Args:
    logits: float[B].
    labels: f32[B] in [0, 1].

  Returns:
    f32[B], ``y softplus(-x) + (1 - y) softplus(x)``: accurate in both tails. (The shorter form with
    max(x, 0) and |x| has a wrong gradient at x = 0, where models with a zero last layer begin.)

  Raises:
    ValueError: the shapes differ (f32[B, 1] against f32[B] would broadcast to f32[B, B]).
  """
  _check_shape("labels", labels, logits)
  x, y = logits.astype(jnp.float32), labels.astype(jnp.float32)
  return y * jax.nn.softplus(-x) + (1.0 - y) * jax.nn.softplus(x)


def binary_cross_entropy_sum(
  logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
  """Sum of ``weights * log loss``, f32[]; arguments as in ``binary_cross_entropy``."""
  losses = sigmoid_cross_entropy(logits, labels)
  if weights is None:
    return losses.sum()
  _check_shape("weights", weights, logits)
  return (weights.astype(jnp.float32) * losses).sum()


def binary_cross_entropy(
  logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
  """Mean log loss, ``sum(w * loss) / sum(w)``.

  Args:
    logits: float[B].
    labels: f32[B] in [0, 1].
    weights: f32[B], 0 for padding; None means all 1.

  Returns:
    f32[]; 0, with gradient 0, when all weights are 0.

  Raises:
    ValueError: the shapes differ.

  >>> float(binary_cross_entropy(jnp.zeros(2), jnp.array([0.0, 1.0])))  # log 2
  0.6931471824645996
  """
  total = binary_cross_entropy_sum(logits, labels, weights)
  if weights is None:
    return total / max(logits.size, 1)
  total_weight = weights.astype(jnp.float32).sum()
  return total / jnp.where(total_weight == 0, 1.0, total_weight)


def clamp_logits(logits: jax.Array, threshold: float) -> jax.Array:
  """Logits float[B] whose sigmoid lies in [threshold, 1 - threshold].

  Bounds the log loss by -log(threshold); examples outside the bounds get no gradient.

  Raises:
    ValueError: threshold is not in (0, 0.5).
  """
  if not 0.0 < threshold < 0.5:
    raise ValueError(
      f"clamp_logits: threshold must lie in (0, 0.5), got {threshold}; it is the least "
      "probability, such as 1e-6. To clamp nothing, do not call it"
    )
  bound = math.log1p(-threshold) - math.log(threshold)
  return jnp.clip(logits, -bound, bound)


def _check_shape(what: str, array: jax.Array, logits: jax.Array) -> None:
  if array.shape != logits.shape:
    raise ValueError(
      f"binary cross-entropy: {what} have shape {array.shape}, logits {logits.shape}; expected "
      "one value an example in each (logits[:, 0] turns [B, 1] into [B])"
    )
