"""Who decides whether a synthetic example is clicked.

The teacher is a known function from an example to the log-odds of a click, so the best AUC that any model
can reach on its labels is computed, not guessed. Its logit adds three parts: an effect of each id and of
each dense number by itself (the latter partly nonlinear), and interactions, products of the latent
vectors of ids that occur together, which no linear model over one-hot ids can express. An id's effect and
latent vector are hashes of (seed, table, id): a vocabulary of 25M costs nothing. The parts are scaled on
a sample so that any features give the same spread of log-odds and the same click rate.

Source: the latent vectors of factorization machines (Rendle, ICDM 2010); the ``multiplicative`` form,
products of three, is the setting in which DCN-v2 compares cross layers (Wang et al., WWW 2021).
Read next: jaxrec/data/synthetic.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxrec import config
from jaxrec.data import counter_rng

KINDS = ("dot", "multiplicative")
LATENT_DIM = 3
CLICK_RATE = 0.25
# Standard deviations of the logit's parts: ids alone, dense numbers alone, interactions.
PART_STDS = (0.8, 0.6, 0.85)
MAX_TERMS = 6
RARE_VOCAB_SIZE = 300.0  # from here on, a larger vocabulary means a smaller weight


@dataclasses.dataclass(frozen=True)
class Bags:
  """The ids of one feature before they are renamed: slot 0 is the most popular id at position 0.

  Attributes:
    slots: i64[n, L].
    weights: f64[n, L], 0 where absent; None for a single-valued feature.
  """

  slots: np.ndarray
  weights: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Teacher:
  """Log-odds of a click; made by ``make_teacher``.

  Attributes:
    seed: of all its effects.
    tables: each feature's table, by name.
    weights: how much each feature counts.
    terms: the features whose latent vectors are multiplied; number F stands for the dense inputs.
    scales: of the three parts.
    bias: log-odds where all parts are 0.
  """

  seed: int
  tables: tuple[str, ...]
  weights: tuple[float, ...]
  terms: tuple[tuple[int, ...], ...]
  scales: tuple[float, ...] = (1.0, 1.0, 1.0)
  bias: float = 0.0

  def logits(self, dense: np.ndarray, bags: Sequence[Bags]) -> np.ndarray:
    """f64[n] from ``dense: f32[n, I]`` and the bags of each feature."""
    total = np.full(len(dense), self.bias)
    for scale, part in zip(self.scales, self.parts(dense, bags), strict=True):
      total += scale * part
    return total

  def parts(self, dense: np.ndarray, bags: Sequence[Bags]) -> tuple[np.ndarray, ...]:
    """The three unscaled parts, f64[n] each."""
    effects, linear = [], np.zeros(len(dense))
    for table, weight, bag in zip(self.tables, self.weights, bags, strict=True):
      pooled = pool(id_effects(self.seed, table, bag.slots), bag.weights)
      pooled *= weight
      effects.append(pooled[1:])
      linear += pooled[0]
    shapes = _dense_shapes(dense)
    effects.append(_dense_latents(shapes))
    interactions = np.zeros(len(dense))
    for term in self.terms:
      product = effects[term[0]]
      for member in term[1:]:
        product = product * effects[member]
      for row in product:
        interactions += row
    return linear, self._dense_part(shapes), interactions

  def _dense_part(self, shapes: list[np.ndarray]) -> np.ndarray:
    signs = counter_rng.bits(counter_rng.stream_key("dense", self.seed), np.arange(len(shapes)))
    total = np.zeros(len(shapes[0]) if shapes else 1)
    for sign, shape in zip(signs >> np.uint64(63), shapes, strict=True):
      total += shape if sign else -shape
    return total

  def calibrated(self, parts: tuple[np.ndarray, ...]) -> Teacher:
    """With scales and bias that give ``parts``, a sample, the spread and click rate above."""
    stds = [float(part.std()) for part in parts]
    scales = [want / std if std > 1e-9 else 0.0 for want, std in zip(PART_STDS, stds, strict=True)]
    total = sum(scale * part for scale, part in zip(scales, parts, strict=True))
    shrink = float(np.hypot.reduce(PART_STDS) / total.std())
    total = total * shrink
    low, high = -30.0 - total.max(), 30.0 - total.min()
    for _ in range(60):
      bias = (low + high) / 2
      low, high = (bias, high) if sigmoid(total + bias).mean() < CLICK_RATE else (low, bias)
    return dataclasses.replace(self, scales=tuple(s * shrink for s in scales), bias=bias)


def id_effects(seed: int, table: str, slots: np.ndarray) -> np.ndarray:
  """f64[1 + LATENT_DIM, ...]: each id's own effect and its latent vector, uniform with variance 1."""
  words = counter_rng.bits(counter_rng.stream_key("id", seed, table), slots)
  shifts = np.arange(0, 16 * (1 + LATENT_DIM), 16, dtype=np.uint64)
  quarters = (words >> shifts.reshape(-1, *[1] * words.ndim)) & np.uint64(0xFFFF)
  return (quarters.astype(np.float64) - 32767.5) * (np.sqrt(12.0) / 65536)


def pool(effects: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
  """Weighted means over bags: f64[K, n, L] -> f64[K, n]; zero for an empty bag."""
  if weights is None:
    return effects[..., 0]
  totals = weights.sum(axis=-1)
  return (effects * weights).sum(axis=-1) / np.where(totals > 0, totals, 1.0)


def sigmoid(logits: np.ndarray) -> np.ndarray:
  return 1.0 / (1.0 + np.exp(-logits))


def make_teacher(
    features: Sequence[config.FeatureConfig], *, num_dense: int, seed: int, kind: str = "dot"
) -> Teacher:
  """A teacher that is not yet calibrated."""
  if kind not in KINDS:
    raise config.ConfigError(f"teacher: no kind {kind!r}; {config.did_you_mean(kind, KINDS)}")
  sizes = [feature.table.vocab_size for feature in features]
  degree = 2 if kind == "dot" else 3
  by_size = sorted(range(len(sizes)), key=lambda f: sizes[f])
  by_size = [f for f in by_size if sizes[f] >= 8] or by_size
  chain = ([len(sizes)] if num_dense else []) + by_size
  degree = min(degree, len(chain))
  terms = [tuple(chain[k : k + degree]) for k in range(len(chain) - degree + 1)]
  return Teacher(
      seed=seed,
      tables=tuple(feature.table.name for feature in features),
      weights=tuple((1 + size / RARE_VOCAB_SIZE) ** -0.5 for size in sizes),
      terms=tuple(terms[:MAX_TERMS]) if degree > 1 else (),
  )


def _dense_shapes(dense: np.ndarray) -> list[np.ndarray]:
  """Each input as the teacher sees it: in turn linear, a valley and a wave."""
  shapes = []
  for column, values in enumerate(dense.T.astype(np.float64)):
    shapes.append((values, values * values - 1, np.tanh(2 * values))[column % 3])
  return shapes


def _dense_latents(shapes: list[np.ndarray]) -> np.ndarray:
  """The first dense inputs as a latent vector f64[LATENT_DIM, n]."""
  rows = shapes[:LATENT_DIM]
  if not rows:
    return np.zeros((LATENT_DIM, 1))
  return np.stack(rows + [np.zeros_like(rows[0])] * (LATENT_DIM - len(rows)))
