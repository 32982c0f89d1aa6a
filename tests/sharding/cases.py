"""A small model on a mesh of virtual devices, and the same on one: what the laws are told of."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import features as features_lib
from jaxrec import sharding, tables, training
from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.features import Batch, BatchSpec, IdBags

MESHES = {
  "1": {"data": 1},
  "2": {"data": 2},
  "4": {"model": 4},
  "8": {"data": 8},
  "2x4": {"data": 2, "model": 4},
  "2x2x2": {"dcn": 2, "data": 2, "model": 2},
}
OPTIMIZERS = {
  "sgd": lambda: tables.lazily(optax.sgd(0.3)),
  "rowwise_adagrad": lambda: tables.rowwise_adagrad(0.05),
  "adam": lambda: tables.lazily(optax.adam(1e-2)),
}
LAYOUTS = {
  "replicated": lambda mesh: sharding.replicated(),
  "row_wise": lambda mesh: sharding.row_wise(),
  "table_wise": lambda mesh: sharding.table_wise(),
  "table_row_wise": lambda mesh: sharding.table_row_wise(min(2, np.prod(list(mesh.values())))),
  "column_wise": lambda mesh: sharding.column_wise(),
  "grid": lambda mesh: sharding.row_wise(list(mesh)[-1]),
  "rows_and_columns": lambda mesh: sharding.row_wise(list(mesh)[-1]).and_columns(*list(mesh)[:-1]),
}
VOCABULARY = {"user": 203, "item": 31, "tag": 5}
DIM = 8


def features(kind: str = "single", dtype: str = "float32") -> tuple[FeatureConfig, ...]:
  """Three tables, ``single``-valued or with ``bags`` that have weights."""
  tables_ = [TableConfig(name, rows, DIM, dtype=dtype) for name, rows in VOCABULARY.items()]
  if kind == "single":
    return tuple(FeatureConfig(table.name, table) for table in tables_)
  return tuple(
    FeatureConfig(table.name, table, combiner=combiner, ids_per_bag=length, weighted=weighted)
    for table, (combiner, length, weighted) in zip(
      tables_, [("sum", 4, True), ("mean", 3, False), ("sqrtn", 2, True)], strict=True
    )
  )


class Scorer(nn.Module):
  """Logits of embeddings and dense inputs; small, as a test compiles many of it."""

  @nn.compact
  def __call__(self, dense, embeddings):
    joined = jnp.concatenate([dense, *embeddings.values()], axis=1)
    return nn.Dense(1)(jnp.tanh(joined))[:, 0]


@dataclasses.dataclass(frozen=True)
class Examples:
  """Lists of ids and weights by feature, and everything else by example."""

  ids: dict[str, list[list[int]]]
  id_weights: dict[str, list[list[float]]]
  dense: np.ndarray
  labels: np.ndarray
  weights: np.ndarray

  def batch(self, inputs, part=slice(None)) -> Batch:
    bags = {f.name: self._bags(f, part) for f in inputs}
    return Batch(
      dense=self.dense[part],
      ids=bags,
      labels={"click": self.labels[part]},
      weights=self.weights[part],
    )

  def _bags(self, feature, part):
    ids = self.ids[feature.name][part]
    if feature.is_single_valued:
      return IdBags.single(np.array([bag[0] if bag else -1 for bag in ids], np.int32))
    weights = self.id_weights[feature.name][part] if feature.weighted else None
    return IdBags.from_lists(ids, capacity=len(ids) * feature.ids_per_bag, weights=weights)


def examples(inputs, size: int, seed: int, kind: str = "skewed") -> Examples:
  """``skewed`` ids, ``equal`` ones, ``distinct`` ones, or those at ``borders`` of shards."""
  rng = np.random.default_rng(seed)

  def draw(feature, count):
    rows = feature.table.vocab_size
    if kind == "equal":
      return [1] * count
    if kind == "distinct":
      return rng.permutation(rows)[np.arange(count) % rows].tolist()
    if kind == "borders":
      near = [0, 1, rows // 8 - 1, rows // 8, rows // 4, rows // 2, rows - 2, rows - 1]
      return (rng.choice(near, count) % rows).tolist()
    return ((rng.zipf(1.3, count) - 1) % rows).tolist()

  ids, id_weights = {}, {}
  for feature in inputs:
    lengths = rng.integers(0, feature.ids_per_bag + 1, size)  # empty bags too
    flat = draw(feature, int(lengths.sum()))
    splits = np.cumsum([0, *lengths])
    ids[feature.name] = [flat[a:b] for a, b in zip(splits[:-1], splits[1:], strict=True)]
    id_weights[feature.name] = [rng.random(n).astype(np.float32).tolist() for n in lengths]
  weights = rng.choice([1.0, 1.0, 0.5, 2.0], size).astype(np.float32)
  weights[rng.integers(0, size, 2)] = 0.0  # padding
  dense = rng.normal(size=(size, 3)).astype(np.float32)
  return Examples(ids, id_weights, dense, (rng.random(size) < 0.4).astype(np.float32), weights)


def placement(inputs, mesh: dict[str, int], rules=None, **options) -> sharding.Sharded:
  rules = ((".*", sharding.row_wise()),) if rules is None else rules
  return sharding.Sharded(
    sharding.make_mesh(mesh), sharding.make_plan(inputs, mesh, rules, **options)
  )


def split(found: Examples, inputs, where: sharding.Sharded | None, *, planned: bool = True):
  """The batch of ``found``, for one device or as parts for all."""
  if where is None:
    batch = found.batch(inputs)
    plan = features_lib.plan_tables(inputs)
    return features_lib.plan_rows(batch, plan) if planned else batch
  count = where.plan.num_devices
  size = len(found.weights) // count
  parts = [found.batch(inputs, slice(i * size, (i + 1) * size)) for i in range(count)]
  if planned:
    parts = [features_lib.plan_rows(part, where.plan) for part in parts]
  return features_lib.join_parts(parts)


def spec(inputs) -> BatchSpec:
  return BatchSpec(tuple(inputs), num_dense=3)


def optimizers(name: str) -> training.Optimizers:
  return training.Optimizers(dense=optax.sgd(0.1), rows=OPTIMIZERS[name]())


def fresh(inputs, tx, where=None) -> training.TrainState:
  key = jax.random.key(0)
  return training.init_state(key, Scorer(), spec(inputs), tx=tx, placement=where)


def train(state, tx, batches):
  """The state after one step a batch, and each step's metrics."""
  step, seen = _step(tx), []
  for batch in batches:
    state, window = step(state, batch)
    seen.append(window)
  return state, seen


@functools.cache
def _step(tx):
  return jax.jit(training.make_step(Scorer(), tx))


def by_table(state) -> dict[str, np.ndarray]:
  """Rows and moments of each table by id, wherever they lie."""
  where, found = tables.OneDevice(), {}
  if isinstance(state.tables.placement, sharding.Sharded):
    where = state.tables.placement
    by_row = (dataclasses.replace(one, in_lines=False) for one in where.plan.sharded)
    where = sharding.Sharded(where.mesh, dataclasses.replace(where.plan, sharded=tuple(by_row)))
  if where != state.tables.placement:
    found_tables, row_state = tables.laid_out(state.tables, state.row_state, where)
    state = dataclasses.replace(state, tables=found_tables, row_state=row_state)
  plan = where.plan if isinstance(where, sharding.Sharded) else state.tables.plan
  for feature in state.tables.plan.features:
    name = state.tables.plan.known_place(feature.table.name).stack.name
    rows = plan.rows_of(feature, np.arange(feature.table.vocab_size, dtype=np.int32))
    arrays = (state.tables.values[name], *state.row_state.rows[name])
    for i, array in enumerate(arrays):
      found[f"{feature.table.name}/{i}"] = np.asarray(array)[rows]
  return found


def check_close(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
  """The law across device counts: at most 1e-5 of an array's largest number."""
  assert ours.keys() == theirs.keys()
  for name, expected in theirs.items():
    error = np.abs(ours[name].astype(np.float64) - expected).max()
    assert error <= 1e-5 * np.abs(expected).max(), (name, error, np.abs(expected).max())
