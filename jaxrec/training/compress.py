"""Smaller tables, end to end: a data set with compressed tables, and a model that reads them.

``layers.compression`` changes specs and ids; neither the data set nor the model should have to
know. ``Compressed`` is a source around a source, which splits the ids of its large tables, and
``MergeQuotientRemainder`` a model around a model, which joins what was looked up. Mixed dimensions
change the specs alone, as the models project narrow embeddings themselves.

Source: as in layers/compression.py; the switches are those of DLRM's reference code (``qr_flag``,
``md_flag``).
Read next: jaxrec/layers/compression.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxrec import config as config_lib
from jaxrec import experiment as experiment_lib
from jaxrec.data import pipeline
from jaxrec.features import batch as batch_lib
from jaxrec.features import id_bags, row_plan, validate
from jaxrec.layers import compression

_DELEGATED = ("ceiling", "describe", "group_names")  # what a source may offer beside its examples


@dataclasses.dataclass(frozen=True)
class Compressed:
  """``source`` with smaller tables. Where the source describes itself or knows its ceiling, so does
  this.

  Attributes:
    source: the data set as it is.
    spec: of its batches, in which a split feature is two.
    num_collisions: ids that share a quotient row.
  """

  source: pipeline.Source
  spec: batch_lib.BatchSpec
  num_collisions: int

  def num_examples(self, split: str) -> int | None:
    return self.source.num_examples(split)

  def read(self, indices: np.ndarray, split: str = "train") -> batch_lib.Batch:
    """The source's examples, ids of split features as quotients and remainders.

    Raises:
      BadExampleError: an id lies outside the whole table; split, it would name another id's rows.
    """
    batch = self.source.read(indices, split)
    try:
      return self.split(batch)
    except ValueError as error:
      raise validate.BadExampleError(f"{error} (split {split!r})") from error

  def split(self, batch: batch_lib.Batch) -> batch_lib.Batch:
    """A host batch of the whole tables as one of the smaller ones.

    Raises:
      ValueError: an id lies outside the whole table.
    """
    wanted = {feature.name for feature in self.spec.features}
    row_plan.check_ids(batch, [f for f in self.source.spec.features if f.name not in wanted])
    ids: dict[str, id_bags.IdBags] = {}
    for name, bags in batch.ids.items():
      if name in wanted:
        ids[name] = bags
        continue
      parts = compression.split_ids(bags.values, self.num_collisions)
      for part, values in zip((compression.QUOTIENT, compression.REMAINDER), parts, strict=True):
        ids[name + part] = dataclasses.replace(bags, values=values)
    return dataclasses.replace(batch, ids=ids)

  def batches(self, batch_size: int, **options: Any) -> Iterator[batch_lib.Batch]:
    """Host batches of the smaller tables, as ``pipeline.batches`` makes them."""
    return pipeline.batches(self, batch_size, **options)

  def __getattr__(self, name: str) -> Any:
    if name not in _DELEGATED:  # nothing else: what it read would not be of the smaller tables
      raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
    return getattr(self.source, name)


class MergeQuotientRemainder(nn.Module):
  """``model`` on the merged vectors of split features."""

  model: nn.Module
  operation: str

  def __call__(self, dense: jax.Array, embeddings: Any) -> jax.Array:
    """As ``model``, whose arguments these are."""
    return self.model(dense, compression.merge_quotient_remainder(embeddings, self.operation))


def compressed(
  source: pipeline.Source, model: nn.Module, config: experiment_lib.CompressionConfig
) -> tuple[pipeline.Source, nn.Module]:
  """Data set and model as ``config`` wants them; the same two if it wants nothing.

  Raises:
    ValueError: a feature cannot be split; the message names it.
  """
  features = source.spec.features
  if config.kind == "none":
    return source, model
  if config.kind == "mixed_dims":
    return _with_features(source, _narrowed(features, config), config), model
  split = [
    part
    for feature in features
    for part in compression.quotient_remainder(
      feature,
      num_collisions=config.num_collisions,
      threshold=config.threshold,
      operation=config.operation,
    )
  ]
  return _with_features(source, split, config), MergeQuotientRemainder(model, config.operation)


def original(source: pipeline.Source) -> pipeline.Source:
  """The data set behind ``compressed``."""
  return source.source if isinstance(source, Compressed) else source


def memory_ratio(source: pipeline.Source) -> float:
  """How many times smaller the tables of ``source`` have been made; 1 for tables left alone."""
  return compression.memory_ratio(original(source).spec.features, source.spec.features)


def _narrowed(
  features: tuple[config_lib.FeatureConfig, ...], config: experiment_lib.CompressionConfig
) -> list[config_lib.FeatureConfig]:
  """``features`` with the widths of ``compression.mixed_dims``; a shared table is counted once."""
  tables = {feature.table.name: feature.table for feature in features}
  lookups = [
    sum(f.ids_per_bag for f in features if f.table.name == table.name) for table in tables.values()
  ]
  widths = compression.mixed_dims(
    [table.vocab_size for table in tables.values()],
    base_dim=max(table.embedding_dim for table in tables.values()),
    alpha=config.alpha,
    lookups=lookups,
    threshold=config.threshold,
  )
  narrow = {
    table.name: dataclasses.replace(table, embedding_dim=width)
    for table, width in zip(tables.values(), widths, strict=True)
  }
  return [dataclasses.replace(f, table=narrow[f.table.name]) for f in features]


def _with_features(
  source: pipeline.Source,
  features: list[config_lib.FeatureConfig],
  config: experiment_lib.CompressionConfig,
) -> Compressed:
  spec = dataclasses.replace(source.spec, features=tuple(features))
  return Compressed(source, spec, config.num_collisions)
