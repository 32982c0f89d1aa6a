"""Bytes between devices: no table travels, and what does is bounded by the unique rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxrec import sharding, training
from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.sharding import traffic
from tests.sharding import cases

BATCH = 256  # examples
# Loss, weights, AUC's histogram, counts, and the limits of rounds; what is not rows or parameters.
SMALL = 16_384

PROGRAM = """\
HloModule jit_f, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = f32[2,4]{1,0:T(8,128)} all-to-all(%y), replica_groups={{0,1}}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %s = ((f32[4]{0}), (f32[8]{0})) all-gather-start(%p), dimensions={0}
  %d = f32[8]{0} all-gather-done(%s)
  %r = (f32[3,2]{1,0}, bf16[5]{0}) all-reduce(%p, %q), to_apply=%add
  ROOT %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body
}
"""


def test_collectives_are_read_off_a_program():
  found = traffic.collectives(PROGRAM)
  assert found == [
    ("all-to-all", ((2, 4),), 32, True),
    ("all-gather", ((8,),), 32, False),
    ("all-reduce", ((3, 2), (5,)), 34, False),
  ]
  assert traffic.bytes_by_kind(found) == {"all-reduce": 34, "all-to-all": 32, "all-gather": 32}


def features(rows, dim):
  return tuple(
    FeatureConfig(name, TableConfig(name, rows, dim), ids_per_bag=length)
    for name, length in (("user", 1), ("item", 4))
  )


def compiled_step(inputs, where, optimizer="adam"):
  tx = cases.optimizers(optimizer)
  state = cases.fresh(inputs, tx, where)
  batch = cases.split(cases.examples(inputs, BATCH, 0), inputs, where)
  step = jax.jit(training.make_step(cases.Scorer(), tx), donate_argnums=0)
  return step.lower(state, batch).compile().as_text(), state


@pytest.mark.parametrize(
  ("mesh", "layout"),
  [
    ("8", sharding.row_wise()),
    ("2x4", sharding.table_wise()),
    ("2x4", sharding.row_wise("model")),
    ("8", sharding.column_wise()),
    ("8", sharding.replicated()),
  ],
  ids=["row_wise", "table_wise", "grid", "column_wise", "replicated"],
)
def test_bytes_are_bounded_by_unique_rows_and_no_table_travels(mesh, layout):
  dim, rows = 16, 50_000
  inputs = features(rows, dim)
  where = cases.placement(inputs, cases.MESHES[mesh], ((".*", layout),))
  program, state = compiled_step(inputs, where)
  (sharded,) = where.plan.sharded
  found = traffic.collectives(program)
  largest = max(max(shape, default=0) for one in found for shape in one.shapes)
  assert found and largest < sharded.rows_per_shard  # nothing as long as a device's rows
  once = traffic.bytes_by_kind(one for one in found if not one.is_in_loop)

  num_ids = BATCH // 8 * 5  # of a device: 1 user and up to 4 items an example
  slots = sharded.num_shards * sharded.capacity_for(num_ids)
  # Numbers there and rows back, then numbers and gradients; columns multiply the numbers.
  numbers, row = slots * 4 * sharded.num_columns, slots * dim * 4
  assert once.get("all-to-all", 0) <= 2 * (numbers + row)
  # Devices with copies of a row each get all sums: of up to `slots` rows each.
  received = min(slots * sharded.num_columns, sharded.rows_per_shard)
  copies = sharded.num_copies * received * (4 + dim // sharded.num_columns * 4)
  assert once.get("all-gather", 0) <= (copies if sharded.num_copies > 1 else 0)
  dense = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
  assert once["all-reduce"] <= dense + SMALL
  assert once.keys() <= {"all-to-all", "all-gather", "all-reduce"}
  if sharded.num_shards > 1:
    assert once["all-to-all"] > row  # rows do travel
    # Padding: how many slots there are for a unique id, at most.
    assert slots <= num_ids * sharded.busiest_share * sharded.num_shards * 1.6 + 200


def test_in_what_xla_makes_of_a_plain_lookup_more_travels():
  """The same look-up and update by ``jnp.take`` on sharded arrays, partitioned by XLA."""
  dim, rows, num_ids = 16, 50_000, BATCH * 5
  inputs = features(rows, dim)
  where = cases.placement(inputs, cases.MESHES["8"])
  ours = traffic.bytes_by_kind(
    one for one in traffic.collectives(compiled_step(inputs, where, "sgd")[0]) if not one.is_in_loop
  )

  def step(table, ids):
    def loss(table):
      return jnp.sum(jnp.tanh(jnp.take(table, ids, axis=0)))

    return table - 0.1 * jax.grad(loss)(table)

  by_row = where.sharding(where.spec("d16_float32", dim))
  table = jax.ShapeDtypeStruct((2 * rows, dim), jnp.float32, sharding=by_row)
  ids = jax.ShapeDtypeStruct((num_ids,), jnp.int32, sharding=where.batches)
  program = jax.jit(step, donate_argnums=0, out_shardings=by_row).lower(table, ids).compile()
  plain = traffic.bytes_by_kind(traffic.collectives(program.as_text()))
  assert sum(plain.values()) > 2 * sum(ours.values()), (plain, ours)
