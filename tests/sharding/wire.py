"""What one training step sends between devices, and the formula that bounds it.

The same for the eight devices at hand and, compiled in a process of its own (``elsewhere``), for
TPUs and GPUs that are not there.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec import aot, sharding
from jaxrec.analysis import hlo_collectives, topologies
from jaxrec.config import FeatureConfig, TableConfig, experiment
from jaxrec.features import BatchSpec
from jaxrec.sharding import layouts
from tests import own_process, xla_flags
from tests.sharding import cases

BATCH, ROWS, DIM = 256, 50_000, 16
IDS_PER_BAG = {"user": 1, "item": 4}
NUM_IDS = BATCH // 8 * sum(IDS_PER_BAG.values())  # of one device
# Loss, weights, AUC's histogram, counts, and the limits of rounds; what is not rows or parameters.
SMALL = 16_384
LANES = 128  # of a TPU's tile: the slots for a shard lie along them, and count up to whole tiles


@dataclasses.dataclass(frozen=True)
class Step:
  """One step of a model with two tables.

  Attributes:
    layout: as in a config; ``xla``: ``jnp.take`` on row-sharded arrays and its gradient, as XLA
      partitions it, and no model.
    mesh: of ``cases.MESHES``.
    optimizer, dtype, wire_dtype: of the tables.
  """

  layout: str = "row_wise"
  mesh: str = "8"
  optimizer: str = "adam"
  dtype: str = "float32"
  wire_dtype: str | None = None

  @property
  def spec(self) -> BatchSpec:
    tables = (TableConfig(name, ROWS, DIM, dtype=self.dtype) for name in IDS_PER_BAG)
    return BatchSpec(
      tuple(FeatureConfig(t.name, t, ids_per_bag=IDS_PER_BAG[t.name]) for t in tables), num_dense=3
    )

  @property
  def config(self) -> experiment.ExperimentConfig:
    return experiment.ExperimentConfig(
      model=experiment.ModelConfig(bottom_mlp=(DIM,), top_mlp=(8, 1)),
      optimizer=experiment.OptimizerConfig(table=self.optimizer),
      sharding=experiment.ShardingConfig(rules=(f".*={self.layout}",), wire_dtype=self.wire_dtype),
      batch_size=BATCH,
    )


STEPS = {
  "row_wise": Step("row_wise"),
  "table_wise": Step("table_wise", "2x4"),
  "grid": Step("row_wise(model)", "2x4"),
  "column_wise": Step("column_wise"),
  "replicated": Step("replicated"),
  "row_wise in bfloat16": Step("row_wise", wire_dtype="bfloat16"),
}


class Sent(NamedTuple):
  """What a compiled step sends.

  Attributes:
    calls: its collectives.
    num_dense: numbers that every device has a copy of.
  """

  calls: list[hlo_collectives.Collective]
  num_dense: int

  def once(self) -> dict[str, int]:
    """Bytes by kind of what every step sends; the others are for what did not fit."""
    return hlo_collectives.bytes_by_kind(one for one in self.calls if not one.is_in_loop)

  def exchanged(self) -> list[tuple[str, int]]:
    """dtype and bytes of each all-to-all of every step, sorted."""
    calls = (one for one in self.calls if one.kind == "all-to-all" and not one.is_in_loop)
    return sorted((*set(one.dtypes), one.num_bytes) for one in calls)

  def in_loops(self) -> dict[str, int]:
    return hlo_collectives.bytes_by_kind(one for one in self.calls if one.is_in_loop)


def compiled(step: Step, mesh: Mesh) -> Sent:
  """For the devices of a mesh, which need not be there."""
  if step.layout == "xla":
    return Sent(hlo_collectives.collectives(_partitioned_by_xla(mesh)), 0)
  found = aot.compile_step(step.config, step.spec, mesh)
  num_dense = sum(leaf.size for leaf in jax.tree.leaves(found.state.params))
  return Sent(hlo_collectives.collectives(found.program.as_text()), num_dense)


def _partitioned_by_xla(mesh: Mesh) -> str:
  def step(table, ids):
    def loss(table):
      return jnp.sum(jnp.tanh(jnp.take(table, ids, axis=0)))

    return table - 0.1 * jax.grad(loss)(table)

  spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  table = jax.ShapeDtypeStruct((2 * ROWS, DIM), jnp.float32, sharding=spread)
  ids = jax.ShapeDtypeStruct((8 * NUM_IDS,), jnp.int32, sharding=spread)
  lowered = jax.jit(step, donate_argnums=0, out_shardings=spread).lower(table, ids)
  return lowered.compile(xla_flags.as_shipped()).as_text()


def elsewhere(topology: str, steps: Sequence[Step]) -> list[Sent]:
  """For the devices of a topology, all in one process without its tests' environment."""
  found = own_process.run(
    "tests.sharding.wire", topology, [dataclasses.asdict(step) for step in steps]
  )
  return [Sent([_call(*fields) for fields in calls], num_dense) for calls, num_dense in found]


def _call(kind, shapes, num_bytes, is_in_loop, dtypes, tiled_bytes) -> hlo_collectives.Collective:
  shapes = tuple(map(tuple, shapes))
  return hlo_collectives.Collective(kind, shapes, num_bytes, is_in_loop, tuple(dtypes), tiled_bytes)


def check(step: Step, sent: Sent, lanes: int = 1) -> None:
  """No table travels, and what does is bounded by the unique rows."""
  rules = ((".*", layouts.parse(step.layout)),)
  (sharded,) = sharding.make_plan(step.spec.features, cases.MESHES[step.mesh], rules).sharded
  shards, columns, width = sharded.num_shards, sharded.num_columns, DIM // sharded.num_columns
  capacity, stored = sharded.capacity_for(NUM_IDS), 4 if step.dtype == "float32" else 2
  once, again = sent.once(), sent.in_loops()
  case = (step, once, again)

  # Nothing is as large as a device's rows, or as long.
  assert sent.calls
  shard_bytes = sharded.rows_per_shard * width * stored
  assert max(one.num_bytes for one in sent.calls) < shard_bytes, case
  longest = max(n for one in sent.calls for shape in one.shapes for n in shape)
  assert longest < sharded.rows_per_shard, case
  assert {*once, *again} <= {"all-to-all", "all-gather", "all-reduce"}, case

  # Numbers there and rows back, then numbers and gradients; columns multiply the numbers.
  rows = shards * capacity * DIM * (4 if step.wire_dtype else stored + 4)
  most = 2 * shards * capacity * 4 * columns + rows
  assert once.get("all-to-all", 0) <= most and again.get("all-to-all", 0) <= most, case
  # Devices with copies of a row each get all sums: of up to `received` rows each.
  received = min(shards * capacity * columns, sharded.rows_per_shard)
  ids, sums = (sharded.num_copies * received * size for size in (4, width * 4))
  are_copied = sharded.num_copies > 1
  for kinds in (once, again):
    assert kinds.get("all-gather", 0) <= are_copied * (ids + sums), case
    # A TPU's compiler gathers numbers by adding: each device's, zeros in the others' places.
    assert kinds.get("all-reduce", 0) <= sent.num_dense * 4 + SMALL + (lanes > 1) * ids, case
  if shards > 1:
    assert once["all-to-all"] > rows, case  # rows do travel
    # Padding: how many slots there are for a unique id, at most.
    assert shards * capacity <= NUM_IDS * sharded.busiest_share * shards * 1.6 + 200, case

  # In memory, and so on the links, the slots for a shard are whole tiles.
  exchanges = [one for one in sent.calls if one.kind == "all-to-all"]
  padded = -(-capacity // lanes) * lanes / capacity
  assert sum(one.tiled_bytes for one in exchanges) <= padded * sum(
    one.num_bytes for one in exchanges
  ), case


def _main() -> None:
  topology, steps = json.loads(sys.argv[1])
  found = []
  for step in (Step(**fields) for fields in steps):
    mesh = topologies.mesh(topology, cases.MESHES[step.mesh])
    found.append(compiled(step, mesh))
  print(json.dumps(found))


if __name__ == "__main__":
  _main()
