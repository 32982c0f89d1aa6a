"""Metrics as values that merge.

Every metric of a click model is a function of one thing: how much positive and how much negative
weight each distinct logit carries. ``ScoreCounts`` holds just that, sorted, so batches, shards and
processes merge by merging sorted lists, in any order, and AUC (ties counted), log loss, normalised
entropy, calibration and GAUC are read off the result. With integer weights the merged value is the
whole's value bit for bit. Host only, NumPy, float64 sums, 24 bytes a distinct score.

``WindowMetrics`` is the small, fixed-shape form for the training loop: made inside ``jit``, merged
by addition, with logits in bins.

Source: AUC as the Mann-Whitney rank statistic; normalised entropy and calibration as in He et al.,
"Practical lessons from predicting clicks on ads at Facebook" (2014); GAUC as in the DIN paper
(arXiv 1706.06978, section 6.3), weighted by impressions. Law M5 of papers/dlrm.md.
Read next: jaxrec/runs/results/curves.py.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self, TypeVar

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.training import losses

Array = Any  # np.ndarray on the host, jax.Array inside jit
NUM_BINS = 1024  # of WindowMetrics
MAX_BINNED_LOGIT = 12.0  # logits beyond ±12 (a rate of 6e-6) share the outermost bins


class _Merges(Protocol):
  def merge(self, other: Self, /) -> Self:
    """Both together."""


Mergeable = TypeVar("Mergeable", bound=_Merges)


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreCounts:
  """Positive and negative weight of each distinct (group, score), sorted by group, then score.

  Attributes:
    keys: u64[K] unique and sorted: the group in the high word, order-preserving bits of the score
      in the low one. Without groups every example is in group 0.
    positives: f64[K] sum of weight * label.
    negatives: f64[K] sum of weight * (1 - label).
  """

  keys: np.ndarray
  positives: np.ndarray
  negatives: np.ndarray

  @classmethod
  def empty(cls) -> ScoreCounts:
    return cls(np.zeros(0, np.uint64), np.zeros(0), np.zeros(0))

  @classmethod
  def from_batch(
    cls, scores: Array, labels: Array, weights: Array, groups: Array | None = None
  ) -> ScoreCounts:
    """Counts one batch.

    Args:
      scores: float[B], compared as float32; any increasing function of the probability gives the
        same AUC, the other metrics need logits.
      labels: f32[B] in [0, 1].
      weights: f32[B]; examples of weight 0 are ignored, whatever they hold.
      groups: i32[B] or None.

    Raises:
      ValueError: shapes differ, a weight is negative or not finite, or an example of weight > 0 has
        a NaN score or a label outside [0, 1].
    """
    scores, labels, weights = (
      np.asarray(column).astype(np.float32) for column in (scores, labels, weights)
    )
    groups = np.zeros(scores.shape, np.int32) if groups is None else np.asarray(groups)
    _check_examples(scores, labels, weights, groups)
    counted = weights > 0
    weights = weights[counted].astype(np.float64)
    labels = labels[counted].astype(np.float64)
    keys = _to_keys(scores[counted], groups[counted])
    return _collect(keys, weights * labels, weights * (1 - labels))

  def merge(self, other: ScoreCounts) -> ScoreCounts:
    """The counts of both together."""
    return _collect(
      np.concatenate([self.keys, other.keys]),
      np.concatenate([self.positives, other.positives]),
      np.concatenate([self.negatives, other.negatives]),
    )

  def without_groups(self) -> ScoreCounts:
    """The same examples, all in group 0."""
    return _collect(self.keys & np.uint64(0xFFFFFFFF), self.positives, self.negatives)

  @property
  def scores(self) -> np.ndarray:
    """f32[K]."""
    bits = self.keys.astype(np.uint32)
    is_negative = bits < np.uint32(1 << 31)
    return np.where(is_negative, ~bits, bits ^ np.uint32(1 << 31)).view(np.float32)

  def auc(self) -> float:
    """P(a positive scores above a negative) + P(they tie) / 2, weighted.

    With several groups it is GAUC: the AUC of each group that has both classes, averaged by the
    weight of its examples. NaN when no group has both classes.
    """
    groups = self.keys >> np.uint64(32)
    starts = _run_starts(groups)
    if len(starts) == 0:
      return float("nan")
    negatives_below = np.cumsum(self.negatives) - self.negatives
    lengths = np.diff(np.append(starts, len(groups)))
    negatives_below -= np.repeat(negatives_below[starts], lengths)
    wins = np.add.reduceat(self.positives * (negatives_below + self.negatives / 2), starts)
    positives = np.add.reduceat(self.positives, starts)
    negatives = np.add.reduceat(self.negatives, starts)
    has_both = (positives > 0) & (negatives > 0)
    if not has_both.any():
      return float("nan")
    auc = wins[has_both] / (positives[has_both] * negatives[has_both])
    impressions = (positives + negatives)[has_both]
    return float((impressions / impressions.sum() * auc).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class BinaryMetrics:
  """Exact metrics of a binary classifier over any number of batches.

  >>> batch = BinaryMetrics.from_batch([2.0, -1.0, -1.0], [1, 1, 0], [1, 1, 1])
  >>> batch.merge(batch).compute()["auc"]
  0.75

  Attributes:
    counts: of logits.
    num_examples: how many examples have a weight.
    has_groups: whether GAUC is computed.
  """

  counts: ScoreCounts
  num_examples: int
  has_groups: bool = False

  @classmethod
  def empty(cls) -> BinaryMetrics:
    return cls(ScoreCounts.empty(), 0)

  @classmethod
  def from_batch(
    cls, logits: Array, labels: Array, weights: Array, groups: Array | None = None
  ) -> BinaryMetrics:
    """Arguments and errors as in ``ScoreCounts.from_batch``."""
    counts = ScoreCounts.from_batch(logits, labels, weights, groups)
    return cls(counts, int(np.count_nonzero(weights)), has_groups=groups is not None)

  def update(
    self, logits: Array, labels: Array, weights: Array, groups: Array | None = None
  ) -> BinaryMetrics:
    """These examples and one batch more. For a long stream prefer ``merge_all``."""
    return self.merge(BinaryMetrics.from_batch(logits, labels, weights, groups))

  def merge(self, other: BinaryMetrics) -> BinaryMetrics:
    """The metrics of both together.

    Raises:
      ValueError: one has groups and the other has not.
    """
    if self.num_examples == 0 or other.num_examples == 0:
      return other if self.num_examples == 0 else self
    if self.has_groups != other.has_groups:
      raise ValueError(
        "BinaryMetrics.merge: expected groups in both or in neither, got groups in one; pass "
        "groups with every batch or with none"
      )
    return BinaryMetrics(
      self.counts.merge(other.counts),
      self.num_examples + other.num_examples,
      has_groups=self.has_groups,
    )

  def compute(self) -> dict[str, float]:
    """The metrics by name; NaN where the examples do not define one.

    ``auc``; ``logloss``; ``ne``, log loss over the entropy of the mean label (1: no better than
    predicting that mean); ``calibration``, mean prediction over mean label; ``examples``; with
    groups ``gauc``.
    """
    flat = self.counts.without_groups()
    logits = flat.scores.astype(np.float64)
    positives, negatives = flat.positives.sum(), flat.negatives.sum()
    total = positives + negatives
    loss = _weighted_softplus(-logits, flat.positives) + _weighted_softplus(logits, flat.negatives)
    predicted = ((flat.positives + flat.negatives) * np.exp(-_softplus(-logits))).sum()
    logloss = _ratio(loss, total)
    values = {
      "auc": flat.auc(),
      "logloss": logloss,
      "ne": _ratio(logloss, _entropy(_ratio(positives, total))),
      "calibration": _ratio(predicted, positives),
      "examples": float(self.num_examples),
    }
    return values | ({"gauc": self.counts.auc()} if self.has_groups else {})


def merge_all(parts: Iterable[BinaryMetrics]) -> BinaryMetrics:
  """Merges a stream of n batches in O(n log n), as a binary counter carries.

  Merging each batch into one growing total would copy that total n times. Equal amounts are merged
  instead, so at most log2(n) partial results are held.
  """
  return merge_stream(parts) or BinaryMetrics.empty()


def merge_stream(parts: Iterable[Mergeable]) -> Mergeable | None:
  """``merge_all`` for anything that merges; None for no parts."""
  held: list[tuple[int, Mergeable]] = []
  for part in parts:
    num_batches = 1
    while held and held[-1][0] == num_batches:
      num_batches, part = 2 * num_batches, held.pop()[1].merge(part)
    held.append((num_batches, part))
  total = None
  while held:
    total = held.pop()[1] if total is None else held.pop()[1].merge(total)
  return total


def by_label(labels: Sequence[str], figures: Sequence[dict[str, float]]) -> dict[str, float]:
  """One label's figures each as one dict: plain names for the first, ``like/auc`` for the others.

  >>> by_label(["click", "like"], [{"auc": 0.7}, {"auc": 0.6}])
  {'auc': 0.7, 'like/auc': 0.6}
  """
  prefixes = ["", *(f"{label}/" for label in labels[1:])]
  return {
    prefix + name: value
    for prefix, found in zip(prefixes, figures, strict=True)
    for name, value in found.items()
  }


@flax.struct.dataclass
class WindowMetrics:
  """Running sums for the progress line: fixed shapes, cheap, made inside ``jit``.

  The histogram has even bins of the logit (not of the probability, whose low end would crowd rare
  clicks into few bins). Its AUC counts pairs within a bin as ties. float32: weights should add up
  to less than 2^24 between two readings. With T > 1 labels each array has T in front.

  Attributes:
    loss_sum: f32[] sum of weight * log loss.
    prediction_sum: f32[] sum of weight * sigmoid(logit).
    histogram: f32[2, NUM_BINS] negative and positive weight by logit.
    num_bad_rows: i32[] rows written to the tables that hold an infinity or a NaN.
    num_extra_rounds: i32[] exchanges between devices beyond a step's first (``tables.Counts``).
  """

  loss_sum: Array
  prediction_sum: Array
  histogram: Array
  num_bad_rows: Array
  num_extra_rounds: Array

  @classmethod
  def zeros(cls, num_labels: int = 1) -> WindowMetrics:
    zero = jnp.zeros(() if num_labels == 1 else (num_labels,), jnp.float32)
    histogram = jnp.zeros((*zero.shape, 2, NUM_BINS), jnp.float32)
    return cls(zero, zero, histogram, *cls._no_counts())

  @classmethod
  def from_batch(cls, logits: jax.Array, labels: jax.Array, weights: jax.Array) -> WindowMetrics:
    """Sums of one batch: float[B], f32[B] in [0, 1], f32[B] with 0 for padding; no bad rows.

    Logits and labels of [B, T] are T labels' columns.
    """
    chex.assert_equal_shape([logits, labels])
    chex.assert_equal_shape_prefix([logits, weights], 1)
    if logits.ndim == 2:
      columns = jax.vmap(cls.from_batch, in_axes=(1, 1, None))(logits, labels, weights)
      sums = (columns.loss_sum, columns.prediction_sum, columns.histogram)
      return cls(*sums, *cls._no_counts())
    logits = logits.astype(jnp.float32)
    position = (logits / MAX_BINNED_LOGIT + 1.0) * (NUM_BINS / 2)
    bins = jnp.clip(position, 0.0, NUM_BINS - 1.0).astype(jnp.int32)
    amounts = weights * jnp.stack([1.0 - labels, labels])
    return cls(
      loss_sum=losses.binary_cross_entropy_sum(logits, labels, weights),
      prediction_sum=(weights * jax.nn.sigmoid(logits)).sum(),
      histogram=jnp.zeros((2, NUM_BINS), jnp.float32).at[:, bins].add(amounts),
      num_bad_rows=jnp.zeros((), jnp.int32),
      num_extra_rounds=jnp.zeros((), jnp.int32),
    )

  @staticmethod
  def _no_counts() -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)

  def merge(self, other: WindowMetrics) -> WindowMetrics:
    """The sums of both together; works under ``jit``."""
    return jax.tree.map(operator.add, self, other)

  def compute(self, labels: Sequence[str] = ()) -> dict[str, float]:
    """Host only: ``loss``, ``auc``, ``calibration``; NaN where undefined.

    ``labels`` names T > 1 labels, as in ``by_label``.
    """
    if np.ndim(self.loss_sum):
      arrays = map(np.asarray, (self.loss_sum, self.prediction_sum, self.histogram))
      parts = [
        dataclasses.replace(self, loss_sum=loss, prediction_sum=prediction, histogram=histogram)
        for loss, prediction, histogram in zip(*arrays, strict=True)
      ]
      return by_label(labels, [part.compute() for part in parts])
    negatives, positives = np.asarray(self.histogram, np.float64)
    bins = ScoreCounts(np.arange(NUM_BINS, dtype=np.uint64), positives, negatives)
    return {
      "loss": _ratio(self.loss_sum, positives.sum() + negatives.sum()),
      "auc": bins.auc(),
      "calibration": _ratio(self.prediction_sum, positives.sum()),
    }


def _check_examples(scores: Array, labels: Array, weights: Array, groups: Array) -> None:
  shapes = {"scores": scores, "labels": labels, "weights": weights, "groups": groups}
  if len({array.shape for array in shapes.values()}) > 1 or scores.ndim != 1:
    found = ", ".join(f"{name} {array.shape}" for name, array in shapes.items())
    raise ValueError(f"metrics: expected one value an example, [B], got {found}")
  problems = {
    "has a NaN score; the model has diverged, lower its learning rate or clip its gradients": (
      np.isnan(scores) & (weights != 0)
    ),
    "has a label outside [0, 1]": ~((labels >= 0) & (labels <= 1)) & (weights != 0),
    "has a weight that is negative or not finite": ~((weights >= 0) & np.isfinite(weights)),
  }
  for problem, is_bad in problems.items():
    if is_bad.any():
      first = int(np.argmax(is_bad))
      raise ValueError(
        f"metrics: example {first} of {len(scores)} {problem} (score {scores[first]}, label "
        f"{labels[first]}, weight {weights[first]}; {is_bad.sum()} such examples)"
      )


def _to_keys(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
  """u64[B] that sort as (group, score) do; -0.0 equals 0.0."""
  bits = (scores + np.float32(0)).view(np.uint32)
  is_negative = bits >= np.uint32(1 << 31)
  ordered = np.where(is_negative, ~bits, bits ^ np.uint32(1 << 31))
  high = groups.astype(np.int32).view(np.uint32).astype(np.uint64)
  return (high << np.uint64(32)) | ordered


def _collect(keys: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> ScoreCounts:
  """Sorts by key and adds up the weights of equal keys."""
  order = np.argsort(keys, kind="stable")  # stable: linear on two sorted halves, and one sum order
  keys = keys[order]
  starts = _run_starts(keys)
  if len(starts) == 0:
    return ScoreCounts.empty()
  return ScoreCounts(
    keys[starts],
    np.add.reduceat(positives[order], starts),
    np.add.reduceat(negatives[order], starts),
  )


def _run_starts(values: np.ndarray) -> np.ndarray:
  """Where each run of equal values begins."""
  return np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])


def _softplus(x: np.ndarray) -> np.ndarray:
  """log(1 + exp(x)); exp(-softplus(-x)) is the sigmoid of x."""
  return np.logaddexp(0.0, x)


def _weighted_softplus(x: np.ndarray, weights: np.ndarray) -> float:
  """sum(weights * softplus(x)), where a weight of 0 times infinity is 0."""
  has_weight = weights > 0
  return (weights[has_weight] * _softplus(x[has_weight])).sum()


def _entropy(rate: float) -> float:
  return -rate * float(np.log(rate)) - (1 - rate) * float(np.log1p(-rate)) if 0 < rate < 1 else 0.0


def _ratio(numerator: Array, denominator: Array) -> float:
  return float(numerator) / float(denominator) if float(denominator) else float("nan")
