"""The kernel by NumPy's own counting, interpreted; and which programs it is in, by their text."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.layers import hamming_scan, lsh_attention, sequences
from tests import repository

KERNEL = "tpu_custom_call"  # what a Pallas kernel is called in a program for a TPU
# U, W, B, L: one and another side of a line of lanes, a group of lines, 8 candidates, a block.
SHAPES = [
  (1, 1, 1, 1),
  (127, 2, 8, 128),
  (128, 1, 9, 129),
  (300, 3, 1, 700),
  (1025, 8, 7, 2049),
  (40, 16, 17, 4096),
]


def draw(num_rows, num_words, batch_size, length, seed=0):
  """Words, places (some of them out of range) and asked words, of all 32 bits."""
  rng = np.random.default_rng(seed)
  words = rng.integers(0, 2**32, (num_rows, num_words), dtype=np.uint32)
  places = rng.integers(0, num_rows + 3, (batch_size, length), dtype=np.int32)
  asked = rng.integers(0, 2**32, (batch_size, num_words), dtype=np.uint32)
  return words, places, asked


def count(words, places, asked):
  """The distances, by bits spelt out in bytes."""
  rows = np.append(words, np.zeros_like(words[:1]), axis=0)
  differ = rows[np.minimum(places, len(words))] ^ asked[:, None]
  return np.unpackbits(differ.view(np.uint8), axis=-1).sum(axis=-1, dtype=np.float64)


def is_in_program(function, *arguments, platform="tpu"):
  return (
    KERNEL in jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
  )


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_and_gather_count_the_bits_that_differ(shape):
  arrays = draw(*shape)
  expected = count(*arrays)
  kernel = hamming_scan.count_and_look_up(*map(jnp.asarray, arrays), interpret=True)
  chosen = jax.jit(hamming_scan.distances)(*map(jnp.asarray, arrays))
  for found in (kernel, chosen):
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)
  assert expected.max() > 8 * shape[1]


@hypothesis.given(
  st.integers(1, 400),
  st.integers(1, 5),
  st.integers(1, 10),
  st.integers(1, 300),
  st.integers(0, 99),
)
@hypothesis.settings(max_examples=10)
def test_no_shape_is_special(num_rows, num_words, batch_size, length, seed):
  arrays = draw(num_rows, num_words, batch_size, length, seed)
  found = hamming_scan.count_and_look_up(*map(jnp.asarray, arrays), interpret=True)
  np.testing.assert_array_equal(found, count(*arrays))


@pytest.mark.parametrize("asked", [0, 2**32 - 1])
def test_no_bit_and_all_bits_are_counted(asked):
  num_words, ones = 16, np.uint32(2**32 - 1)
  words = np.stack([np.zeros(num_words, np.uint32), np.full(num_words, ones)])
  places = np.tile(np.array([0, 1, 2], np.int32), (1, 50))
  found = hamming_scan.count_and_look_up(
    jnp.asarray(words),
    jnp.asarray(places),
    jnp.full((1, num_words), asked, jnp.uint32),
    interpret=True,
  )
  far = 32 * num_words
  assert np.asarray(found)[0].tolist() == ([0, far, 0] if asked == 0 else [far, 0, far]) * 50


def test_a_program_for_a_tpu_holds_the_kernel_where_it_is_worth_one_and_no_other_does():
  def arguments(num_rows, num_words, batch_size, length):
    return (
      jax.ShapeDtypeStruct((num_rows, num_words), jnp.uint32),
      jax.ShapeDtypeStruct((batch_size, length), jnp.int32),
      jax.ShapeDtypeStruct((batch_size, num_words), jnp.uint32),
    )

  few, many = arguments(4096, 2, 512, 1024), arguments(100_000, 2, 512, 1024)
  assert is_in_program(hamming_scan.distances, *few)
  assert not is_in_program(hamming_scan.distances, *many)
  for platform in ("cpu", "cuda"):
    assert not is_in_program(hamming_scan.distances, *few, platform=platform)


@pytest.mark.parametrize(("rows", "is_kernel"), [(2000, True), (60_000, False)])
def test_the_search_has_it_under_a_gradient_too(rows, is_kernel):
  def loss(target, rows, places, mask, planes):
    sequence = sequences.RowSequence(rows, places, mask)
    return lsh_attention.nearest_steps(target, sequence, planes, 48).embeddings().sum()

  arguments = (
    jax.ShapeDtypeStruct((64, 32), jnp.float32),
    jax.ShapeDtypeStruct((rows, 32), jnp.float32),
    jax.ShapeDtypeStruct((64, 256), jnp.int32),
    jax.ShapeDtypeStruct((64, 256), bool),
    jax.ShapeDtypeStruct((32, 64), jnp.float32),
  )
  assert is_in_program(jax.grad(loss, argnums=1), *arguments) == is_kernel


def test_one_history_for_all_candidates_is_left_to_xla():
  def search(targets, rows, planes):
    mask = jnp.ones((1, 1024), bool)
    one = sequences.RowSequence(rows, jnp.arange(1024)[None], mask)
    return lsh_attention.nearest_steps(targets, one, planes, 48).places

  arguments = (jnp.zeros((512, 32)), jnp.zeros((1024, 32)), jnp.zeros((32, 64)))
  assert not is_in_program(search, *arguments)


@pytest.mark.parametrize(
  ("shape", "is_worth"),
  [
    ((63_000, 2, 512, 8192), True),
    ((65_000, 2, 512, 8192), False),  # more rows cost the kernel, not XLA
    ((30_000, 16, 512, 256), False),  # few steps pay for counting
    ((20_000, 1, 1, 1024), False),  # seven of eight candidates are padding
    ((4096, 1, 1, 1024), True),
    ((4096, 33, 512, 8192), False),  # words beyond VMEM
    ((1, 1, 1, 1), False),
  ],
)
def test_the_kernel_is_used_while_rows_are_few_for_the_steps(shape, is_worth):
  assert hamming_scan.is_worth_a_kernel(*shape) == is_worth


def test_a_program_that_xla_splits_has_no_kernel_and_a_mapped_one_has_it():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  everywhere, of_batch = jax.P(), jax.P("data")
  specs = (everywhere, of_batch, of_batch)
  words, places, asked = arrays = [
    jax.device_put(array, jax.NamedSharding(mesh, spec))
    for array, spec in zip(draw(500, 2, 64, 1024), specs, strict=True)
  ]
  mapped = jax.shard_map(hamming_scan.distances, mesh=mesh, in_specs=specs, out_specs=of_batch)
  assert not is_in_program(hamming_scan.distances, *arrays)
  assert is_in_program(mapped, *arrays)
  expected = count(*map(np.asarray, arrays))
  np.testing.assert_array_equal(jax.jit(hamming_scan.distances)(*arrays), expected)
  np.testing.assert_array_equal(jax.jit(mapped)(*arrays), expected)


COMPILE = """
import json

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jaxrec.layers import hamming_scan

def temp_bytes(function, shape, device):
  num_rows, num_words, batch_size, length = shape
  kinds = [
    ((num_rows, num_words), jnp.uint32),
    ((batch_size, length), jnp.int32),
    ((batch_size, num_words), jnp.uint32),
  ]
  at = jax.sharding.SingleDeviceSharding(device)
  arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=at) for shape, dtype in kinds]
  return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

found = {}
for kind in ("v5e", "v6e"):
  device = topologies.get_topology_desc(
    platform="tpu", topology_name=f"{kind}:1x1", chips_per_host_bounds=[1, 1, 1]
  ).devices[0]
  found[kind] = [
    temp_bytes(function, (4096, 2, 512, 1024), device)
    for function in (hamming_scan.distances, hamming_scan.gather_and_count)
  ]
  for shape in [(65_407, 32, 8, 8192), (300, 3, 1, 200)]:  # the most VMEM, and no whole tile
    temp_bytes(hamming_scan.count_and_look_up, shape, device)
print(json.dumps(found))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_tpu_compilers_take_the_kernel_and_it_needs_no_copy_of_the_words():
  environment = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
  }
  done = subprocess.run(
    [sys.executable, "-c", COMPILE],
    cwd=repository.ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  for kernel_bytes, xla_bytes in json.loads(done.stdout.splitlines()[-1]).values():
    assert kernel_bytes < 1 << 20 < 200 << 20 < xla_bytes
