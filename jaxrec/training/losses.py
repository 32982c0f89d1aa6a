"""Binary cross-entropy on logits.

Computed from the logit, never from the probability: at a logit of 20 a float32 sigmoid is 1 minus a
rounding error, and its logarithm is mostly that error. The batch mean is weighted, so padding
(weight 0) counts for nothing. Gradient accumulation divides each part's
``binary_cross_entropy_sum`` by the weight of the whole batch, so that the parts add up to its
mean. ``ClickLoss`` is what a step minimises: the same sum over several labels, with positives
weighted and with the correction for negatives that were left out.

Source: papers/dlrm.md section 3 (BCE, optional clamp of the output). Our clamp acts on logits: the
same values and no gradient outside, without a division by p (1 - p).
Read next: jaxrec/training/metrics.py.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp


def sigmoid_cross_entropy(
  logits: jax.Array, labels: jax.Array, *, positive_weight: float = 1.0
) -> jax.Array:
  """Log loss of each example, -y log(p) - (1 - y) log(1 - p) with p = sigmoid(logit).

  Args:
    logits: float[B].
    labels: f32[B] in [0, 1].
    positive_weight: factor of the first term.

  Returns:
    f32[B], ``y softplus(-x) + (1 - y) softplus(x)``: accurate in both tails. (The shorter form with
    max(x, 0) and |x| has a wrong gradient at x = 0, where models with a zero last layer begin.)

  Raises:
    ValueError: the shapes differ (f32[B, 1] against f32[B] would broadcast to f32[B, B]).
  """
  _check_shape("labels", labels, logits)
  x, y = logits.astype(jnp.float32), labels.astype(jnp.float32)
  positive = y if positive_weight == 1 else positive_weight * y
  return positive * jax.nn.softplus(-x) + (1.0 - y) * jax.nn.softplus(x)


def binary_cross_entropy_sum(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array | None = None,
  *,
  positive_weight: float = 1.0,
) -> jax.Array:
  """Sum of ``weights * log loss``, f32[]; arguments as in ``binary_cross_entropy``."""
  losses = sigmoid_cross_entropy(logits, labels, positive_weight=positive_weight)
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


@dataclasses.dataclass(frozen=True)
class ClickLoss:
  """What a step minimises, summed over a batch; a step divides it by the batch's weight.

  With its defaults and one label it is ``binary_cross_entropy_sum``. Of several labels, which are
  the columns of [B, T], the losses are added. Nothing of this reaches an evaluation.

  Two ways lead from data in which a share r of the negatives was kept to calibrated predictions.
  One label: the odds in the sample are 1 / r times the true ones, so ``logit_offset = -log r`` is
  added to the logits, and what is left for the model to learn is the true log-odds. Several: an
  example is left out by all its labels at once, and no shift of one logit undoes that; instead an
  example with any positive counts r times, which makes every kept negative stand for 1 / r.

  Attributes:
    label_weights: a factor for each label; empty: all 1.
    positive_weight: factor of the losses of positives.
    logit_offset: added to the logits.
    any_positive_weight: factor for examples of which any label is 1.
  """

  label_weights: tuple[float, ...] = ()
  positive_weight: float = 1.0
  logit_offset: float = 0.0
  any_positive_weight: float = 1.0

  def trained_logits(self, logits: jax.Array) -> jax.Array:
    """The log-odds in the data trained on, of which ``logits`` are those to be served."""
    return logits + self.logit_offset if self.logit_offset else logits

  def trained_weights(self, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """What each example counts, f32[B], for its labels and weights as given."""
    if self.any_positive_weight == 1:
      return weights
    has_positive = (labels.reshape(weights.shape[0], -1) > 0).any(axis=1)
    return jnp.where(has_positive, self.any_positive_weight * weights, weights)

  def __call__(self, logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """f32[], the weighted sum.

    Args:
      logits: float[B], or float[B, T] for T labels.
      labels: f32[B] or f32[B, T] in [0, 1].
      weights: f32[B], 0 for padding.

    Raises:
      ValueError: the shapes differ, or there is not one weight a label.
    """
    _check_shape("labels", labels, logits)
    num_labels = labels.shape[1] if labels.ndim == 2 else 1
    if self.label_weights and len(self.label_weights) != num_labels:
      raise ValueError(
        f"label_weights: expected one for each of the {num_labels} labels, got {self.label_weights}"
      )
    weights = self.trained_weights(labels, weights).astype(jnp.float32)
    if labels.ndim == 2:
      weights = jnp.broadcast_to(weights[:, None], labels.shape)
    if self.label_weights:
      weights = weights * jnp.asarray(self.label_weights, jnp.float32)
    return binary_cross_entropy_sum(
      self.trained_logits(logits), labels, weights, positive_weight=self.positive_weight
    )


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
      "one value an example and label in each (logits[:, 0] turns [B, 1] into [B]; a model's "
      "top_mlp ends in the number of labels)"
    )
