"""From unique rows to what a model reads: one embedding a feature.

Source: the pooled and sequence embedding collections of TorchRec, as one function.
Read next: jaxrec/layers/pooling.py.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import config
from jaxrec.features import batch as batch_lib
from jaxrec.features import id_bags, stacks
from jaxrec.layers import pooling


def embed(
  plan: stacks.TablePlan,
  rows: Mapping[str, jax.Array],
  row_plans: Mapping[str, batch_lib.RowPlan],
  batch: batch_lib.Batch,
) -> collections.OrderedDict[str, jax.Array]:
  """Spreads ``rows: f32[U, D]`` of each stack over the ids and pools each bag.

  An id outside its table reads as NaN in a batch that brings no plan of its own; a plan made on the
  host has refused it already.

  Returns:
    In feature order: f32[B, D], or for ``combiner="none"`` the pair (f32[B, L, D], mask bool[B,
    L]). An OrderedDict, because JAX keeps its order through ``jit`` and sorts a plain dict.
  """
  found = {}
  for stack in plan.stacks:
    # One gather a stack: of all its features' ids at once.
    spread = rows[stack.name].at[row_plans[stack.name].inverse].get(mode="fill", fill_value=0)
    features = plan.features_of(stack)
    sizes = [batch.ids[feature.name].capacity for feature in features]
    # The gradient of split is one concatenation; of slices it would be a padded sum a feature.
    for feature, part in zip(features, jax.lax.split(spread, sizes), strict=True):
      if batch.rows is None:
        part = _nan_where_out_of_range(feature, part, batch)
      found[feature.name] = _combine(feature, part, batch.ids[feature.name])
  return collections.OrderedDict((f.name, found[f.name]) for f in plan.features)


def _nan_where_out_of_range(
  feature: config.FeatureConfig, rows: jax.Array, batch: batch_lib.Batch
) -> jax.Array:
  """The host's plan refuses an id out of range; in ``jit`` it cannot be refused, only be seen."""
  values = jnp.asarray(batch.ids[feature.name].values)
  is_unknown = (values >= feature.table.vocab_size) | (values < id_bags.PAD_ID)
  is_unknown &= batch_lib.is_real(batch, feature.name)
  return jnp.where(is_unknown[:, None], jnp.nan, rows)


def _combine(feature: config.FeatureConfig, rows: jax.Array, bags: id_bags.IdBags) -> Any:
  if bags.row_splits is None:
    return rows
  if feature.combiner == "none":
    return pooling.to_sequence(rows, bags.bag_ids(), bags.row_splits, feature.ids_per_bag)
  return pooling.pool(
    rows, bags.bag_ids(), bags.batch_size, combiner=feature.combiner, weights=bags.weights
  )
