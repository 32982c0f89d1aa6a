"""Rows and gradients that travel as bfloat16: rounded once, kept and summed in float32."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxrec import config as config_lib
from jaxrec import sharding
from jaxrec.config import FeatureConfig, TableConfig, experiment
from jaxrec.sharding import exchange
from jaxrec.tables import RowGradients
from tests.sharding import cases

SIZE, STEPS = 64, 20
INPUTS = cases.features()
MESH = {"data": 8}


def rounded(x):
  """To the nearest bfloat16, of two the even one."""
  return np.asarray(x).astype(jnp.bfloat16).astype(np.float32)


def test_rows_and_gradients_are_rounded_once_and_summed_in_float32_and_words_are_left_alone():
  num_rows, dim = 64, 4
  inputs = (FeatureConfig("user", TableConfig("user", num_rows, dim)),)
  where = cases.placement(inputs, MESH, wire_dtype="bfloat16", capacity=num_rows)
  (sharded,) = where.plan.sharded
  rng = np.random.default_rng(0)
  values = rng.normal(size=(num_rows, dim)).astype(np.float32)
  words = rng.integers(0, 2**32, (num_rows, 2), np.uint32)
  grads = rng.normal(size=(8, num_rows, dim)).astype(np.float32)  # of each device, for all rows

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=where.mesh,
    in_specs=PartitionSpec("data"),
    out_specs=PartitionSpec("data"),
    check_vma=False,
  )
  def there_and_back(values, words, grads):
    rows = jnp.arange(num_rows, dtype=jnp.int32)
    layout = where.layout(sharded.stack.name)
    read, kept = exchange.fetch(sharded, layout, [values, words], rows, where.axes)
    found = exchange.collect(sharded, RowGradients(rows, grads[0], jnp.int32(num_rows)), where.axes)
    sums = jnp.zeros_like(values).at[found.ids].set(found.rows, mode="drop")
    return read[None], kept[None], sums

  read, kept, sums = map(np.asarray, there_and_back(values, words, grads))
  assert (rounded(values) != values).any()
  np.testing.assert_array_equal(read, np.broadcast_to(rounded(values), (8, num_rows, dim)))
  np.testing.assert_array_equal(kept, np.broadcast_to(words, (8, num_rows, 2)))
  np.testing.assert_allclose(sums, rounded(grads).astype(np.float64).sum(axis=0), atol=2e-6)
  assert np.abs(sums - grads.sum(axis=0)).max() > 1e-3


@functools.cache
def batches():
  where = cases.placement(INPUTS, MESH)  # rows are numbered the same, whatever they travel as
  found = (cases.examples(INPUTS, SIZE, seed, "distinct") for seed in range(STEPS))
  return [cases.split(one, INPUTS, where) for one in found]


def trained(wire_dtype, capacity=10_000):
  where = cases.placement(INPUTS, MESH, capacity=capacity, wire_dtype=wire_dtype)
  tx = cases.optimizers("sgd")
  start = cases.fresh(INPUTS, tx, where)
  state, seen = cases.train(start, tx, batches())
  extra = sum(int(one.num_extra_rounds) for one in seen)
  return cases.by_table(start), cases.by_table(state), extra


def test_training_stays_close_to_the_exact_run_and_is_another_and_repeats_its_bits():
  start, exact, _ = trained(None)
  _, narrow, extra = trained("bfloat16")
  for name, rows in exact.items():
    moved, error = np.abs(rows - start[name]).max(), np.abs(narrow[name] - rows).max()
    assert 0 < error <= 2**-7 * moved, (name, error, moved)
    assert (rounded(narrow[name]) != narrow[name]).any()  # its owner has all bits
  assert extra == 0
  jax.tree.map(np.testing.assert_array_equal, trained("bfloat16")[1], narrow)


@pytest.mark.nightly
def test_in_further_rounds_the_same_bits_are_rounded():
  _, ample, _ = trained("bfloat16")
  _, tight, extra = trained("bfloat16", capacity=2)
  assert extra > 0
  jax.tree.map(np.testing.assert_array_equal, tight, ample)


def test_another_dtype_is_refused():
  places = {
    "sharding.wire_dtype: must": lambda d: experiment.ShardingConfig(wire_dtype=d),
    "sharding: wire_dtype must": lambda d: sharding.make_plan(INPUTS, MESH, wire_dtype=d),
    "planner: wire_dtype must": lambda d: sharding.find_plan(
      INPUTS, MESH, sharding.V5E, batch_size=64, wire_dtype=d
    ),
  }
  for message, use in places.items():
    for dtype in ("float16", "int8", ""):
      with pytest.raises(config_lib.ConfigError, match=f"{message} be one of .*, got '{dtype}'"):
        use(dtype)
