"""Bytes between devices: no table travels, and what does is bounded by the unique rows."""

from __future__ import annotations

import functools

import pytest

from jaxrec import sharding
from jaxrec.analysis import hlo_collectives
from tests.sharding import cases, wire

PROGRAM = """\
HloModule jit_f, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = f32[2,4]{1,0:T(8,128)} all-to-all(%y), replica_groups={{0,1}}
}

%fused.1 (p: f32[2,4]) -> f32[2,4] {
  %g.1 = f32[2,4]{1,0} all-gather(%p), dimensions={0}, frontend_attributes={chain_id="0"}
}

%fused.2 (p: f32[2,4]) -> f32[2,4] {
  %g.2 = f32[2,4]{1,0} all-gather(%p), dimensions={0}, frontend_attributes={chain_id="0"}
  %g.3 = f32[2,4]{1,0} all-gather(%q), dimensions={0}, frontend_attributes={chain_id="1"}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %s = ((f32[4]{0}), (f32[8]{0})) all-gather-start(%p), dimensions={0}
  %d = f32[8]{0} all-gather-done(%s)
  %r = (f32[3,2]{0,1:T(2,128)}, bf16[5]{0:T(128)(2,1)}) all-reduce(%p, %q), to_apply=%add
  ROOT %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body
}
"""


@functools.cache
def sent(step):
  return wire.compiled(step, sharding.make_mesh(cases.MESHES[step.mesh]))


def test_collectives_are_read_off_a_program():
  found = hlo_collectives.collectives(PROGRAM)
  assert found == [
    ("all-to-all", ((2, 4),), 32, True, ("f32",), 8 * 128 * 4),
    ("all-gather", ((2, 4),), 32, False, ("f32",), 32),  # chain 0, once
    ("all-gather", ((2, 4),), 32, False, ("f32",), 32),
    ("all-gather", ((8,),), 32, False, ("f32",), 32),
    ("all-reduce", ((3, 2), (5,)), 34, False, ("f32", "bf16"), 2 * 128 * 4 + 128 * 2),
  ]
  assert hlo_collectives.bytes_by_kind(found) == {
    "all-reduce": 34,
    "all-to-all": 32,
    "all-gather": 96,
  }


@pytest.mark.parametrize("layout", wire.STEPS)
def test_bytes_are_bounded_by_unique_rows_and_no_table_travels(layout):
  wire.check(wire.STEPS[layout], sent(wire.STEPS[layout]))


def test_in_what_xla_makes_of_a_plain_lookup_more_travels():
  """The same look-up and update by ``jnp.take`` on sharded arrays, partitioned by XLA."""
  ours, plain = (sent(step).once() for step in (wire.STEPS["row_wise"], wire.Step("xla")))
  assert sum(plain.values()) > 2 * sum(ours.values()), (plain, ours)


def test_in_bfloat16_rows_and_gradients_have_half_the_bytes_and_numbers_all():
  exact = sent(wire.STEPS["row_wise"]).exchanged()
  narrow = sent(wire.STEPS["row_wise in bfloat16"]).exchanged()
  assert [dtype for dtype, _ in exact] == ["f32", "f32", "s32"]
  halves = [("u16", num_bytes // 2) for _, num_bytes in exact[:2]]
  assert narrow == sorted([exact[2], *halves])


def test_rows_of_a_narrow_table_travel_as_they_are_stored():
  slots = 8 * 48
  rows = slots * wire.DIM
  found = sent(wire.Step(dtype="bfloat16", optimizer="sgd")).exchanged()
  assert found == [("f32", rows * 4), ("s32", slots * 4), ("u16", rows * 2)]
