"""Steps compiled for other devices: what the report says, and that MLPerf's model fits."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest

from jaxrec import aot, sharding
from jaxrec import config as config_lib
from jaxrec.analysis import topologies
from jaxrec.config import FeatureConfig, TableConfig, experiment
from jaxrec.features import BatchSpec
from tests import repository
from tests.tables import in_lines


def check_memory(found: dict, ids_per_chip: int, row_bytes: int) -> None:
  """A chip holds its share and little more.

  It works in two and a half times the rows that its ids read, if all are different, and what it
  exchanges for them: buffers on both sides, gradients, and what the compiler runs beside another.
  """
  share = sum(found[f"{name}_bytes"] for name in ("table", "moment", "dense", "batch"))
  # What a step does not read, such as ids that have a row plan, is no argument.
  assert 0.95 * share <= found["argument_bytes"] <= 1.05 * share
  moved = ids_per_chip * row_bytes + found["collective_bytes"]["all-to-all"]
  assert found["temporary_bytes"] <= 2.5 * moved + 48 * 2**20
  assert found["needed_bytes"] >= found["argument_bytes"] + found["temporary_bytes"]


@pytest.mark.parametrize(
  "layout",
  [in_lines.as_on_a_tpu, pytest.param(contextlib.nullcontext, marks=pytest.mark.nightly)],
)
def test_a_report_of_a_small_step(layout):
  features = (
    FeatureConfig("user", TableConfig("user", 100_003, 16)),
    FeatureConfig("item", TableConfig("item", 20_001, 16), ids_per_bag=4),
  )
  config = experiment.ExperimentConfig(batch_size=512)
  mesh = sharding.make_mesh({"data": 8})
  with layout():
    compiled = aot.compile_step(config, BatchSpec(features, num_dense=4), mesh)
  found = aot.report("v5e:2x4", compiled)
  check_memory(found, ids_per_chip=64 * 5, row_bytes=64)
  assert found["table_bytes"] == 120_004 * 64 // 8
  assert found["moment_bytes"] == 120_004 * 4 // 8
  assert found["devices"] == 8 and found["fits"] and found["flops"] > 0
  slots = 8 * compiled.where.plan.sharded[0].capacity_for(64 * 5)
  # Row numbers, rows, gradients; the numbers are the same both ways, and XLA sends them once.
  assert found["collective_bytes"]["all-to-all"] == slots * (4 + 64 + 64)
  assert found["collective_bytes_extra_round"]["all-to-all"] == slots * (4 + 64 + 4 + 64)
  assert found["bound_by"] == max(found["roofline_ms"], key=found["roofline_ms"].get)
  assert found["roofline_ms"].keys() == {"products", "memory", "links"}


def test_what_every_chip_holds_whole_is_not_divided_by_the_chips():
  features = (
    FeatureConfig("user", TableConfig("user", 100_003, 16)),
    FeatureConfig("item", TableConfig("item", 20_001, 8)),
  )
  rules = ("item=replicated", ".*=row_wise")
  config = experiment.ExperimentConfig(
    batch_size=64, sharding=experiment.ShardingConfig(rules=rules)
  )
  mesh = sharding.make_mesh({"data": 8})
  compiled = aot.compile_step(config, BatchSpec(features, num_dense=4), mesh)
  found = aot.report("v5e:2x4", compiled)
  check_memory(found, ids_per_chip=64 // 8 * 2, row_bytes=64)
  assert found["table_bytes"] == round(100_003 * 64 / 8) + 20_001 * 32
  more = compiled.demand.bytes_a_chip(64) - compiled.demand.bytes_a_chip(1 << 40)
  assert more < 100_003 * 64 / 8  # the rows that more chips would share, and no others
  assert compiled.demand.bytes_a_chip(1 << 40) > 20_001 * 32


def test_the_models_are_those_of_the_benchmarks():
  config, spec = aot.dlrm_mlperf()
  assert sum(f.table.vocab_size for f in spec.features) == 204_184_588
  assert sum(f.ids_per_bag for f in spec.features) == 214
  assert config.batch_size == 65_536 and config.optimizer.table == "rowwise_adagrad"
  config, spec = aot.eta()
  assert spec.features[2].ids_per_bag == 1024 and config.model.name == "eta"


def test_a_model_that_is_none_is_named():
  with pytest.raises(config_lib.ConfigError, match="--model: no model 'etta'; did you mean 'eta'"):
    aot.job("etta")


@pytest.mark.parametrize(
  "name", ["v5e", "v5e:", "v5e:16by16", "v9:2x2", "h100", "h100:0", "v5e:4x0"]
)
def test_a_topology_that_is_none_is_named(name):
  with pytest.raises(config_lib.ConfigError, match=f"--topology={name}: expected a chip and how"):
    topologies.chip_of(name)


def command(*args: str) -> dict:
  done = subprocess.run(
    [sys.executable, "-m", "jaxrec.training.aot", *args],
    cwd=repository.ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])


def require_compiler(topology: str) -> None:
  """Skips the test where there is none; ``make aot`` first sees that there is."""
  if not topologies.is_installed(topology):
    pytest.skip(f"no compiler for {topology}: pip install .[aot]")


@pytest.mark.aot
def test_mlperf_compiles_for_eight_gpus():
  require_compiler("h100:8")
  found = command("--topology=h100:8")
  check_memory(found, ids_per_chip=65_536 // 8 * 214, row_bytes=512)
  assert found["fits"] and found["collective_bytes"]["all-to-all"] > 10**9


@pytest.mark.aot
def test_a_model_that_does_not_fit_says_so_with_what_was_asked_for_and_what_would_fit():
  require_compiler("v5e:2x4")
  refusal = command("--topology=v5e:2x4", "--model=dlrm_mlperf")
  assert refusal["fits"] is False and refusal["devices"] == 8
  assert refusal["needed_bytes"] > refusal["memory_bytes"] > 15 * 2**30
  assert refusal["would_fit"]["topology"] == "v5e:4x4" and "RESOURCE_EXHAUSTED" in refusal["note"]
  assert refusal["table_bytes"] == 204_184_588 * 512 // 8


@pytest.mark.aot
@pytest.mark.nightly
@pytest.mark.parametrize("model", aot.MODELS)
@pytest.mark.parametrize("topology", ["v5e:16x16", "v5p:4x4x4", "v6e:16x16", "h100:8"])
def test_every_topology(topology, model, nightly):
  require_compiler(topology)
  if not nightly.is_full:
    pytest.skip("minutes each: at full counts only")
  found = command(f"--topology={topology}", f"--model={model}")
  ids = found["batch_size"] // found["devices"] * {"dlrm_mlperf": 214, "eta": 1026}[model]
  assert found["fits"]
  check_memory(found, ids, row_bytes=512)
  if topology == "v5e:16x16" and model == "dlrm_mlperf":
    assert found["temporary_bytes"] <= 2**28
