"""From unique rows to what a model reads: one embedding a feature.

Source: the pooled and sequence embedding collections of TorchRec, as one function.
Read next: jaxrec/layers/pooling.py, jaxrec/layers/sequences.py.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import config
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import id_bags, table_plan
from jaxrec.layers import pooling, sequences


def embed(
  plan: table_plan.TablePlan,
  rows: Mapping[str, jax.Array],
  row_plans: Mapping[str, batch_lib.RowPlan],
  batch: batch_lib.Batch,
  words: Mapping[str, jax.Array] | None = None,
) -> collections.OrderedDict[str, jax.Array]:
  """Spreads ``rows: f32[U, D]`` of each stack over the ids and pools each bag.

  An id outside its table reads as NaN in a batch that brings no plan of its own, in a sequence with
  all others of its feature; a plan made on the host has refused it already.

  Args:
    plan: of the tables.
    rows: f32[U, D] by stack.
    row_plans: which of them each id reads, by stack.
    batch: of the ids.
    words: u32[U, W] by stack, fingerprints of ``rows`` where the tables keep some
      (``fetch``); sequences carry them.

  Returns:
    In feature order: f32[B, D], or for ``combiner="none"`` a ``layers.RowSequence`` of L =
    ids_per_bag steps, whose rows are those of the batch. An OrderedDict, because JAX keeps its
    order through ``jit`` and sorts a plain dict.
  """
  found: dict[str, Any] = {}
  for stack in plan.stacks:
    features = plan.features_of(stack)
    sizes = [batch.ids[feature.name].capacity for feature in features]
    places = jnp.asarray(row_plans[stack.name].inverse)
    parts = dict(zip(features, jax.lax.split(places, sizes), strict=True))
    pooled = [feature for feature in features if feature.combiner != "none"]
    for feature in features:
      if feature.combiner == "none":
        sequence = _sequence(feature, rows[stack.name], parts[feature], batch)
        found[feature.name] = dataclasses.replace(sequence, words=(words or {}).get(stack.name))
    if not pooled:
      continue
    if len(pooled) < len(features):
      places = jnp.concatenate([parts[feature] for feature in pooled])
    # One gather a stack: of all its features' ids at once.
    spread = rows[stack.name].at[places].get(mode="fill", fill_value=0)
    # The gradient of split is one concatenation; of slices it would be a padded sum a feature.
    sizes = [batch.ids[feature.name].capacity for feature in pooled]
    for feature, part in zip(pooled, jax.lax.split(spread, sizes), strict=True):
      if batch.rows is None:
        part = jnp.where(_is_out_of_range(feature, batch)[:, None], jnp.nan, part)
      found[feature.name] = _combine(feature, part, batch.ids[feature.name])
  return collections.OrderedDict((f.name, found[f.name]) for f in plan.features)


def _is_out_of_range(feature: config.FeatureConfig, batch: batch_lib.Batch) -> jax.Array:
  """bool[N]. The host's plan refuses such an id; in ``jit`` it cannot be refused, only be seen."""
  values = jnp.asarray(batch.ids[feature.name].values)
  is_unknown = (values >= feature.table.vocab_size) | (values < id_bags.PAD_ID)
  return is_unknown & batch_lib.is_real(batch, feature.name)


def _sequence(
  feature: config.FeatureConfig, rows: jax.Array, places: jax.Array, batch: batch_lib.Batch
) -> sequences.RowSequence:
  splits = jnp.asarray(batch.ids[feature.name].row_splits)
  if batch.rows is None:  # such an id has no row to be NaN, so all of them are; added, so that
    # gradients are summed as with a plan
    rows += jnp.where(jnp.any(_is_out_of_range(feature, batch)), jnp.nan, 0.0)
  steps = splits[:-1, None] + jnp.arange(feature.ids_per_bag, dtype=splits.dtype)
  mask = steps < splits[1:, None]
  places = places.at[steps].get(mode="fill", fill_value=len(rows))
  return sequences.RowSequence(rows, jnp.where(mask, places, len(rows)), mask)


def _combine(feature: config.FeatureConfig, rows: jax.Array, bags: id_bags.IdBags) -> Any:
  if bags.row_splits is None:
    return rows
  return pooling.pool(
    rows, bags.bag_ids(), bags.batch_size, combiner=feature.combiner, weights=bags.weights
  )
