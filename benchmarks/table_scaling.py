"""Does a training step grow with the vocabulary?

    python -m benchmarks.table_scaling [--quick] [--wide]

The same DLRM step with tables of 100k to 25M rows x 16 and row-wise Adagrad. The peer is the same
model on ``flax.linen.Embed`` with ``optax.adagrad``: the dense update that plain Flax gives you.
Times are medians of alternating steps; bytes are the compiler's own figures. The peer stops at 1M
rows (at 10M one of its steps takes seconds). ``--wide`` measures a wide part instead: one weight a
crossed row, trained by FTRL with L1 beside an MLP over the dense inputs; the peer moves all of
them, by dense FTRL.

Ids follow the bounded Pareto law of the synthetic click log (exponent 1.05) or are uniform, where
nearly every id is another row and no cache of the processor helps: a step makes the same number of
reads whatever the vocabulary, but each of them costs what the memory behind it costs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from benchmarks import report
from jaxrec import features, models, tables, training
from jaxrec.config import FeatureConfig, Initializer, TableConfig
from jaxrec.data.datasets.synthetic import zipf_ranks
from jaxrec.data.pipeline.shuffle import permuted
from jaxrec.runs.process import host

_QUICK = flags.DEFINE_bool("quick", False, "Under a minute: two vocabularies, fewer rounds.")
_WIDE = flags.DEFINE_bool("wide", False, "Crossed rows of one weight with FTRL.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the ids and the parameters.")

_BATCH_SIZE, _IDS_PER_BAG, _DIM = 2048, 8, 16
_PEER_MAX_ROWS = 1_000_000
_NUM_BATCHES = 32  # in turn, so that the rows of a step are not those of the last one


@dataclasses.dataclass(frozen=True)
class Case:
  """What is trained.

  Attributes:
    dim: width of a row.
    model: over 13 dense inputs and the pooled rows of ``item``.
    rows: how rows are moved.
    dense: how the peer moves them, all at once.
  """

  dim: int
  model: nn.Module
  rows: tables.RowOptimizer
  dense: optax.GradientTransformation


def _case() -> Case:
  if _WIDE.value:
    tx = tables.ftrl(0.05, l1=1e-3, initial_accumulator=1e-6)
    return Case(1, models.WideDeep(("item",), (64, 1)), tables.lazily(tx), tx)
  model = models.DLRM(bottom_mlp=(64, _DIM), top_mlp=(64, 1))
  return Case(_DIM, model, tables.rowwise_adagrad(0.05), optax.adagrad(0.05))


class DenseModel(nn.Module):
  """The peer: a model that owns its table as an ordinary parameter."""

  vocab_size: int
  dim: int
  model: nn.Module

  @nn.compact
  def __call__(self, dense: jax.Array, ids: jax.Array) -> jax.Array:
    embedding = nn.Embed(self.vocab_size, self.dim)(ids).sum(axis=1)
    return self.model(dense, {"item": embedding})


def random_batch(vocab_size: int, ids_law: str, seed: int) -> features.Batch:
  """A batch whose ids are ``zipf`` or ``uniform``; a popular id may be any row."""
  rng = np.random.default_rng(seed)
  draws = rng.random(_BATCH_SIZE * _IDS_PER_BAG)
  if ids_law == "zipf":
    ranks = zipf_ranks(draws, vocab_size, 1.05)
    ids = permuted(ranks.astype(np.int64), num_examples=vocab_size, seed=seed)
  else:
    ids = np.floor(draws * vocab_size)
  ids = ids.astype(np.int32).reshape(_BATCH_SIZE, _IDS_PER_BAG)
  return features.Batch(
    dense=rng.normal(size=(_BATCH_SIZE, 13)).astype(np.float32),
    ids={"item": features.IdBags.from_dense(ids)},
    labels={"click": (rng.random(_BATCH_SIZE) < 0.3).astype(np.float32)},
    weights=np.ones(_BATCH_SIZE, np.float32),
  )


def ours(vocab_size: int, ids_law: str, seed: int) -> tuple[Any, dict[str, int]]:
  """A function that makes one step, and the compiler's bytes of the step."""
  case = _case()
  start = Initializer("constant", 0.0) if _WIDE.value else Initializer()
  table = TableConfig("item", vocab_size, case.dim, initializer=start)
  spec = features.BatchSpec((FeatureConfig("item", table, ids_per_bag=_IDS_PER_BAG),), num_dense=13)
  tx = training.Optimizers(dense=optax.adagrad(0.01), rows=case.rows)
  state = training.init_state(jax.random.key(seed), case.model, spec, tx=tx)
  plan = features.plan_tables(spec.features)
  batches = [
    (jax.device_put(features.plan_rows(random_batch(vocab_size, ids_law, seed + k), plan)),)
    for k in range(_NUM_BATCHES)
  ]
  step = jax.jit(training.make_step(case.model, tx), donate_argnums=0)
  compiled = step.lower(state, *batches[0]).compile()
  return _Stepper(compiled, state, batches), _bytes(compiled)


def peer(vocab_size: int, ids_law: str, seed: int) -> tuple[Any, dict[str, int]]:
  """The same step, dense."""
  case = _case()
  model, tx = DenseModel(vocab_size, case.dim, case.model), case.dense
  batches = []
  for k in range(_NUM_BATCHES):
    batch = random_batch(vocab_size, ids_law, seed + k)
    ids = jnp.asarray(batch.ids["item"].values.reshape(_BATCH_SIZE, _IDS_PER_BAG))
    batches.append((jnp.asarray(batch.dense), ids, jnp.asarray(batch.labels["click"])))
  params = jax.jit(model.init)(jax.random.key(seed), *batches[0][:2])
  state = (params, jax.jit(tx.init)(params))

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, dense, ids, labels):
    params, opt_state = state

    def loss_fn(params):
      return training.binary_cross_entropy(model.apply(params, dense, ids), labels)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    with jax.numpy_dtype_promotion("standard"):
      updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss

  compiled = step.lower(state, *batches[0]).compile()
  return _Stepper(compiled, state, batches), _bytes(compiled)


class _Stepper:
  """Calls a compiled step on its own state and the next batch, to the end."""

  def __init__(self, compiled: Any, state: Any, batches: list[tuple[Any, ...]]):
    self._compiled, self._state, self._batches = compiled, state, itertools.cycle(batches)

  def __call__(self) -> None:
    self._state, _ = self._compiled(self._state, *next(self._batches))
    jax.block_until_ready(self._state)


def _bytes(compiled: Any) -> dict[str, int]:
  memory = compiled.memory_analysis()
  return {
    "argument_bytes": memory.argument_size_in_bytes,
    "updated_in_place_bytes": memory.alias_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
  }


def main(_: list[str]) -> None:
  """Runs the benchmark."""
  host.quiet_libraries()
  host.keep_large_allocations()
  vocab_sizes = (
    [100_000, 1_000_000] if _QUICK.value else [100_000, 1_000_000, 10_000_000, 25_000_000]
  )
  step: dict[str, dict[str, Any]] = {}
  ratios = {}
  for ids_law in ("zipf", "uniform"):
    figures = measure(vocab_sizes, ids_law)
    step |= {f"{name}_{ids_law}": value for name, value in figures.items()}
    times = {name: value["median_ms"] for name, value in figures.items()}
    smallest, largest = (times[f"jaxrec_{vocab_sizes[k]}"] for k in (0, -1))
    shared = max(rows for rows in vocab_sizes if rows <= _PEER_MAX_ROWS)
    ratios[ids_law] = {
      "largest_to_smallest": round(largest / smallest, 3),
      "dense_to_jaxrec": round(times[f"dense_{shared}"] / times[f"jaxrec_{shared}"], 2),
    }
  report.finish(
    {
      "benchmark": "table_scaling_wide" if _WIDE.value else "table_scaling",
      "rows_x_dim": [[rows, _case().dim] for rows in vocab_sizes],
      "ids_per_step": _BATCH_SIZE * _IDS_PER_BAG,
      "ratio": ratios,
      "step": step,
      "peer": f"flax.linen.Embed + {'dense ftrl' if _WIDE.value else 'optax.adagrad'}, jitted and "
      "donated",
      "seed": _SEED.value,
    }
  )


def measure(vocab_sizes: list[int], ids_law: str) -> dict[str, dict[str, Any]]:
  """Times and bytes of a step, ours at every size and the peer's where it can follow."""
  made = {f"jaxrec_{rows}": ours(rows, ids_law, _SEED.value) for rows in vocab_sizes}
  for rows in vocab_sizes:
    if rows <= _PEER_MAX_ROWS:
      made[f"dense_{rows}"] = peer(rows, ids_law, _SEED.value)
  rounds = 15 if _QUICK.value else 40
  times = report.alternate({name: run for name, (run, _) in made.items()}, rounds=rounds)
  return {name: {**times[name], **memory} for name, (_, memory) in made.items()}


if __name__ == "__main__":
  app.run(main)
