"""No second copy of a table, by the compilers of TPUs and GPUs that need not be there.

pip install libtpu jax-cuda12-plugin jax-cuda12-pjrt   # or the extra [aot]
pytest tests/tables/layouts/packed_rows_aot_test.py -m "aot"
"""

from __future__ import annotations

import itertools

import pytest

from jaxrec.analysis import topologies
from tests.tables import compiled

DIMS, DTYPES = (16, 64, 128), ("float32", "bfloat16")
KINDS = {"v5e": "tpu", "v6e": "tpu", "h100": "gpu"}
MESHES = {"v5e": "2x4", "v6e": "2x2", "h100": "4"}
PRODUCT = list(itertools.product(DIMS, DTYPES, compiled.OPTIMIZERS))
COVER = [
  (dim, dtype, optimizer)
  for (dim, dtype), optimizer in zip(
    itertools.product(DIMS, DTYPES), itertools.cycle(compiled.OPTIMIZERS), strict=False
  )
]

pytestmark = pytest.mark.aot


@pytest.fixture(params=KINDS)
def kind(request):
  if not topologies.is_installed(f"{request.param}:1x1"):
    pytest.skip(f"no compiler for {request.param} is installed")
  return request.param


def compile_pairs(kind, topology, cases, sizes):
  """Of each case, the step with a small and with a large vocabulary."""
  steps = [
    compiled.Step(size, dim, optimizer, dtype, platform=KINDS[kind])
    for dim, dtype, optimizer in cases
    for size in sizes
  ]
  found = compiled.compile_elsewhere(kind, topology, steps)
  return list(zip(steps[::2], found[::2], found[1::2], strict=True))


def check(step, small, large):
  case = (step, small, large)
  for found in (small, large):
    assert found.aliased_bytes >= found.table_bytes, case  # all of them are updated in place
    assert found.copies == [], case
  # Of exchanges the compiler schedules more or fewer at once; tables have grown by 64 MB or more.
  assert large.temp_bytes - small.temp_bytes < 2**21 < 2**25 < large.table_bytes - small.table_bytes
  assert large.temp_bytes < 2**23, case


WHOLE = pytest.param(PRODUCT, marks=pytest.mark.nightly)


@pytest.mark.parametrize("cases", [COVER, WHOLE])
def test_a_step_on_one_device_makes_no_second_table(kind, cases):
  for step, small, large in compile_pairs(kind, "1x1", cases, (300_000, 1_500_000)):
    check(step, small, large)
    assert large.num_loops == 0, step  # a loop would be one over the rows


@pytest.mark.parametrize("cases", [COVER[1:4], WHOLE])
def test_a_step_on_a_mesh_makes_no_second_table(kind, cases):
  for step, small, large in compile_pairs(kind, MESHES[kind], cases, (8_000_000, 16_000_000)):
    check(step, small, large)


@pytest.mark.parametrize("tpu", ["v5e", "v6e"])
def test_row_by_row_a_tpu_does_make_one(tpu):
  if not topologies.is_installed(f"{tpu}:1x1"):
    pytest.skip(f"no compiler for {tpu} is installed")
  few, many = compiled.compile_elsewhere(
    tpu,
    "1x1",
    [compiled.Step(100_000, 16, "adam"), compiled.Step(1_000_000, 64, "sgd")],
  )
  assert few.copies and few.temp_bytes > few.table_bytes
  assert many.copies and many.temp_bytes > 2 * many.table_bytes
