"""What a step needs is estimated from above, and what would fit is found by the estimate."""

from __future__ import annotations

import dataclasses

import pytest

from jaxrec import aot
from jaxrec.analysis import memory_fit, topologies

GIB, MIB = 1 << 30, 1 << 20
ROWS = 204_184_588
MLPERF = memory_fit.Demand(
  batch_size=65_536,
  tables=ROWS * 512,
  moments=ROWS * 4,
  dense=128_356_364,
  batch=176_161_280,
  rows=memory_fit.row_bytes(aot.dlrm_mlperf()[1], 65_536),
)


@pytest.mark.parametrize(
  ("topology", "gib", "mib"),  # arguments and temporaries, as compiled: docs/sharding.md
  [
    ("v5e:16x16", 0.503, 130),
    ("v6e:16x16", 0.503, 273),
    ("v5p:4x4x4", 1.655, 786),
    ("h100:8", 12.40, 3_565),
  ],
)
def test_the_estimate_is_above_what_compilers_needed_and_not_far(topology, gib, mib):
  compiled = gib * GIB + mib * MIB
  estimate = MLPERF.bytes_a_chip(topologies.num_chips(topology))
  assert compiled <= estimate <= 1.4 * compiled


def test_rows_are_those_of_all_ids():
  assert MLPERF.rows == 65_536 * 214 * 128 * 4


@pytest.mark.parametrize(
  ("text", "asked", "there"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
      "(15.85G) exceeds available HBM (15.75G).",
      15.85, 15.75,
    ),
    ("RESOURCE_EXHAUSTED: memory space hbm. Used 23.5GiB of 15.5GiB hbm.", 23.5, 15.5),
  ],
)  # fmt: skip
def test_the_compilers_words_are_read(text, asked, there):
  assert memory_fit.parse_refusal(text) == (int(asked * GIB), int(there * GIB))


@pytest.mark.parametrize(
  "text", ["RESOURCE_EXHAUSTED: Out of memory.", "asked for 15.85G", "v5e of 2"]
)
def test_words_without_two_amounts_say_nothing(text):
  assert memory_fit.parse_refusal(text) == (None, None)


def test_the_smallest_larger_topology_and_the_largest_smaller_batch_are_named():
  memory = int(15.75 * GIB)
  advice = memory_fit.would_fit(MLPERF, "v5e:2x4", memory)
  assert advice["topology"] == "v5e:4x4" and advice["batch_size"] == 16_384
  assert MLPERF.bytes_a_chip(8) > memory >= advice["topology_bytes"] == MLPERF.bytes_a_chip(16)
  assert (
    MLPERF.bytes_a_chip(8, 1 / 2) > memory >= advice["batch_bytes"] == MLPERF.bytes_a_chip(8, 1 / 4)
  )


def test_tables_that_fill_a_chip_by_themselves_need_more_chips_and_no_smaller_batch():
  advice = memory_fit.would_fit(MLPERF, "v6e:1x1", 32 * GIB)
  assert advice["topology"] == "v6e:2x4" and advice["batch_size"] is advice["batch_bytes"] is None


def test_what_chips_do_not_share_is_on_each():
  kept = dataclasses.replace(MLPERF, unshared_tables=3 * GIB, unshared_moments=GIB)
  for num_chips in (1, 8, 64):
    assert kept.bytes_a_chip(num_chips) == MLPERF.bytes_a_chip(num_chips) + 4 * GIB


def test_what_was_asked_for_is_read_without_what_there_is():
  text = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12345678 bytes."
  assert memory_fit.parse_refusal(text) == (12_345_678, None)


def test_half_the_batch_is_enough_if_it_fits():
  half = MLPERF.bytes_a_chip(8, 1 / 2)
  assert memory_fit.would_fit(MLPERF, "v5e:2x4", half)["batch_size"] == 32_768
  assert memory_fit.would_fit(MLPERF, "v5e:2x4", half - 1)["batch_size"] == 16_384


def test_what_a_compiler_refused_is_not_named_though_the_estimate_has_room():
  assert memory_fit.would_fit(MLPERF, "v5e:2x4", 1 << 40)["topology"] == "v5e:4x4"


def test_what_no_topology_holds_has_none():
  huge = dataclasses.replace(MLPERF, dense=64 * GIB)
  assert set(memory_fit.would_fit(huge, "v5e:2x4", 16 * GIB).values()) == {None}


@pytest.mark.parametrize("chip", topologies.CHIPS)
def test_shapes_of_a_chip_grow(chip):
  counts = [topologies.num_chips(f"{chip}:{shape}") for shape in topologies.CHIPS[chip].shapes]
  assert counts == sorted(set(counts)) and counts[0] == (4 if chip == "v5p" else 1)
