"""Smaller tables, end to end: a data set with compressed tables, and a model that reads them.

``layers.compression`` changes specs and ids; neither the data set nor the model should have to
know. The data set is seen through a view that splits the ids of its large tables, and
``MergeQuotientRemainder`` a model around a model, which joins what was looked up. Mixed dimensions
change the specs alone, as the models project narrow embeddings themselves.

Source: as in layers/compression.py; the switches are those of DLRM's reference code (``qr_flag``,
``md_flag``).
Read next: jaxrec/layers/compression.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from jaxrec import config as config_lib
from jaxrec.config import experiment as experiment_lib
from jaxrec.data import pipeline
from jaxrec.data.views import view
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import id_bags, row_plan
from jaxrec.layers import compression


@dataclasses.dataclass(frozen=True)
class SplitIds:
  """From batches of whole tables to batches of smaller ones, in which a split feature is two.

  Attributes:
    split: features whose ids are split.
    num_collisions: ids that share a quotient row.
  """

  split: tuple[config_lib.FeatureConfig, ...]
  num_collisions: int

  def __call__(self, batch: batch_lib.Batch) -> batch_lib.Batch:
    """ValueError: an id lies outside the whole table; split, it would name another id's rows."""
    row_plan.check_ids(batch, self.split)
    split = {feature.name for feature in self.split}
    ids: dict[str, id_bags.IdBags] = {}
    for name, bags in batch.ids.items():
      if name not in split:
        ids[name] = bags
        continue
      parts = compression.split_ids(bags.values, self.num_collisions)
      for part, values in zip((compression.QUOTIENT, compression.REMAINDER), parts, strict=True):
        ids[name + part] = dataclasses.replace(bags, values=values)
    return dataclasses.replace(batch, ids=ids)


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
  # Tables with an optimizer of their own, as a wide part's, are left alone.
  own = [feature for feature in features if feature.table.optimizer is not None]
  features = tuple(feature for feature in features if feature.table.optimizer is None)
  if config.kind == "none" or not features:
    return source, model
  if config.kind == "mixed_dims":
    return _view(source, [*_narrowed(features, config), *own], config), model
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
  return _view(source, [*split, *own], config), MergeQuotientRemainder(model, config.operation)


def memory_ratio(source: pipeline.Source) -> float:
  """How many times smaller the tables of ``source`` have been made; 1 for tables left alone."""
  whole = source.source if isinstance(source, view.View) else source
  return compression.memory_ratio(whole.spec.features, source.spec.features)


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


def _view(
  source: pipeline.Source,
  features: list[config_lib.FeatureConfig],
  config: experiment_lib.CompressionConfig,
) -> view.View:
  kept = {feature.name for feature in features}
  split = tuple(feature for feature in source.spec.features if feature.name not in kept)
  spec = dataclasses.replace(source.spec, features=tuple(features))
  return view.View(source, spec, SplitIds(split, config.num_collisions))
