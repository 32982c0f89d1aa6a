"""An endless click log: the default data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from jaxrec import config
from jaxrec.data import counter_rng, order, teacher as teacher_lib
from jaxrec.features import batch as batch_lib

SPLITS = ("train", "val", "test")
EVAL_EXAMPLES = 1_000_000
ZIPF_EXPONENT = 1.05
_CHUNK = 4096
_CALIBRATION_EXAMPLES = 1 << 14


@dataclasses.dataclass(frozen=True)
class SyntheticClicks:
  spec: batch_lib.BatchSpec
  seed: int
  zipf_exponents: tuple[float, ...]
  drift: float
  correlated: tuple[tuple[str, ...], ...]
  correlation: float
  teacher: teacher_lib.Teacher

  def num_examples(self, split: str) -> int | None:
    _check_split(split)
    return None if split == "train" else EVAL_EXAMPLES

  def read(self, indices: np.ndarray, split: str = "train") -> batch_lib.Batch:
    indices = self._positions(indices, split)
    dense, bags = self._draw(indices, split)
    chances = teacher_lib.sigmoid(self.teacher.logits(dense, bags))
    clicks = counter_rng.uniform(self._key("label", split), indices) < chances
    ids = {
        feature.name: self._id_bags(feature, bag)
        for feature, bag in zip(self.spec.features, bags, strict=True)
    }
    return batch_lib.Batch(
        dense=dense,
        ids=ids,
        labels={"click": clicks.astype(np.float32)},
        weights=np.ones(len(indices), np.float32),
        groups={name: ids[name].values for name in self.spec.groups},
    )

  def teacher_logits(self, indices: np.ndarray, split: str = "train") -> np.ndarray:
    return self.teacher.logits(*self._draw(self._positions(indices, split), split))

  def ceiling(self, num_examples: int, *, split: str = "test", start: int = 0) -> float:
    logits, labels = [], []
    for first in range(start, start + num_examples, _CHUNK):
      indices = np.arange(first, min(first + _CHUNK, start + num_examples))
      logits.append(self.teacher_logits(indices, split))
      labels.append(counter_rng.uniform(self._key("label", split), indices) < teacher_lib.sigmoid(logits[-1]))
    return _auc(np.concatenate(logits), np.concatenate(labels))

  def _positions(self, indices, split):
    _check_split(split)
    return np.asarray(indices, np.int64)

  def _key(self, what: str, split: str, *where: int | str) -> np.uint64:
    return counter_rng.stream_key("synthetic", self.seed, split, what, *where)

  def _draw(self, indices, split):
    bags = {}
    features = sorted(self.spec.features, key=lambda f: f.name not in self.spec.groups)
    for feature in features:
      bags[feature.name] = self._draw_bags(feature, indices, split, bags)
    return self._dense(indices, split), [bags[f.name] for f in self.spec.features]

  def _dense(self, indices, split):
    keys = np.array([self._key("dense", split, c) for c in range(self.spec.num_dense)], np.uint64)
    values = counter_rng.normal(keys, indices[:, None])
    counts = np.floor(np.exp(values[:, 1::2] + 1))
    values[:, 1::2] = np.log1p(counts) - 1.2
    return values.astype(np.float32)

  def _draw_bags(self, feature, indices, split, drawn):
    length = feature.ids_per_bag
    slots = self._slots(feature, indices, split, 0)
    if feature.is_single_valued:
      return teacher_lib.Bags(slots)
    if feature.combiner == "none" and self.spec.groups:
      slots = self._to_taste(feature, slots, self._slots(feature, indices, split, 1), drawn)
    lengths = counter_rng.bits(self._key("length", split, feature.name), indices) % np.uint64(length + 1)
    weights = (np.arange(length) < lengths[:, None]).astype(np.float64)
    if feature.weighted:
      weights *= 0.5 + counter_rng.uniform(self._keys(feature, "weight", split), indices[:, None])
    return teacher_lib.Bags(slots, weights)

  def _keys(self, feature, what, split, *where):
    return np.array([self._key(what, split, feature.name, l, *where) for l in range(feature.ids_per_bag)])

  def _slots(self, feature, indices, split, draw):
    number = self.spec.features.index(feature)
    uniforms = counter_rng.uniform(self._keys(feature, "id", split, draw), indices[:, None])
    vocab_size = feature.table.vocab_size
    ranks = zipf_ranks(uniforms, vocab_size, self.zipf_exponents[number])
    if self.drift:
      ranks = (ranks + np.floor(indices * (self.drift * vocab_size / 1e6)).astype(np.int64)[:, None]) % vocab_size
    return ranks

  def _to_taste(self, feature, first, second, drawn):
    (user,) = self.spec.groups
    table = next(f.table.name for f in self.spec.features if f.name == user)
    taste = teacher_lib.id_effects(self.seed, table, drawn[user].slots)[1:]
    def affinity(slots):
      return (teacher_lib.id_effects(self.seed, feature.table.name, slots)[1:] * taste).sum(0)
    return np.where(affinity(first) >= affinity(second), first, second)

  def _id_bags(self, feature, bag):
    key = int(counter_rng.stream_key("names", self.seed, feature.table.name) >> np.uint64(1))
    present = slice(None) if bag.weights is None else bag.weights > 0
    ids = order.permuted(bag.slots[present].reshape(-1), num_examples=feature.table.vocab_size, seed=key).astype(np.int32)
    if bag.weights is None:
      return batch_lib.IdBags(values=ids)
    return batch_lib.IdBags.from_lengths(
        ids,
        present.sum(axis=1, dtype=np.int32),
        capacity=bag.slots.size,
        weights=bag.weights[present] if feature.weighted else None,
    )


def zipf_ranks(uniforms, vocab_size, exponent):
  tail = exponent - 1.0
  high = float(vocab_size + 1)
  if abs(tail) < 1e-9:
    x = high**uniforms
  else:
    x = (1.0 - uniforms * (1.0 - high**-tail)) ** (-1.0 / tail)
  return np.minimum(x.astype(np.int64), vocab_size) - 1


def synthetic(features, *, num_dense, seed=0, zipf_exponent=ZIPF_EXPONENT, drift=0.0, correlated=None, correlation=0.0, teacher="dot"):
  features = tuple(features)
  singles = [f for f in features if f.is_single_valued]
  group = next((f.name for f in singles if f.name == "user"), None)
  if group is None and singles:
    group = max(singles, key=lambda f: f.table.vocab_size).name
  exps = tuple(zipf_exponent.get(f.name, ZIPF_EXPONENT) if isinstance(zipf_exponent, Mapping) else float(zipf_exponent) for f in features)
  clicks = SyntheticClicks(
      spec=batch_lib.BatchSpec(features, num_dense, ("click",), (group,) if group else ()),
      seed=seed, zipf_exponents=exps, drift=drift, correlated=(), correlation=correlation,
      teacher=teacher_lib.make_teacher(features, num_dense=num_dense, seed=seed, kind=teacher))
  sample = clicks._draw(np.arange(_CALIBRATION_EXAMPLES), "calibration")
  return dataclasses.replace(clicks, teacher=clicks.teacher.calibrated(clicks.teacher.parts(*sample)))


def default_features():
  vocab = (1460, 583, 150_000, 60_000, 305, 24, 12_517, 633, 3, 100_000, 5_683, 40_000, 3_194, 27, 992, 20_000, 10, 2_652, 2_173, 4, 310, 18, 15, 7_500, 105, 62)
  feats = []
  for i, v in enumerate(vocab):
    bag = {1: 3, 10: 5}.get(i, 1)
    feats.append(config.FeatureConfig(f"C{i+1}", config.TableConfig(f"C{i+1}", v, 16), combiner="mean" if bag > 1 else "sum", ids_per_bag=bag))
  return tuple(feats)


def _auc(scores, labels):
  ranks = scipy.stats.rankdata(scores)
  positives = int(labels.sum())
  negatives = len(labels) - positives
  if not positives or not negatives:
    return float("nan")
  return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _check_split(split):
  if split not in SPLITS + ("calibration",):
    raise config.ConfigError(f"split: no split {split!r}; {config.did_you_mean(split, SPLITS)}")
