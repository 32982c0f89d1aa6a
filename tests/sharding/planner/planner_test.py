"""The planner: never too much memory, the best plan where it can be known, and reasons."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from jaxrec import sharding
from jaxrec.config import ConfigError, FeatureConfig, TableConfig
from jaxrec.sharding import layouts
from jaxrec.sharding.planner import explain, search
from tests import repository
from tests.sharding import cases
from tests.sharding.planner import cases as planner_cases

GOLDEN = pathlib.Path(__file__).parent / "golden"
NUM_RANDOM = 200
MLPERF = planner_cases.GOLDEN["mlperf_dcnv2_8_h100"]


def plan(name, **changes):
  return sharding.find_plan(**(planner_cases.GOLDEN[name] | changes))


def table_bytes(found, moments):
  """Of rows and moments on each device, by the plan alone."""
  return sum(
    stack.rows_per_shard
    * (
      stack.embedding_dim * (4 if stack.stack.dtype == "float32" else 2)
      + moments.num_bytes(stack.embedding_dim)
    )
    for stack in found.plan.sharded
  )


def test_plans_of_200_small_problems_fit_and_are_the_best_that_do():
  planned, refused, kinds = 0, 0, set()
  for seed in range(NUM_RANDOM):
    asked = planner_cases.random_problem(seed)
    best = planner_cases.cheapest(asked)
    if best.excess_bytes:
      refused += 1
      with pytest.raises(ConfigError, match=f"{best.excess_bytes:,} bytes too many"):
        sharding.find_plan(**planner_cases.arguments(asked))
      continue
    planned += 1
    found = sharding.find_plan(**planner_cases.arguments(asked))
    kinds |= {table.layout for table in found.tables}
    assert found.is_exact
    assert found.seconds <= 1.01 * best.seconds, seed
    reserved = sum(stack.table_bytes for stack in found.stacks)
    assert reserved == table_bytes(found, asked.moments), seed
    assert found.held_bytes <= found.available_bytes == asked.device.memory_bytes, seed
    assert max(found.own_bytes) <= reserved, seed
  assert planned > 150 and refused > 3
  assert kinds >= {"replicated", "row_wise", "column_wise", "grid", "table_wise"}


def test_the_bounded_search_misses_the_best_plan_rarely_and_by_little():
  ratios, missed = [], 0
  for seed in range(NUM_RANDOM):
    asked = planner_cases.random_problem(seed)
    evaluate = asked.evaluator()
    options = search.options_of(evaluate.demands, asked.mesh)
    quick = search.bounded(evaluate, options).cost
    best = planner_cases.cheapest(asked)
    if best.excess_bytes == 0:
      missed += quick.excess_bytes > 0
      ratios.append(quick.seconds / best.seconds)
  assert missed == 0
  assert max(ratios) < 1.05
  assert np.mean(np.array(ratios) > 1.01) < 0.01


def test_mlperf_on_8_devices_of_80_gb_fits_and_is_balanced():
  found = plan("mlperf_dcnv2_8_h100")
  assert found.balance <= 1.1
  assert table_bytes(found, sharding.ADAGRAD) <= found.held_bytes <= 0.9 * 80e9
  # Rows and Adagrad's accumulators of 204,184,588 rows, an eighth of them on each device.
  assert found.own_bytes == pytest.approx([204_184_588 * 1024 / 8] * 8, rel=1e-5)


@pytest.mark.parametrize("exponent", [0.0, 1.5])
def test_mlperf_stays_balanced_however_skewed_its_ids_are(exponent):
  profiles = {
    f.table.name: sharding.zipf_profile(f.table.vocab_size, exponent) for f in MLPERF["features"]
  }
  assert plan("mlperf_dcnv2_8_h100", profiles=profiles).balance <= 1.1


@pytest.mark.parametrize("name", planner_cases.GOLDEN)
def test_plans_of_published_models_are_the_golden_ones(name):
  assert json.loads((GOLDEN / f"{name}.json").read_text()) == plan(name).as_dict()


def test_the_plan_carries_the_capacities_that_were_weighed():
  found = plan("mlperf_dcnv2_256_v5e")
  weighed = {stack.name: stack.capacity or None for stack in found.stacks}
  assert {s.stack.name: s.capacity for s in found.plan.sharded} == weighed
  assert any(weighed.values()) and not all(weighed.values())


def test_rows_are_rounded_on_the_wire_only_where_that_is_asked_for():
  exact, narrow = (plan("kaggle_8_v5e", wire_dtype=d) for d in (None, "bfloat16"))
  assert plan("kaggle_8_v5e").plan == exact.plan
  assert {one.wire_dtype for one in exact.plan.sharded} == {None}
  (plain,) = sharding.make_plan(cases.features(), {"data": 8}).sharded
  assert plain.wire_dtype is None
  assert {one.wire_dtype for one in narrow.plan.sharded} == {"bfloat16"}
  assert narrow.seconds < exact.seconds


def test_a_tables_name_is_no_pattern():
  features = [FeatureConfig(name, TableConfig(name, 9, 8)) for name in ("a(b", "c.*", "c.d")]
  found = sharding.find_plan(features, {"data": 2}, sharding.CPU, batch_size=8)
  assert [table.name for table in found.tables] == ["a(b", "c.*", "c.d"]


def test_the_same_question_has_the_same_answer():
  assert plan("kaggle_8_v5e").as_dict() == plan("kaggle_8_v5e").as_dict()


def test_a_plan_prints_as_a_short_table():
  found = plan("mlperf_dcnv2_256_v5e")
  lines = str(found).splitlines()
  assert len(lines) <= 8
  assert max(map(len, lines)) <= 160
  assert re.match(
    r"26 tables on 256 v5e \(data=16 x model=16\): [\d.]+ ms a step, [\d.]+ GiB of [\d.]+ GiB a "
    r"device, max/mean load 1\.\d\d; best of [\d,]+ plans",
    lines[0],
  )
  header = ["layout", "tables", "rows", "a device", "a step", "capacity", "why"]
  assert re.split("  +", lines[1]) == header
  (copied,) = [line for line in lines if line.startswith("replicated")]
  assert "C6, C8, C9, ... " in copied and re.search(r"C8: row_wise \+[\d.]+ us", copied)
  assert "replicated is" in str(found) and "GiB too large" in str(found)


def test_many_devices_that_differ_are_shown_by_three():
  found = dataclasses.replace(plan("kaggle_8_v5e"), work=tuple(range(1, 17)), own_bytes=(1,) * 16)
  lines = str(found).splitlines()
  assert lines[-4].endswith("(least, middle and most work)")
  assert [line.split()[0] for line in lines[-3:]] == ["0", "8", "15"]


def layouts_of(found):
  return [table.layout for table in found.tables]


def test_slow_links_between_hosts_make_each_host_keep_a_copy():
  slow = dataclasses.replace(sharding.H100, dcn_bandwidth=1e8, reserve_bytes=0)
  # Each look-up is of a row of its own, so requests to others weigh more than sums of the few.
  ask = dict(mesh={"dcn": 2, "data": 4}, batch_size=8192)
  features = planner_cases.tables(2_000, dim=128, ids_per_bag=50)
  (near,) = sharding.find_plan(features, device=slow, **ask).plan.sharded
  assert "dcn" not in near.row_axes


def test_a_small_table_is_copied_and_a_large_one_spread():
  features = planner_cases.tables(*[50] * 40, 10**8, dim=64)
  found = sharding.find_plan(features, {"data": 16, "model": 16}, sharding.V5E, batch_size=65536)
  *small, large = found.tables
  assert [table.layout for table in small].count("replicated") > 30
  assert large.layout == "row_wise"
  assert re.fullmatch(r"row_wise \+[\d.]+ us", small[-1].why)
  assert re.fullmatch(r"grid \+[\d.]+ us; replicated is [\d.]+ GiB too large", large.why)


def test_columns_stay_together_where_the_optimizer_needs_whole_rows():
  ask = dict(mesh={"data": 4}, device=sharding.H100, batch_size=64)
  whole = sharding.Moments(per_row=4, is_by_column=False)
  features = planner_cases.tables(10**9)  # too large to copy
  by_column = sharding.find_plan(features, moments=sharding.ROWWISE_ADAGRAD, **ask)
  assert layouts_of(by_column) == ["column_wise"]
  assert "column_wise" not in layouts_of(sharding.find_plan(features, moments=whole, **ask))


def test_features_of_one_table_ask_for_it_together():
  table = TableConfig("t", 10**6, 32)
  one = sharding.find_plan(
    [FeatureConfig("a", table, ids_per_bag=3)], {"data": 4}, sharding.H100, batch_size=4096
  )
  two = sharding.find_plan(
    [FeatureConfig("a", table, ids_per_bag=2), FeatureConfig("b", table)],
    {"data": 4},
    sharding.H100,
    batch_size=4096,
  )
  assert one.seconds == two.seconds


def test_a_planned_model_trains_as_one_device_does():
  inputs, mesh = cases.features("bags"), {"data": 2, "model": 4}
  found = sharding.find_plan(inputs, mesh, sharding.CPU, batch_size=32)
  tx = cases.optimizers("rowwise_adagrad")
  batches = [cases.examples(inputs, 32, seed) for seed in range(3)]
  where = sharding.Sharded(sharding.make_mesh(mesh), found.plan)
  ours, _ = cases.train(
    cases.fresh(inputs, tx, where), tx, [cases.split(one, inputs, where) for one in batches]
  )
  theirs, _ = cases.train(
    cases.fresh(inputs, tx), tx, [cases.split(one, inputs, None) for one in batches]
  )
  cases.check_close(cases.by_table(ours), cases.by_table(theirs))
  arrays = jax.tree.leaves((ours.tables.values, ours.row_state.rows))
  held = sum(array.addressable_shards[0].data.nbytes for array in arrays)
  assert held == sum(stack.table_bytes for stack in found.stacks)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"batch_size": 65_537}, "batch_size must be a multiple of the 8 devices, got 65537"),
    ({"mesh": {}}, r"every mesh axis must have a size of at least 1, got \{\}"),
    ({"mesh": {"data": 0}}, r"every mesh axis must have a size of at least 1, got \{'data': 0\}"),
    ({"features": []}, "there are no features"),
    (
      {"profiles": {"C7": sharding.zipf_profile(10)}},
      r"table 'C7' has 7,122 rows, and its profile is of 10; make .* vocab_size=7122",
    ),
    ({"profiles": {"C27": None}}, "a profile of no table 'C27'; did you mean 'C7'"),
    ({"moments": {"adam": sharding.ADAM}}, "table 'C1' has the optimizer None"),
  ],
)
def test_arguments_that_make_no_sense_are_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    plan("mlperf_dcnv2_8_h100", **changes)


def test_capacities_are_given_by_stack():
  inputs = cases.features()
  rules = (("user", layouts.row_wise()), (".*", layouts.column_wise()))
  user, rest = sharding.make_plan(inputs, {"data": 4}, rules).sharded
  named = sharding.make_plan(inputs, {"data": 4}, rules, capacity={user.stack.name: 16})
  assert [stack.capacity for stack in named.sharded] == [16, None]
  for stack in (rest.stack.name + "x", "nothing"):
    with pytest.raises(ConfigError, match=f"capacity of no stack '{stack}'.* Known: d8_float32"):
      sharding.make_plan(inputs, {"data": 4}, rules, capacity={stack: 16})
  with pytest.raises(ConfigError, match="'d8_float32': capacity must be >= 1 row, or None, got 0"):
    sharding.make_plan(inputs, {"data": 4}, capacity=0)


def test_every_candidate_lies_on_the_mesh_it_is_for():
  demand = planner_cases.random_problem(0).evaluator().demands[0]
  demand = dataclasses.replace(demand, table=TableConfig("t", 9, 32))
  mesh = {"dcn": 2, "data": 2, "model": 2}
  named = [explain.name_of(choice, mesh) for choice in search.candidates(demand, mesh)]
  assert [name for name, _ in named] == [
    *("row_wise", "replicated", "grid", "grid", "column_wise"),
    *["table_row_wise"] * 2,
    *["table_wise"] * 8,
  ]
  assert ("grid", "rows over data, model") in named
  assert ("table_row_wise", "on devices 4 to 7") in named
  assert ("column_wise", "over data, model") in named
  assert len(set(named)) == len(named)
  (alone,) = search.candidates(demand, {"data": 1, "model": 1})
  assert alone.rows == ("data", "model")


def test_planning_starts_no_backend():
  program = textwrap.dedent("""
    from tests.sharding.planner import cases as planner_cases
    from jaxrec import sharding
    print(sharding.find_plan(**planner_cases.GOLDEN["kaggle_8_v5e"]))
    from jax._src import xla_bridge
    assert not xla_bridge.backends_are_initialized(), "planning starts JAX's backend"
  """)
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=repository.ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("26 tables on 8 v5e")


if (
  __name__ == "__main__"
):  # python -m tests.sharding.planner.planner_test: writes the golden plans anew
  for golden in planner_cases.GOLDEN:
    text = json.dumps(plan(golden).as_dict(), indent=1) + "\n"
    (GOLDEN / f"{golden}.json").write_text(text, encoding="utf-8")
