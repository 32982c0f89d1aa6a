"""All that training changes, as one frozen pytree.

Where the towers meet: dense parameters with their optax state on one side, tables with their row
optimizer's state on the other.

Read next: jaxrec/training/step.py.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxrec import sharding
from jaxrec import tables as tables_lib
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import table_plan
from jaxrec.layers import lsh_attention, sequences


@dataclasses.dataclass(frozen=True)
class Optimizers:
  """What moves what.

  Attributes:
    dense: any optax transform, for the model's parameters.
    rows: a row optimizer for the tables, or several by ``TableConfig.optimizer``.
  """

  dense: optax.GradientTransformation
  rows: tables_lib.RowOptimizer | Mapping[Any, tables_lib.RowOptimizer]


@flax.struct.dataclass
class TrainState:
  """State after ``step`` updates.

  Attributes:
    step: i32[].
    params: the model's dense parameters.
    opt_state: their optax state.
    tables: the embedding tables.
    row_state: the tables' moments and the row optimizer's globals.
    rng: key for what a step draws, such as dropout, folded with ``step``; it is never replaced.
  """

  step: jax.Array
  params: Any
  opt_state: optax.OptState
  tables: tables_lib.DeviceTables
  row_state: tables_lib.RowOptState
  rng: jax.Array


def init_state(
  key: jax.Array,
  model: nn.Module,
  spec: batch_lib.BatchSpec,
  *,
  tx: Optimizers,
  placement: sharding.Sharded | tables_lib.OneDevice | None = None,
) -> TrainState:
  """A fresh state for ``model`` on batches of ``spec``, built where it will lie.

  Dense parameters, tables and everything else are functions of ``key`` alone. ``placement`` spreads
  the tables over the devices of a mesh, all of which have the dense parameters, or says how rows
  lie on one device; None: on one, as suits JAX's default platform (``tables.one_device``).
  """
  if isinstance(placement, sharding.Sharded):
    plan = placement.plan.tables
  else:
    plan = table_plan.plan_tables(spec.features)
    placement = placement or tables_lib.one_device(plan, jax.default_backend())
  row_optimizer = tables_lib.by_label(tx.rows, plan)
  params_key, tables_key, rng = split_key(key)
  params = jax.jit(model.init)(params_key, *example_inputs(spec))
  opt_state, step = jax.jit(tx.dense.init)(params), jnp.zeros((), jnp.int32)
  if isinstance(placement, sharding.Sharded):
    params, opt_state, step, rng = placement.replicate((params, opt_state, step, rng))
    tables = sharding.create(placement, tables_key)
  else:
    tables = tables_lib.create(plan, tables_key, placement)
  row_state = tables_lib.init_row_state(row_optimizer, tables)
  return TrainState(step, params, opt_state, tables, row_state, rng)


def with_fingerprints(current: TrainState, model: Any) -> TrainState:
  """``current`` with the fingerprints that ``model`` searches by kept beside its history's table.

  Steps, and whatever else writes rows, renew those of the rows that they write; a model applied to
  these tables hashes candidates alone. Worth it where more rows are searched than are written.

  Args:
    current: of ``model``.
    model: one with a search by fingerprints (``models.ETA``), whose history has a table of its own
      kind and is not compressed.

  Raises:
    ValueError: it has no such search, or no such feature.
  """
  search = getattr(model, "search", None)
  if not isinstance(search, lsh_attention.LSHSearch):
    raise ValueError(
      "fingerprints: only a model that searches by them, as models.ETA does, can have them beside "
      f"its tables; got {type(model).__name__}"
    )
  features_of = {feature.name: feature for feature in current.tables.plan.features}
  if model.history not in features_of:
    raise ValueError(
      f"fingerprints: the tables have no feature {model.history!r}, which the model searches; they "
      f"have {', '.join(features_of)}"
    )
  if lsh_attention.CONSTANTS not in current.params:
    raise ValueError("fingerprints: the state's parameters are of a model without hyperplanes")
  planes = current.params[lsh_attention.CONSTANTS]["search"]["hyperplanes"]
  table = features_of[model.history].table.name
  tables = tables_lib.with_fingerprints(current.tables, {table: planes}, variant=search.variant)
  return dataclasses.replace(current, tables=tables)


def split_key(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The run's ``key`` as the keys of parameters, of tables, and of steps that draw."""
  params_key, tables_key, rng = jax.random.split(key, 3)
  return params_key, tables_key, rng


def example_inputs(spec: batch_lib.BatchSpec) -> tuple[jax.Array, collections.OrderedDict]:
  """Zeros of the shapes that a model of ``spec`` is called with, for one example."""
  embeddings: collections.OrderedDict[str, Any] = collections.OrderedDict()
  for feature in spec.features:
    dim, length = feature.table.embedding_dim, feature.ids_per_bag
    if feature.combiner == "none":
      zeros, is_there = jnp.zeros((1, length, dim)), jnp.zeros((1, length), bool)
      embeddings[feature.name] = sequences.of_embeddings(zeros, is_there)
    else:
      embeddings[feature.name] = jnp.zeros((1, dim))
  return jnp.zeros((1, spec.num_dense)), embeddings


def apply_gradients(
  state: TrainState,
  grads: Any,
  row_grads: Mapping[str, tables_lib.RowGradients],
  *,
  tx: Optimizers,
) -> TrainState:
  """One update: optax on the dense parameters, the row optimizer on the touched rows."""
  return apply_and_count(state, grads, row_grads, tx=tx)[0]


def apply_and_count(
  state: TrainState,
  grads: Any,
  row_grads: Mapping[str, tables_lib.RowGradients],
  *,
  tx: Optimizers,
) -> tuple[TrainState, tables_lib.Counts]:
  """``apply_gradients``, and what was seen of the rows on their way into the tables."""
  with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic mixes dtypes
    updates, opt_state = tx.dense.update(grads, state.opt_state, state.params)
    params = _with_constants(optax.apply_updates(state.params, updates), state.params)
  row_optimizer = tables_lib.by_label(tx.rows, state.tables.plan)
  tables, row_state, counts = tables_lib.apply_and_count(
    state.tables, state.row_state, row_grads, row_optimizer
  )
  new_state = dataclasses.replace(
    state,
    step=state.step + 1,
    params=params,
    opt_state=opt_state,
    tables=tables,
    row_state=row_state,
  )
  return new_state, counts


def _with_constants(params: Any, before: Any) -> Any:
  """``params``, but of a Flax model's variables the parameters alone: its other collections are
  constants, whatever an optimizer would make of them.
  """
  if not isinstance(before, Mapping) or "params" not in before:
    return params
  return {name: params[name] if name == "params" else before[name] for name in before}
