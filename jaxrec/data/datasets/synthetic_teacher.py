"""Who decides whether a synthetic example is clicked.

The teacher is a known function from an example to the log-odds of a click, so the best AUC that
any model can reach on its labels is computed, not guessed. Its logit adds three parts: an effect
of each id, an effect of each dense number (some of them curved), and interactions: products of the
latent vectors of ids that occur together, which no linear model over one-hot ids expresses. An
id's effect and latent vector are a hash of (seed, table, id), so a vocabulary of 25M costs
nothing. The parts are scaled on a sample, so that the best AUC and the click rate are the same
whatever the features. The larger a vocabulary, the less its ids weigh: what sits in ids that are
hardly ever seen would be a ceiling that nobody reaches.

Source: the latent vectors are those of factorization machines (Rendle, ICDM 2010); the
``multiplicative`` kind, products of three, is where cross layers should help (DCN-v2: Wang et al.,
WWW 2021).
Read next: jaxrec/data/datasets/synthetic.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from jaxrec import config
from jaxrec.data.pipeline import counter_rng

KINDS = ("dot", "multiplicative")
CLICK_RATE = 0.25
CEILING = 0.795  # the AUC of the teacher's own scores
_SHARES = (0.8, 0.55, 0.85)  # standard deviations, relative: ids alone, dense alone, interactions
_MAX_CHAIN_TERMS = 6
_COMMON_VOCAB_SIZE = 300.0  # from here on, weights fall with the square root of the vocabulary


@dataclasses.dataclass(frozen=True)
class Bags:
  """The ids of one feature for n examples, before they are renamed; a slot is an id's identity.

  Attributes:
    slots: i64[n, L].
    weights: f64[n, L], 0 where there is no id; None for a single-valued feature (L = 1).
  """

  slots: np.ndarray
  weights: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Term:
  """An interaction: ``weight`` times the sum over d of the product of its members' latent vectors.

  Attributes:
    members: feature numbers; F, the number of features, stands for the dense inputs.
    weight: relative to the other terms.
  """

  members: tuple[int, ...]
  weight: float


@dataclasses.dataclass(frozen=True)
class Teacher:
  """Log-odds of a click; made by ``make_teacher``, then ``calibrated``.

  Attributes:
    seed: of its effects.
    tables: the table of each feature, by name.
    weights: of each feature's own effect.
    terms: the interactions.
    scales: of the three parts.
    bias: the log-odds where all parts are 0.
  """

  seed: int
  tables: tuple[str, ...]
  weights: tuple[float, ...]
  terms: tuple[Term, ...]
  scales: tuple[float, ...] = (1.0, 1.0, 1.0)
  bias: float = 0.0

  def logits(self, dense: np.ndarray, bags: Sequence[Bags]) -> np.ndarray:
    """f64[n] for examples with inputs ``dense: f32[n, I]`` and one ``Bags`` a feature."""
    total = np.full(len(dense), self.bias)
    for scale, part in zip(self.scales, self.parts(dense, bags), strict=True):
      total += scale * part
    return total

  def parts(self, dense: np.ndarray, bags: Sequence[Bags]) -> tuple[np.ndarray, ...]:
    """The unscaled parts f64[n]: of ids alone, of dense numbers alone, of interactions."""
    # Sums run in a fixed order, one array at a time: the same bits however examples are chunked.
    from_ids, latents = np.zeros(len(dense)), []
    for table, weight, bag in zip(self.tables, self.weights, bags, strict=True):
      effects = pool(id_effects(self.seed, table, bag.slots), bag.weights)
      from_ids += weight * effects[0]
      latents.append(effects[1:])
    curves = _curves(dense)
    latents.append(_first_three(curves, len(dense)))
    from_dense = np.zeros(len(dense))
    signs = counter_rng.bits(counter_rng.stream_key("dense", self.seed), np.arange(len(curves)))
    for curve, sign in zip(curves, signs, strict=True):
      from_dense += curve if sign & np.uint64(1) else -curve
    interactions = np.zeros(len(dense))
    for term in self.terms:
      interactions += term.weight * _product([latents[member] for member in term.members])
    return from_ids, from_dense, interactions

  def calibrated(self, parts: Sequence[np.ndarray]) -> Teacher:
    """This teacher, scaled to CEILING and CLICK_RATE as they come out on a sample's ``parts``.

    Raises:
      ConfigError: the parts do not vary.
    """
    stds = [float(part.std()) for part in parts]
    scales = [share / std if std > 1e-6 else 0.0 for share, std in zip(_SHARES, stds, strict=True)]
    if not np.any(scales):
      raise config.ConfigError(
        "synthetic: clicks can depend on nothing, because no feature varies; give at least one "
        "table of vocab_size >= 2, or num_dense >= 1"
      )
    total = np.sort(sum(scale * part for scale, part in zip(scales, parts, strict=True)))

    def bias_at(spread: float) -> float:
      return _bisect(lambda bias: sigmoid(spread * total + bias).mean(), CLICK_RATE, -60.0, 60.0)

    def ceiling_at(spread: float) -> float:
      return _expected_auc(sigmoid(spread * total + bias_at(spread)))

    spread = _bisect(ceiling_at, CEILING, 0.0, 10.0)
    return dataclasses.replace(
      self, scales=tuple(spread * scale for scale in scales), bias=bias_at(spread)
    )


def make_teacher(
  features: Sequence[config.FeatureConfig], *, num_dense: int, seed: int, kind: str = "dot"
) -> Teacher:
  """A teacher of these features, not calibrated yet.

  Args:
    features: what an example holds.
    num_dense: I, how many dense inputs.
    seed: another seed, other effects.
    kind: ``dot``: interactions of two latent vectors; ``multiplicative``: of three.

  Raises:
    ConfigError: no such kind.
  """
  if kind not in KINDS:
    raise config.ConfigError(f"teacher: no kind {kind!r}; {config.did_you_mean(kind, KINDS)}")
  weights = tuple(
    (1 + feature.table.vocab_size / _COMMON_VOCAB_SIZE) ** -0.5 for feature in features
  )
  chain = _chain_terms(features, weights, num_dense, degree=2 if kind == "dot" else 3)
  return Teacher(
    seed=seed,
    tables=tuple(feature.table.name for feature in features),
    weights=weights,
    terms=(*_history_terms(features), *chain),
  )


def _history_terms(features: Sequence[config.FeatureConfig]) -> list[Term]:
  """A sequence interacts, at full weight, with its candidates: single-valued, of its table."""
  return [
    Term((number, candidate), 1.0)
    for number, feature in enumerate(features)
    for candidate, other in enumerate(features)
    if feature.combiner == "none" and other.is_single_valued and other.table == feature.table
  ]


def _chain_terms(
  features: Sequence[config.FeatureConfig],
  weights: Sequence[float],
  num_dense: int,
  *,
  degree: int,
) -> list[Term]:
  """Neighbours in a chain interact: the dense inputs, then features by size of their vocabulary.

  Vocabularies below 8 stay out where there are others: they have too few pairs to interact in.
  """
  sizes = [feature.table.vocab_size for feature in features]
  by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
  chain = [number for number in by_size if sizes[number] >= 8] or by_size
  if num_dense:
    chain.insert(0, len(features))
  degree = min(degree, len(chain))
  if degree < 2:
    return []
  windows = [tuple(chain[k : k + degree]) for k in range(len(chain) - degree + 1)]
  return [
    Term(members, math.prod((*weights, 1.0)[member] for member in members))
    for members in windows[:_MAX_CHAIN_TERMS]
  ]


def id_effects(seed: int, table: str, slots: np.ndarray) -> np.ndarray:
  """f64[4, ...]: each id's own effect, then its latent vector; uniform, mean 0, variance 1."""
  return counter_rng.quarters(counter_rng.stream_key("id", seed, table), slots)


def pool(effects: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
  """Weighted means over bags, whatever the combiner: f64[K, n, L] -> f64[K, n]; empty: 0."""
  if weights is None:
    return effects[..., 0]
  totals = weights.sum(axis=-1)
  return (effects * weights).sum(axis=-1) / np.where(totals > 0, totals, 1.0)


def sigmoid(logits: np.ndarray) -> np.ndarray:
  """f64[n]: the chance of a click."""
  return 1.0 / (1.0 + np.exp(-logits))


def _curves(dense: np.ndarray) -> list[np.ndarray]:
  """What each dense input does to the log-odds, f64[n]: in turn a line, a valley, a threshold."""
  shapes = (
    lambda x: x,
    lambda x: (x * x - 1.0) * math.sqrt(0.5),
    lambda x: np.tanh(2.0 * x),
  )
  return [shapes[i % 3](column) for i, column in enumerate(dense.T.astype(np.float64))]


def _first_three(curves: Sequence[np.ndarray], num_examples: int) -> np.ndarray:
  """f64[3, n]: the latent vector of the dense inputs, zeros where there are fewer than three."""
  latents = np.zeros((3, num_examples))
  for latent, curve in zip(latents, curves, strict=False):
    latent[:] = curve
  return latents


def _product(latents: Sequence[np.ndarray]) -> np.ndarray:
  """f64[n]: the sum over d of the product of vectors f64[3, n]; for two, their dot product."""
  product = latents[0]
  for factor in latents[1:]:
    product = product * factor
  first, second, third = product
  return first + second + third


def _expected_auc(chances: np.ndarray) -> float:
  """The AUC to expect when ``chances: f64[n]``, ascending, are both the scores and the truth."""
  negatives = 1.0 - chances
  below = np.cumsum(negatives) - negatives  # of equal chances half the pairs, as ties should count
  return float((chances * below).sum() / (chances.sum() * negatives.sum()))


def _bisect(rising: Callable[[float], float], target: float, low: float, high: float) -> float:
  for _ in range(30):
    middle = 0.5 * (low + high)
    low, high = (middle, high) if rising(middle) < target else (low, middle)
  return middle
