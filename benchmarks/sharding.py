"""What do more devices cost, and what do they save?

    python -m benchmarks.sharding [--quick]

The same DLRM on 1, 2, 4 and 8 virtual devices of a CPU, with a fixed batch a device (weak scaling)
and a fixed global batch (strong). On a small machine time says little, so this counts: bytes that
cross between devices in a step, by the compiled program's own text; slots of the exchange for each
unique row, with capacities by the first batches, as train.py chooses them, and as a plan does by
itself; rows of padding in the tables; how evenly the shards are asked; rounds beyond the first. The
peer is what XLA makes by itself of ``jnp.take`` on sharded arrays and its gradient.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from benchmarks import report
from jaxrec import data, models, sharding, tables, training
from jaxrec.analysis import hlo_collectives
from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.data.pipeline.prefetch import put, unpack
from jaxrec.runs.process import host
from jaxrec.runs.setup import placement

_QUICK = flags.DEFINE_bool("quick", False, "Under a minute: fewer steps, weak scaling alone.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the data and the parameters.")

_DIM, _BATCH_SIZE = 16, 512
_ROWS = {"user": 1_000_000, "item": 100_000, "tag": 5_000, "country": 200}
_IDS_PER_BAG = {"user": 1, "item": 8, "tag": 4, "country": 1}
_DEVICES = (1, 2, 4, 8)
_BATCHES_MEASURED = 4  # by which capacities are chosen, as train.py does


def main(_: list[str]) -> None:
  """Runs the benchmark."""
  host.quiet_libraries()
  os.environ.setdefault("NPROC", "16")  # with fewer threads than devices, collectives starve
  jax.config.update("jax_num_cpu_devices", max(_DEVICES))
  scaling = {"weak": lambda count: _BATCH_SIZE * count}
  if not _QUICK.value:
    scaling["strong"] = lambda count: _BATCH_SIZE * max(_DEVICES)
  figures = {
    name: {str(count): measure(count, batch_size(count)) for count in _DEVICES}
    for name, batch_size in scaling.items()
  }
  largest = figures["weak"][str(max(_DEVICES))]
  report.finish(
    {
      "benchmark": "sharding",
      "rows": _ROWS,
      "ids_per_bag": _IDS_PER_BAG,
      "embedding_dim": _DIM,
      "ratio": {"xla_to_jaxrec_bytes": round(largest["xla_bytes"] / largest["row_bytes"], 2)},
      **figures,
      "peer": "jnp.take on row-sharded arrays and its gradient, partitioned by XLA",
      "seed": _SEED.value,
    }
  )


def measure(count: int, batch_size: int) -> dict[str, Any]:
  """Figures of a step on ``count`` devices."""
  features = tuple(
    FeatureConfig(name, TableConfig(name, rows, _DIM), ids_per_bag=_IDS_PER_BAG[name])
    for name, rows in _ROWS.items()
  )
  clicks = data.synthetic(features, num_dense=4, seed=_SEED.value)
  mesh = sharding.make_mesh({"data": count})
  where = sharding.Sharded(mesh, sharding.make_plan(features, mesh.shape))
  batches = list(
    data.batches(
      clicks,
      batch_size,
      num_steps=3 if _QUICK.value else 20,
      plan=where.plan,
      options=where.input_options(),
    )
  )
  unmeasured = where
  where = placement.with_capacities(where, batches[:_BATCHES_MEASURED])
  model = models.DLRM(bottom_mlp=(64, _DIM), top_mlp=(64, 1))
  tx = training.Optimizers(dense=optax.adam(1e-3), rows=tables.rowwise_adagrad(0.05))
  key = jax.random.key(_SEED.value)
  state = training.init_state(key, model, clicks.spec, tx=tx, placement=where)
  on_devices = [unpack(*put(batch, where.batches)) for batch in batches]
  step = jax.jit(training.make_step(model, tx), donate_argnums=0)
  compiled = step.lower(state, on_devices[0]).compile()
  found = hlo_collectives.collectives(compiled.as_text())
  once = hlo_collectives.bytes_by_kind(one for one in found if not one.is_in_loop)
  extra = 0
  for batch in on_devices:
    state, seen = compiled(state, batch)
    extra += int(seen.num_extra_rounds)
  return {
    "batch_size": batch_size,
    "row_bytes": once.get("all-to-all", 0),
    "dense_bytes": once.get("all-reduce", 0),
    "xla_bytes": peer(where, batch_size),
    "extra_rounds": extra,
    "steps": len(batches),
    **_shape_of(where, unmeasured, batches),
  }


def _shape_of(
  where: sharding.Sharded, unmeasured: sharding.Sharded, batches: list[Any]
) -> dict[str, float]:
  """How much of the exchange is padding, and how evenly shards are asked."""
  (sharded,) = where.plan.sharded
  count = where.plan.num_devices
  asked = np.zeros((len(batches), count, sharded.num_shards), np.int64)
  for i, batch in enumerate(batches):
    (plan,) = batch.rows.values()
    for device, rows in enumerate(plan.rows.reshape(count, -1)):
      shards = rows[: plan.num_rows[device]] // sharded.rows_per_shard
      asked[i, device] = np.bincount(shards, minlength=sharded.num_shards)
  unique = asked.sum(axis=2).mean()
  slots, most = (
    sharded.num_shards * one.plan.sharded[0].capacity_for(plan.rows.size // count)
    for one in (where, unmeasured)
  )
  by_shard = asked.sum(axis=1)
  return {
    "unique_rows_a_device": round(float(unique), 1),
    "slots_a_unique_row": round(float(slots / unique), 3),
    "slots_a_unique_row_unmeasured": round(float(most / unique), 3),
    "busiest_shard_to_mean": round(float((by_shard.max(axis=1) / by_shard.mean(axis=1)).mean()), 3),
    "padding_rows": sharded.num_rows - sum(_ROWS.values()),
  }


def peer(where: sharding.Sharded, batch_size: int) -> int:
  """Bytes of all collectives when XLA partitions the look-up and the update of the same rows."""
  (sharded,) = where.plan.sharded
  num_ids = batch_size * sum(_IDS_PER_BAG.values())

  def step(table: jax.Array, ids: jax.Array) -> jax.Array:
    gradient = jax.grad(lambda table: jnp.sum(jnp.tanh(jnp.take(table, ids, axis=0))))(table)
    return table - 0.1 * gradient

  by_row = where.sharding(where.spec(sharded.stack.name, _DIM))
  table = jax.ShapeDtypeStruct((sharded.num_rows, _DIM), jnp.float32, sharding=by_row)
  ids = jax.ShapeDtypeStruct((num_ids,), jnp.int32, sharding=where.batches)
  compiled = jax.jit(step, donate_argnums=0, out_shardings=by_row).lower(table, ids).compile()
  return sum(
    hlo_collectives.bytes_by_kind(hlo_collectives.collectives(compiled.as_text())).values()
  )


if __name__ == "__main__":
  app.run(main)
