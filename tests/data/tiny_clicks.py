"""A click log so small that a whole run lasts about a second; it can be spoiled on demand."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping

import numpy as np

from jaxrec import config
from jaxrec.config import experiment as experiment_lib
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import id_bags


@dataclasses.dataclass(frozen=True)
class TinyClicks:
  """A finite source: single-valued, multi-hot and weighted features, and a group to judge by.

  ``fault`` names what is wrong with training example ``fault_at``.
  """

  seed: int
  embedding_dim: int = 4
  max_rows: int = 40
  fault: str = ""
  fault_at: int = 0
  size: int = 1000
  labels: tuple[str, ...] = ("click",)  # and "like", which is another thing

  @functools.cached_property
  def spec(self) -> batch_lib.BatchSpec:
    def table(name: str, rows: int) -> config.TableConfig:
      return config.TableConfig(name, min(rows, self.max_rows), self.embedding_dim)

    features = (
      config.FeatureConfig("user", table("user", 40)),
      config.FeatureConfig("item", table("item", 30)),
      config.FeatureConfig("tags", table("tag", 20), combiner="mean", ids_per_bag=3, weighted=True),
    )
    return batch_lib.BatchSpec(features, 2, self.labels, ("user", "day"), ("age", "price"))

  def num_examples(self, split: str) -> int:
    return self.size if split == "train" else 150

  def read(self, indices: np.ndarray, split: str = "train") -> batch_lib.Batch:
    sys.audit("read", split)  # so that a Kill can fall into an evaluation
    salt = ("train", "val", "test").index(split)
    draws = [np.random.default_rng((self.seed, salt, index)) for index in indices.tolist()]
    user, item, num_tags = (
      np.array([rng.integers(0, high) for rng in draws], np.int32)
      for high in (
        self.spec.features[0].table.vocab_size,
        self.spec.features[1].table.vocab_size,
        4,
      )
    )
    num_rows = self.spec.features[2].table.vocab_size
    tags = np.array([rng.integers(0, num_rows, 3) for rng in draws])
    tags = np.where(np.arange(3) < num_tags[:, None], tags, -1).astype(np.int32)
    dense = np.array([rng.normal(size=2) for rng in draws], np.float32)
    chances = 1 / (1 + np.exp(1 - dense[:, 0] - (user % 3) + (item % 2)))
    clicks = np.array([rng.random() for rng in draws]) < chances
    labels = {"click": clicks.astype(np.float32)}
    if "like" in self.labels:
      chances = 1 / (1 + np.exp(2 - dense[:, 1] - item % 3))
      likes = np.array([rng.random() for rng in draws]) < chances
      labels["like"] = likes.astype(np.float32)
    batch = batch_lib.Batch(
      dense=dense,
      ids={
        "user": id_bags.IdBags.single(user),
        "item": id_bags.IdBags.single(item),
        "tags": id_bags.IdBags.from_dense(tags, weights=np.full(tags.shape, 0.5, np.float32)),
      },
      labels={name: labels[name] for name in self.labels},
      weights=np.ones(len(indices), np.float32),
      groups={"user": user, "day": (indices % 7).astype(np.int32)},
    )
    is_bad = (indices == self.fault_at) & (split == "train")
    return FAULTS[self.fault](batch, is_bad) if is_bad.any() else batch

  def group_names(self, column: str) -> list[str] | None:
    return ["Monday", "Tuesday", "Wednesday"] if column == "day" else None


def _spoil_label(value: float, batch: batch_lib.Batch, is_bad: np.ndarray) -> batch_lib.Batch:
  labels = np.where(is_bad, np.float32(value), batch.labels["click"])
  return batch.replace(labels=batch.labels | {"click": labels})


def _spoil_dense(batch: batch_lib.Batch, is_bad: np.ndarray) -> batch_lib.Batch:
  dense = batch.dense.copy()
  dense[is_bad, 1] = np.nan
  return batch.replace(dense=dense)


def _spoil_id(batch: batch_lib.Batch, is_bad: np.ndarray) -> batch_lib.Batch:
  values = np.where(is_bad, np.int32(30), batch.ids["item"].values)
  return batch.replace(ids=batch.ids | {"item": id_bags.IdBags.single(values)})


FAULTS: Mapping[str, Callable[[batch_lib.Batch, np.ndarray], batch_lib.Batch]] = {
  "": lambda batch, _: batch,
  "dense_nan": _spoil_dense,
  "label_minus_one": functools.partial(_spoil_label, -1.0),
  "label_nan": functools.partial(_spoil_label, np.nan),
  "label_two": functools.partial(_spoil_label, 2.0),
  "id_out_of_range": _spoil_id,
}


def load(data: experiment_lib.DataConfig, embedding_dim: int) -> TinyClicks:
  """``--dataset=tiny``; ``--data_dir=label_nan:500`` spoils its example 500 with a fault."""
  fault, _, place = (data.data_dir or "").partition(":")
  source = TinyClicks(
    data.seed, embedding_dim, data.max_rows_per_table or 40, fault, int(place or 0)
  )
  return dataclasses.replace(source, labels=data.labels or source.labels)
