"""An endless click log whose best reachable AUC is known: the default data set.

Example k of a split is a function of (seed, split, k) and nothing else. Any range of it can be
read at any time, by any process, in any chunks, and is the same; nothing is stored, whatever the
vocabulary.

Ids are as skewed as in real logs. A popularity rank is drawn from a bounded Pareto law; drift
turns the ranks slowly, so that other ids become popular; a pseudo-random permutation per table
names the result, so that popular ids lie anywhere. Clicks are drawn from the log-odds of a teacher
(synthetic_teacher.py).

Source: the id law is the generator of the papers' synthetic traces, x = ((-H^a)/(u (H^a - 1) -
H^a))^(1/a) with a = exponent - 1 and H = V + 1. Teacher, drift, correlated features and histories
are our own.
Read next: jaxrec/data/pipeline/input_batches.py, from examples to batches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from jaxrec import config
from jaxrec.data import pipeline
from jaxrec.data.datasets import synthetic_teacher
from jaxrec.data.pipeline import counter_rng, shuffle
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import id_bags

SPLITS = ("train", "val", "test")
EVALUATION_EXAMPLES = 1_000_000  # what "val" and "test" say they hold; "train" has no end
ZIPF_EXPONENT = 1.05
_CALIBRATION = "calibration"  # a stream of its own, seen by no model
_CALIBRATION_EXAMPLES = 1 << 14
_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class SyntheticClicks:
  """The click log; made by ``synthetic``.

  Attributes:
    spec: what its batches hold. ``groups`` names the feature whose ids stand for users.
    seed: of everything.
    zipf_exponents: one a feature.
    drift: share of each vocabulary by which popularity turns per million positions.
    correlated: groups of features that share draws.
    correlation: chance that an example's draws in a group are one.
    teacher: decides the clicks.
  """

  spec: batch_lib.BatchSpec
  seed: int
  zipf_exponents: tuple[float, ...]
  drift: float
  correlated: tuple[tuple[str, ...], ...]
  correlation: float
  teacher: synthetic_teacher.Teacher

  def num_examples(self, split: str) -> int | None:
    """None for ``train``, which has no end. The others can also be read at any position."""
    _check_split(split)
    return None if split == "train" else EVALUATION_EXAMPLES

  def read(self, indices: np.ndarray, split: str = "train") -> batch_lib.Batch:
    """The examples at positions ``indices: i64[n]`` of a split: a host batch without row plan."""
    indices = _check_positions(indices, split)
    dense, bags = self._draw(indices, split)
    labels = self._clicks(self.teacher.logits(dense, bags), indices, split)
    ids = {
      feature.name: self._named(feature, bag)
      for feature, bag in zip(self.spec.features, bags, strict=True)
    }
    return batch_lib.Batch(
      dense=dense,
      ids=ids,
      labels={"click": labels.astype(np.float32)},
      weights=np.ones(len(indices), np.float32),
      groups={name: ids[name].values.copy() for name in self.spec.groups},
    )

  def teacher_logits(self, indices: np.ndarray, split: str = "train") -> np.ndarray:
    """f64[n]: the true log-odds of a click."""
    indices = _check_positions(indices, split)
    return self.teacher.logits(*self._draw(indices, split))

  def ceiling(self, num_examples: int, split: str = "test", start: int = 0) -> float:
    """The teacher's own AUC on the labels of examples [start, start + num_examples).

    No model beats it there except by luck: the teacher knows all but the coin that was tossed.
    """
    logits, labels = [], []
    for first in range(start, start + num_examples, _CHUNK):
      indices = np.arange(first, min(first + _CHUNK, start + num_examples))
      logits.append(self.teacher_logits(indices, split))
      labels.append(self._clicks(logits[-1], indices, split))
    return _auc(np.concatenate(logits), np.concatenate(labels))

  def batches(
    self,
    batch_size: int,
    *,
    num_steps: int | None = None,
    split: str = "train",
    start: int = 0,
    seed: int = 0,
    options: pipeline.InputOptions = pipeline.InputOptions(),
  ) -> Iterator[batch_lib.Batch]:
    """Host batches with their row plans, as ``pipeline.batches`` makes them."""
    return pipeline.batches(
      self,
      batch_size,
      num_steps=num_steps,
      split=split,
      start=start,
      seed=seed,
      options=options,
    )

  def describe(self) -> str:
    """The data set in a line."""
    exponents = sorted(set(self.zipf_exponents))
    zipf = f"{exponents[0]:g}" + (f"-{exponents[-1]:g}" if len(exponents) > 1 else "")
    return f"synthetic: {len(self.spec.features)} features, Zipf {zipf}, seed {self.seed}"

  def _key(self, what: str, split: str, *where: int | str) -> np.uint64:
    return counter_rng.stream_key("synthetic", self.seed, split, what, *where)

  def _place_keys(self, what: str, split: str, name: str, num_places: int) -> np.ndarray:
    """u64[L]: a stream for each place in a bag."""
    return np.array([self._key(what, split, name, place) for place in range(num_places)], np.uint64)

  def _clicks(self, logits: np.ndarray, indices: np.ndarray, split: str) -> np.ndarray:
    return counter_rng.uniform(self._key("click", split), indices) < synthetic_teacher.sigmoid(
      logits
    )

  def _draw(
    self, indices: np.ndarray, split: str
  ) -> tuple[np.ndarray, list[synthetic_teacher.Bags]]:
    """What the teacher sees of the examples."""
    bags = [self._draw_bags(feature, indices, split) for feature in self.spec.features]
    return self._draw_dense(indices, split), bags

  def _draw_dense(self, indices: np.ndarray, split: str) -> np.ndarray:
    """f32[n, I]: normal numbers, and in odd columns log-normal counts c as log(c + 1) - 1.2.

    log(c + 1) is DLRM's preprocessing of Criteo's counts; 1.2 is near its mean here.
    """
    keys = self._place_keys("dense", split, "", self.spec.num_dense)
    values = counter_rng.normal(keys[:, None], indices)
    values[1::2] = np.log1p(np.floor(np.exp(values[1::2] + 1.0))) - 1.2
    return np.ascontiguousarray(values.T, np.float32)

  def _draw_bags(
    self, feature: config.FeatureConfig, indices: np.ndarray, split: str
  ) -> synthetic_teacher.Bags:
    slots = self._slots(feature, indices, split)
    if feature.is_single_valued:
      return synthetic_teacher.Bags(slots)
    if feature.combiner == "none" and self.spec.groups:
      slots = self._to_taste(feature, slots, indices, split)
    length = feature.ids_per_bag
    chances = counter_rng.uniform(self._key("length", split, feature.name), indices)
    weights = (np.arange(length) < np.floor(chances * (length + 1))[:, None]).astype(np.float64)
    if feature.weighted:
      keys = self._place_keys("weight", split, feature.name, length)
      weights *= 0.5 + counter_rng.uniform(keys, indices[:, None])
    return synthetic_teacher.Bags(slots, weights)

  def _slots(
    self, feature: config.FeatureConfig, indices: np.ndarray, split: str, what: str = "id"
  ) -> np.ndarray:
    """i64[n, L]: popularity ranks turned by the drift."""
    places = indices[:, None]
    draws = counter_rng.uniform(
      self._place_keys(what, split, feature.name, feature.ids_per_bag), places
    )
    group = next((g for g, names in enumerate(self.correlated) if feature.name in names), None)
    if self.correlation and group is not None:
      shared_keys = self._place_keys("shared", split, str(group), feature.ids_per_bag)
      chances = counter_rng.uniform(self._key("is_shared", split, group), places)
      shared = counter_rng.uniform(shared_keys, places)
      draws = np.where(chances < self.correlation, shared, draws)
    vocab_size = feature.table.vocab_size
    exponent = self.zipf_exponents[self.spec.features.index(feature)]
    slots = zipf_ranks(draws, vocab_size, exponent)
    if self.drift:
      turned = np.floor(places * (self.drift * vocab_size / 1e6)).astype(np.int64)
      slots = (slots + turned) % vocab_size
    return slots

  def _to_taste(
    self, feature: config.FeatureConfig, slots: np.ndarray, indices: np.ndarray, split: str
  ) -> np.ndarray:
    """i64[n, L]: of ``slots`` and a second draw, place by place, what the user likes better."""
    (name,) = self.spec.groups
    user = next(other for other in self.spec.features if other.name == name)
    user_slots = self._slots(user, indices, split)
    _, *taste = synthetic_teacher.id_effects(self.seed, user.table.name, user_slots)

    def liking(candidates: np.ndarray) -> np.ndarray:
      _, *latents = synthetic_teacher.id_effects(self.seed, feature.table.name, candidates)
      return sum(likes * latent for likes, latent in zip(taste, latents, strict=True))

    others = self._slots(feature, indices, split, "other")
    return np.where(liking(slots) >= liking(others), slots, others)

  def _named(self, feature: config.FeatureConfig, bag: synthetic_teacher.Bags) -> id_bags.IdBags:
    name = functools.partial(
      shuffle.permuted,
      num_examples=feature.table.vocab_size,
      seed=int(counter_rng.stream_key("names", self.seed, feature.table.name)),
    )
    if bag.weights is None:
      return id_bags.IdBags(values=name(bag.slots[:, 0]).astype(np.int32))
    is_present = bag.weights > 0
    return id_bags.IdBags.from_lengths(
      name(bag.slots[is_present]).astype(np.int32),
      is_present.sum(axis=1, dtype=np.int32),
      capacity=bag.slots.size,
      weights=bag.weights[is_present] if feature.weighted else None,
    )


def synthetic(
  features: Sequence[config.FeatureConfig],
  *,
  num_dense: int,
  seed: int = 0,
  zipf_exponent: float | Mapping[str, float] = ZIPF_EXPONENT,
  drift: float = 0.0,
  correlated: Sequence[Sequence[str]] | None = None,
  correlation: float = 0.0,
  teacher: str = "dot",
) -> SyntheticClicks:
  """A click log over any features.

  Bags hold 0 to ids_per_bag ids; weights lie in [0.5, 1.5). A sequence (combiner ``none``) is a
  history: each of its ids is, of two draws, the one that the example's user likes better, and
  clicks depend on how it fits the candidate, the single-valued feature of the same table. The user
  is the feature named ``user``, or else the largest single-valued one; its ids are the group.

  Splits share one clock: position k of ``test`` has the popularity of position k of ``train``.

  Args:
    features: the categorical inputs.
    num_dense: I, the number of dense inputs.
    seed: another seed, another log with another teacher.
    zipf_exponent: of the popularity of ids (0: uniform), for all features or by feature name;
      those not named have ZIPF_EXPONENT.
    drift: share of a vocabulary by which popularity turns per million positions; with 0.01 the most
      popular of 10,000 ids is, 1M examples later, the one that used to be the 101st.
    correlated: groups of feature names, disjoint; None: all features are one group.
    correlation: chance that, in an example, the features of a group share one draw, hence ids of
      the same relative popularity.
    teacher: ``dot`` or ``multiplicative``, see synthetic_teacher.py.

  Raises:
    ConfigError: an unknown feature name or teacher, a value out of range, nothing to learn from.

  >>> clicks = synthetic(default_features(), num_dense=13)
  >>> clicks.read(np.arange(100, 104)).labels["click"].shape
  (4,)
  """
  features = tuple(features)
  names = [feature.name for feature in features]
  if not isinstance(zipf_exponent, Mapping):
    zipf_exponent = dict.fromkeys(names, zipf_exponent)
  exponents = dict.fromkeys(names, ZIPF_EXPONENT) | dict(zipf_exponent)
  groups = (tuple(names),) if correlated is None else tuple(map(tuple, correlated))
  _check_names("zipf_exponent", exponents, names)
  _check_names("correlated", [name for group in groups for name in group], names)
  _check_range("num_dense", num_dense, 0, 2**20)
  _check_range("drift", drift, 0.0, 1e6)
  _check_range("correlation", correlation, 0.0, 1.0)
  for name, exponent in exponents.items():
    _check_range(f"zipf_exponent of feature {name!r}", exponent, 0.0, 10.0)
  clicks = SyntheticClicks(
    spec=batch_lib.BatchSpec(features, num_dense, groups=_user_group(features)),
    seed=seed,
    zipf_exponents=tuple(float(exponents[name]) for name in names),
    drift=drift,
    correlated=groups,
    correlation=correlation,
    teacher=synthetic_teacher.make_teacher(features, num_dense=num_dense, seed=seed, kind=teacher),
  )
  sample = clicks._draw(np.arange(_CALIBRATION_EXAMPLES), _CALIBRATION)
  return dataclasses.replace(
    clicks, teacher=clicks.teacher.calibrated(clicks.teacher.parts(*sample))
  )


def default_features() -> tuple[config.FeatureConfig, ...]:
  """26 features like Criteo's, to go with 13 dense inputs: two are bags, and 0.4M rows of 16."""
  vocab_sizes = (
    *(1_460, 583, 150_000, 60_000, 305, 24, 12_517, 633, 3, 100_000, 5_683, 40_000, 3_194),
    *(27, 992, 20_000, 10, 2_652, 2_173, 4, 310, 18, 15, 7_500, 105, 62),
  )
  ids_per_bag = {"C2": 3, "C11": 5}
  features = []
  for number, vocab_size in enumerate(vocab_sizes, start=1):
    name = f"C{number}"
    table = config.TableConfig(name, vocab_size=vocab_size, embedding_dim=16)
    length = ids_per_bag.get(name, 1)
    combiner = "mean" if length > 1 else "sum"
    features.append(config.FeatureConfig(name, table, combiner=combiner, ids_per_bag=length))
  return tuple(features)


def zipf_ranks(draws: np.ndarray, vocab_size: int, exponent: float) -> np.ndarray:
  """Popularity ranks i64[...] in [0, vocab_size) for uniform ``draws: f64[...]`` in [0, 1).

  The bounded Pareto law with density ~ x^-exponent on [1, H), H = vocab_size + 1, rounded down:
  ``P(rank < r) = (1 - (r + 1)^-a) / (1 - H^-a)`` with a = exponent - 1.

  >>> zipf_ranks(np.array([0.0, 0.5, 0.999]), 1000, 1.05).tolist()
  [0, 22, 991]
  """
  tail = exponent - 1.0
  high = vocab_size + 1.0
  if abs(tail) < 1e-9:
    x = high**draws  # the limit
  else:
    x = (1.0 - draws * (1.0 - high**-tail)) ** (-1.0 / tail)
  return np.minimum(x.astype(np.int64), vocab_size) - 1


def _user_group(features: Sequence[config.FeatureConfig]) -> tuple[str, ...]:
  singles = [feature for feature in features if feature.is_single_valued]
  named = [feature.name for feature in singles if feature.name == "user"]
  if named or not singles:
    return tuple(named)
  return (max(singles, key=lambda feature: feature.table.vocab_size).name,)


def _auc(scores: np.ndarray, labels: np.ndarray) -> float:
  """The chance that a positive scores above a negative, ties half: the rank-sum statistic."""
  num_positives = int(labels.sum())
  num_pairs = num_positives * (len(labels) - num_positives)
  if not num_pairs:
    return float("nan")
  from scipy import stats  # takes a second to import, in every worker process

  rank_sum = stats.rankdata(scores)[labels].sum()
  return float((rank_sum - num_positives * (num_positives + 1) / 2) / num_pairs)


def _check_positions(indices: np.ndarray, split: str) -> np.ndarray:
  _check_split(split)
  indices = np.asarray(indices, np.int64)
  if indices.ndim != 1 or (indices.size and indices.min() < 0):
    raise ValueError(
      f"synthetic: expected positions i64[n] >= 0 in split {split!r}, got {list(indices.shape)}"
      + (f" from {indices.min()}" if indices.size else "")
    )
  return indices


def _check_split(split: str) -> None:
  if split not in SPLITS:
    hint = config.did_you_mean(split, SPLITS)
    raise config.ConfigError(f"synthetic: no split {split!r}; {hint}")


def _check_names(what: str, given: Iterable[str], names: Sequence[str]) -> None:
  given = list(given)
  for name in given:
    if name not in names:
      hint = config.did_you_mean(name, names)
      raise config.ConfigError(f"synthetic: {what} names no feature {name!r}; {hint}")
  if len(set(given)) < len(given):
    raise config.ConfigError(f"synthetic: {what} names a feature twice: {sorted(given)}")


def _check_range(what: str, value: float, low: float, high: float) -> None:
  if not low <= value <= high:
    raise config.ConfigError(f"synthetic: {what} must lie in [{low}, {high}], got {value}")
