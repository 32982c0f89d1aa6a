"""The cost model counts what the exchange really does."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec import sharding
from jaxrec import tables as tables_lib
from jaxrec.config import ConfigError, FeatureConfig, TableConfig
from jaxrec.sharding import layouts
from jaxrec.sharding.planner import cost, device_spec, search
from tests import xla_flags
from tests.sharding import cases
from tests.sharding.planner import cases as planner_cases

BATCH = 4096
INPUTS = tuple(
  FeatureConfig(name, TableConfig(name, rows, 32), ids_per_bag=length)
  for name, rows, length in [("a", 20_000, 2), ("b", 3_000, 1), ("c", 500, 3)]
)
WAYS = {
  "row_wise": ({"data": 8}, layouts.row_wise()),
  "grid": ({"data": 2, "model": 4}, layouts.row_wise("model")),
  "column_wise": ({"data": 8}, layouts.column_wise()),
  "replicated": ({"data": 2, "model": 4}, layouts.replicated()),
}
WIDTHS = {"i32": 4, "ui32": 4, "f32": 4}


def stack_cost(mesh, layout, *, batch_size=BATCH, moments=cost.ROWWISE_ADAGRAD):
  demands = cost.demands_of(
    INPUTS, batch_size=batch_size, num_devices=8, moments=moments, profiles={}
  )
  links = device_spec.Links(mesh, device_spec.CPU)
  return cost.stack_cost(links, [(demand, layout.on(mesh, "")) for demand in demands])


@functools.cache
def lowered(way):
  """A training step with the capacity that the model chose."""
  mesh, layout = WAYS[way]
  capacity = stack_cost(mesh, layout).capacity
  where = cases.placement(INPUTS, mesh, ((".*", layout),), capacity=capacity)
  tx = cases.optimizers("rowwise_adagrad")
  batch = cases.split(cases.examples(INPUTS, BATCH, 0), INPUTS, where)
  return cases._step(tx).lower(cases.fresh(INPUTS, tx, where), batch)


def collective_bytes(text):
  """By kind, of what each device's collectives give it."""
  found = {}
  pattern = r'"stablehlo\.(all_to_all|all_gather)".*?-> tensor<([0-9x]*)x(\w+)>'
  for kind, shape, dtype in re.findall(pattern, text, re.DOTALL):
    size = math.prod(int(n) for n in shape.split("x")) * WIDTHS[dtype]
    found[kind] = found.get(kind, 0) + size
  return found


@pytest.mark.parametrize("way", WAYS)
def test_the_bytes_of_the_collectives_are_those_of_the_program(way):
  ours, found = stack_cost(*WAYS[way]), collective_bytes(lowered(way).as_text())
  # Where a batch can overflow, the program has the exchange twice: first round and further ones.
  rounds = 2 if way in ("row_wise", "grid") else 1
  assert found.get("all_to_all", 0) == rounds * ours.sent_bytes
  assert found.get("all_gather", 0) == rounds * ours.copied_bytes
  assert ours.sent_bytes + ours.copied_bytes > 0


@pytest.mark.parametrize("way", [pytest.param("row_wise", marks=pytest.mark.nightly), "replicated"])
def test_the_buffers_hold_what_the_compiler_asks_for(way):
  temporary = lowered(way).compile(xla_flags.as_shipped()).memory_analysis().temp_size_in_bytes
  assert 1.0 <= stack_cost(*WAYS[way]).buffer_bytes / temporary <= 1.3


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise_adagrad", "adam"])
@pytest.mark.parametrize("way", WAYS)
def test_the_bytes_of_tables_are_those_of_the_arrays(way, optimizer):
  mesh, layout = WAYS[way]
  moments = {"sgd": cost.SGD, "rowwise_adagrad": cost.ROWWISE_ADAGRAD, "adam": cost.ADAM}[optimizer]
  where = cases.placement(INPUTS, mesh, ((".*", layout),))

  def init():
    tables = sharding.create(where, jax.random.key(0))
    return tables, tables_lib.init_row_state(cases.OPTIMIZERS[optimizer](), tables)

  shapes = jax.eval_shape(init)
  parts = jax.tree.map(
    lambda array, spec: math.prod(where.sharding(spec).shard_shape(array.shape)) * 4,
    *((tree[0].values, tree[1].rows) for tree in (shapes, sharding.specs_of(shapes, where))),
  )
  held = sum(jax.tree.leaves(parts))
  assert stack_cost(mesh, layout, moments=moments).table_bytes == held


def test_the_capacity_holds_what_batches_ask_of_the_busiest_shard():
  rng = np.random.default_rng(0)
  mesh, layout = WAYS["row_wise"]
  found = stack_cost(mesh, layout)
  sharded = sharding.make_plan(INPUTS, mesh, ((".*", layout),)).sharded[0]
  asked = []
  for _ in range(200):
    rows = []
    for feature in INPUTS:
      vocab_size = feature.table.vocab_size
      chances = np.arange(1, vocab_size + 1) ** -1.05
      ids = rng.choice(vocab_size, BATCH // 8 * feature.ids_per_bag, p=chances / chances.sum())
      rows.append(sharded.rows_of(feature.table, np.unique(ids)) // sharded.rows_per_shard)
    asked.append(np.bincount(np.concatenate(rows), minlength=8).max())
  assert max(asked) <= found.capacity < 1.5 * np.mean(asked)


def test_a_stack_costs_what_the_formulas_say():
  """Two tables on 2 hosts of 2 devices, by hand."""
  mesh = {"dcn": 2, "data": 2}
  device = device_spec.DeviceSpec("d", 10**9, 1e9, 1e8, 1e7, 1e7, 1e-5, 0, 32)
  links = device_spec.Links(mesh, device)
  big, small = TableConfig("big", 4_000, 8), TableConfig("small", 3, 8)
  demands = [
    cost.Demand(big, cost.ADAM, 600, 400.0, 300.0, 1000.0),
    cost.Demand(small, cost.ADAM, 200, 3.0, 3.0, 3.0),
  ]
  ways = [layouts.row_wise(), layouts.table_wise(first=2)]
  found = cost.stack_cost(
    links, [(d, at.on(mesh, "")) for d, at in zip(demands, ways, strict=True)]
  )
  mean = 400 / 4 + 3  # asked of shard 2
  sigma = (100 - 300 / 16 + 3 - 3) ** 0.5
  assert found.capacity == 8 * math.ceil((mean + 5 * sigma) / 8)
  slots = 4 * found.capacity
  sent = slots * (8 + 8 * 8)
  assert found.sent_bytes == sent
  assert found.links == pytest.approx(sent / 2 / 1e7 + sent / 2 / 2 / 1e8)
  random = 4 * mean * 32 + (250 + 3) * 2 * 3 * 32
  assert found.memory == pytest.approx((4 * sent + 8 * slots * 8 + random) / 1e9)
  assert found.latency == pytest.approx(6e-5)
  assert found.table_bytes == 1003 * (32 + 64)
  work = (4 * np.array([100, 100, mean, 100]) * 72 / 2) * (1 / 1e7 + 1 / 2 / 1e8)
  touched = np.array([250, 250, 253, 250])
  work += (4 * np.array([100, 100, mean, 100]) * 32 + touched * 192) / 1e9
  np.testing.assert_allclose(found.work, work)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_bfloat16_a_number_and_its_gradient_travel_as_four_bytes(dtype):
  links = device_spec.Links({"data": 8}, device_spec.H100)
  table = TableConfig("t", 10_000, 8, dtype=dtype)
  demand = cost.Demand(table, cost.SGD, 500, 400.0, 300.0, 1000.0)
  exact, narrow = (
    cost.stack_cost(links, [(d, layouts.row_wise().on({"data": 8}, ""))])
    for d in (demand, dataclasses.replace(demand, wire_dtype="bfloat16"))
  )
  slots, width = 8 * exact.capacity, 4 if dtype == "float32" else 2
  assert exact.sent_bytes == slots * (8 + 8 * (width + 4))
  assert narrow.sent_bytes == slots * (8 + 8 * 4)
  assert narrow.links < exact.links and narrow.capacity == exact.capacity
  assert narrow.table_bytes == exact.table_bytes


def test_a_table_smaller_than_its_gradients_is_summed_whole():
  mesh, layout = {"data": 8}, layouts.replicated()
  demand = cost.Demand(TableConfig("t", 100, 8), cost.SGD, 50, 40.0, 30.0, 90.0)
  links = device_spec.Links(mesh, device_spec.H100)
  found = cost.stack_cost(links, [(demand, layout.on(mesh, ""))])
  assert found.copied_bytes == 100 * 36
  assert found.links == links.all_reduce(3600, ("data",))
  assert found.sent_bytes == 0


@given(seed=st.integers(0, 10_000))
def test_more_tables_never_cost_less(seed):
  """The bound of the branch and bound."""
  rng = np.random.default_rng(seed)
  asked = planner_cases.random_problem(seed)
  evaluate = asked.evaluator()
  options = search.options_of(evaluate.demands, asked.mesh, is_host_allowed=True)
  choices = {i: some[rng.integers(len(some))] for i, some in enumerate(options)}
  order = rng.permutation(len(options)).tolist()
  costs = [evaluate({i: choices[i] for i in order[:n]}) for n in range(len(order) + 1)]
  for fewer, more in zip(costs, costs[1:], strict=False):
    assert fewer.excess_bytes <= more.excess_bytes
    assert fewer.seconds <= more.seconds * (1 + 1e-12)


def test_a_torus_exchanges_as_its_bisection_allows():
  links = device_spec.Links({"data": 16, "model": 16}, device_spec.V5E)
  per_chip = 1e9 / links.all_to_all(1e9 * 256 / 255, ("data", "model"))
  # Half of what 128 chips send crosses a bisection of 1.6 TB/s.
  assert 128 * per_chip / 2 == pytest.approx(1.6e12, rel=0.01)


def test_collectives_of_one_host_and_of_two_take_their_links():
  links = device_spec.Links({"dcn": 2, "data": 4}, device_spec.H100)
  fast, slow = device_spec.H100.link_bandwidth, device_spec.H100.dcn_bandwidth
  assert links.all_reduce(8e9, ("data",)) == pytest.approx(2 * 8e9 * 3 / 4 / fast)
  assert links.all_gather(1e9, ("data",)) == pytest.approx(3e9 / fast)
  assert links.all_to_all(8e9, ("data",)) == pytest.approx(6e9 / fast)
  both = ("dcn", "data")
  assert links.all_reduce(8e9, both) == pytest.approx(12e9 / fast + 2 * 8e9 / 4 / 2 / slow)
  assert links.all_gather(1e9, both) == pytest.approx(6e9 / fast + 1e9 / slow)
  assert links.all_to_all(8e9, both) == pytest.approx(3e9 / fast + 4e9 / slow)


def test_half_the_axes_of_a_torus_have_half_its_links():
  links = device_spec.Links({"data": 4, "model": 4}, device_spec.V5E)
  one, both = (links.all_gather(1e6, axes) for axes in [("model",), ("data", "model")])
  assert one == pytest.approx(3e6 / 100e9)
  assert both == pytest.approx(15e6 / 200e9)


def test_a_device_without_bandwidth_is_refused():
  with pytest.raises(ConfigError, match="'x': link_bandwidth must be a finite number above 0, got"):
    device_spec.DeviceSpec("x", 1, 1.0, 0.0, 1.0, 1.0, 0.0)


def test_an_optimizer_without_moments_is_named():
  table = TableConfig("t", 9, 4, optimizer="ftlr")
  with pytest.raises(ConfigError, match="table 't' has the optimizer 'ftlr'.* did you mean 'ftrl'"):
    cost.demands_of(
      [FeatureConfig("f", table)],
      batch_size=8,
      num_devices=8,
      moments={"ftrl": cost.FTRL},
      profiles={},
    )


@pytest.mark.parametrize(
  ("optimizer", "kept"),
  [
    (tables_lib.rowwise_adagrad(0.1), cost.ROWWISE_ADAGRAD),
    (tables_lib.lazily(optax.sgd(0.1)), cost.SGD),
    (tables_lib.lazily(optax.adagrad(0.1)), cost.ADAGRAD),
    (tables_lib.lazily(optax.adam(0.1)), cost.ADAM),
  ],
)
def test_moments_are_those_that_an_optimizer_keeps(optimizer, kept):
  assert sharding.moments_of(optimizer) == kept
  whole = optimizer._replace(over_columns=None)
  assert sharding.moments_of({None: whole})[None] == dataclasses.replace(kept, is_by_column=False)


@pytest.mark.parametrize(
  ("dim", "dtype", "stored"), [(16, "float32", 16), (20, "bfloat16", 32), (160, "float32", 256)]
)
def test_a_tpu_pads_rows_and_a_gpu_does_not(dim, dtype, stored):
  features = [FeatureConfig("a", TableConfig("a", 8_000, dim, dtype=dtype))]
  size = 4 if dtype == "float32" else 2
  for device, width in ((sharding.V5E, stored), (sharding.H100, dim)):
    found = sharding.find_plan(
      features, {"data": 8}, device, batch_size=4096, moments=sharding.ADAM
    )
    (stack,), (sharded,) = found.stacks, found.plan.sharded
    part = width // sharded.num_columns
    assert stack.table_bytes == sharded.rows_per_shard * part * (size + 8)
    assert sharded.in_lines == (device is sharding.V5E and sharded.embedding_dim < 128)


def test_devices_are_known_by_the_names_that_jax_gives_them():
  names = {
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "cpu": "cpu",
  }
  assert {kind: sharding.of_kind(kind).name for kind in names} == names
  with pytest.raises(
    ConfigError, match="no numbers of a device 'TPU v4' are known, only of tpu v5"
  ):
    sharding.of_kind("TPU v4")
