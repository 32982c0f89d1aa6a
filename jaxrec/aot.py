"""Does it fit, and what crosses the links? A training step compiled for devices that are not here.

``python -m jaxrec.training.aot --topology=v5e:16x16 --model=dlrm_mlperf`` compiles the whole step
with the real compiler and prints one JSON object: memory and FLOPs of a chip, bytes of collectives
by kind, and the least time that its published rates allow. They are the compiler's figures, not
measured ones. Nothing is allocated: a table of 100 GiB is a shape here.

*Source*: design, section 6.
*Read next*: jaxrec/analysis/topologies.py, jaxrec/analysis/hlo_collectives.py.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from jaxrec import config as config_lib
from jaxrec import sharding
from jaxrec.analysis import hlo_collectives, memory_fit, topologies
from jaxrec.config import FeatureConfig, TableConfig, overrides, presets
from jaxrec.config import experiment as experiment_lib
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import id_bags, row_plan
from jaxrec.models import registry as model_registry
from jaxrec.runs.process import host, virtual_devices
from jaxrec.runs.setup import optimizers, placement
from jaxrec.training import state, step

Job = tuple[experiment_lib.ExperimentConfig, batch_lib.BatchSpec]  # what is trained, on what


def dlrm_mlperf() -> Job:
  """MLPerf's DLRM-DCNv2, 204,184,588 rows of 128, with row-wise Adagrad."""
  config = overrides.with_overrides(
    presets.get("mlperf_dcnv2"), ["optimizer.table=rowwise_adagrad"]
  )
  fields, dim = config.data, config.model.embedding_dim
  pairs = zip(fields.vocab_sizes, fields.ids_per_bag, strict=True)
  features = tuple(
    FeatureConfig(f"C{i}", TableConfig(f"C{i}", rows, dim), ids_per_bag=length)
    for i, (rows, length) in enumerate(pairs, start=1)
  )
  return config, batch_lib.BatchSpec(features, num_dense=13)


def eta() -> Job:
  """ETA over histories of 1,024 of 200M items, and 300M users, of 128 numbers each."""
  config = overrides.with_overrides(
    presets.get("events_eta"),
    ["optimizer.table=rowwise_adagrad", "model.embedding_dim=128", "batch_size=65536"],
  )
  how = config.model.history
  item, user = TableConfig("item", 200_000_000, 128), TableConfig("user", 300_000_000, 128)
  features = (
    FeatureConfig("user", user),
    FeatureConfig(how.target, item),
    FeatureConfig(how.sequence, item, combiner="none", ids_per_bag=1024),
  )
  return config, batch_lib.BatchSpec(features, num_dense=4)


MODELS: Mapping[str, Callable[[], Job]] = {"dlrm_mlperf": dlrm_mlperf, "eta": eta}


def job(model: str) -> Job:
  """The one of that name.

  Raises:
    ConfigError: there is none.
  """
  config_lib.require(
    model in MODELS, f"--model: no model {model!r}; {config_lib.did_you_mean(model, MODELS)}"
  )
  return MODELS[model]()


class Compiled(NamedTuple):
  """A step for devices that are elsewhere: the program, what it takes, and where its tables are."""

  program: Any
  flops: float | None
  state: state.TrainState
  batch: batch_lib.Batch
  where: sharding.Sharded
  demand: memory_fit.Demand


class DoesNotFitError(config_lib.ConfigError):
  """The compiler found no room for a step.

  Attributes:
    step: The step that was to be compiled, without a program.
  """

  def __init__(self, message: str, step: Compiled):
    super().__init__(message)
    self.step = step


def compile_step(
  config: experiment_lib.ExperimentConfig,
  spec: batch_lib.BatchSpec,
  mesh: jax.sharding.Mesh,
  say: Callable[[str], None] | None = None,
) -> Compiled:
  """The step of ``config`` on batches of ``spec``, compiled for ``mesh``.

  ``say`` is told of the plan, if the planner makes it; it then assumes how often ids come.

  Raises:
    DoesNotFitError: The compiler ran out of the devices' memory.
  """
  tx = optimizers.build(config.optimizer)
  where = placement.placement_on(mesh, config, spec, tx, say=say)
  model = model_registry.build(config.model, num_logits=len(spec.labels))
  key = jax.random.key(config.seed)

  def fresh() -> state.TrainState:
    return state.init_state(key, model, spec, tx=tx, placement=where)

  current = sharding.placed(jax.eval_shape(fresh), where)
  batch = batch_shapes(config.batch_size, spec, where)
  step_fn = jax.jit(step.make_step(model, tx, label=spec.labels), donate_argnums=0)
  lowered = step_fn.lower(current, batch)
  demand = _demand(config.batch_size, spec, current, batch, where)
  uncompiled = Compiled(None, _flops(lowered), current, batch, where, demand)
  try:
    return uncompiled._replace(program=lowered.compile())
  except jax.errors.JaxRuntimeError as error:
    refused = str(error).splitlines()[0]
    if "RESOURCE_EXHAUSTED" not in refused or "vmem" in refused:  # a kernel's, not the chip's
      raise
    raise DoesNotFitError(refused, uncompiled) from error


def _demand(
  batch_size: int,
  spec: batch_lib.BatchSpec,
  current: state.TrainState,
  batch: batch_lib.Batch,
  where: sharding.Sharded,
) -> memory_fit.Demand:
  tables, moments, unshared_tables, unshared_moments = 0, 0, 0, 0
  for stack in where.plan.stacks:
    stack_bytes = sum(table.num_bytes for table in stack.tables)
    leaves = current.row_state.rows[stack.name]
    on_a_chip = _bytes_on_a_chip(current.tables.values[stack.name])
    if on_a_chip * where.plan.num_devices <= 1.5 * stack_bytes:  # an equal part, and padding
      tables += stack_bytes
      without_padding = stack.num_rows / where.plan.num_rows(stack)
      moments += round(sum(map(_num_bytes, leaves)) * without_padding)
    else:
      unshared_tables += on_a_chip
      unshared_moments += sum(map(_bytes_on_a_chip, leaves))
  dense = (current.params, current.opt_state, current.row_state.globals)
  return memory_fit.Demand(
    batch_size=batch_size,
    tables=tables,
    moments=moments,
    unshared_tables=unshared_tables,
    unshared_moments=unshared_moments,
    dense=sum(_num_bytes(leaf) for leaf in jax.tree.leaves(dense)),
    batch=sum(_num_bytes(leaf) for leaf in jax.tree.leaves(batch)),
    rows=memory_fit.row_bytes(spec, batch_size),
  )


def _flops(lowered: Any) -> float | None:
  """Of the program before it is optimized, as not every compiler counts afterwards."""
  cost = lowered.cost_analysis() or {}
  return cost.get("flops")


def batch_shapes(
  batch_size: int, spec: batch_lib.BatchSpec, where: sharding.Sharded
) -> batch_lib.Batch:
  """Shapes of a batch in parts, row plans included, as the input pipeline makes it."""
  size = batch_size // where.plan.num_devices
  one = batch_lib.Batch(
    dense=np.zeros((size, spec.num_dense), np.float32),
    ids={feature.name: _no_ids(feature, size) for feature in spec.features},
    labels={name: np.zeros(size, np.float32) for name in spec.labels},
    weights=np.ones(size, np.float32),
  )
  one = row_plan.plan_rows(one, where.plan)
  count = where.plan.num_devices

  def shape(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
    shape = (count * max(1, leaf.shape[0] if leaf.ndim else 1), *leaf.shape[1:])
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=where.batches)

  return jax.tree.map(lambda leaf: shape(np.asarray(leaf)), one)


def _no_ids(feature: FeatureConfig, size: int) -> id_bags.IdBags:
  if feature.is_single_valued:
    return id_bags.IdBags.single(np.full(size, id_bags.PAD_ID, np.int32))
  capacity = size * feature.ids_per_bag
  weights: Any = [[]] * size if feature.weighted else None
  return id_bags.IdBags.from_lists([[]] * size, capacity=capacity, weights=weights)


def report(topology: str, found: Compiled) -> dict[str, Any]:
  """What the compiler says of a step, a chip."""
  chip = topologies.CHIPS[topologies.chip_of(topology)]
  program, where = found.program, found.where
  memory, cost = program.memory_analysis(), program.cost_analysis() or {}
  cost = cost[0] if isinstance(cost, list) else cost
  calls = hlo_collectives.collectives(program.as_text())
  once = hlo_collectives.bytes_by_kind(one for one in calls if not one.is_in_loop)
  needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  needed += memory.output_size_in_bytes - memory.alias_size_in_bytes
  flops = cost.get("flops") or found.flops
  fits = needed <= chip.memory_bytes
  amounts = {
    "products": (flops, chip.flops),
    "memory": (cost.get("bytes accessed"), chip.device.memory_bandwidth),
    "links": (sum(once.values()), chip.device.link_bandwidth),
  }
  # Not every compiler counts everything; what it does not count is not there.
  times = {name: amount / rate for name, (amount, rate) in amounts.items() if amount is not None}
  slowest = max(times, key=lambda name: times[name])
  described = {
    "topology": topology,
    "devices": where.plan.num_devices,
    "mesh": dict(where.plan.mesh),
    **_bytes_a_chip(found),
    "argument_bytes": memory.argument_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "needed_bytes": needed,
    "memory_bytes": chip.memory_bytes,
    "fits": fits,
    "flops": flops,
    "bytes_accessed": cost.get("bytes accessed"),
    "collective_bytes": once,
    "collective_bytes_extra_round": hlo_collectives.bytes_by_kind(
      one for one in calls if one.is_in_loop
    ),
    "roofline_ms": {name: round(seconds * 1e3, 3) for name, seconds in times.items()},
    "bound_by": slowest,
    "note": "the compiler's figures, a chip; roofline: published rates, nothing was run",
  }
  if fits:
    return described
  advice = memory_fit.would_fit(found.demand, topology, chip.memory_bytes)
  return {**described, "would_fit": advice}


def refusal(topology: str, error: DoesNotFitError) -> dict[str, Any]:
  """Says what the compiler had no room for, a chip, and what would fit.

  ``needed_bytes`` and ``memory_bytes`` are the compiler's, or None where it does not say.
  """
  plan = error.step.where.plan
  needed, available = memory_fit.parse_refusal(str(error))
  memory = available or topologies.CHIPS[topologies.chip_of(topology)].memory_bytes
  return {
    "topology": topology,
    "devices": plan.num_devices,
    "mesh": dict(plan.mesh),
    **_bytes_a_chip(error.step),
    "needed_bytes": needed,
    "memory_bytes": available,
    "fits": False,
    "would_fit": memory_fit.would_fit(error.step.demand, topology, memory),
    "note": f"the compiler's words: {error}; would_fit: an estimate, compile it to be sure",
  }


def _bytes_a_chip(found: Compiled) -> dict[str, int]:
  """What a chip's share would be without padding: of rows, of everything else, of the batch."""
  demand, chips = found.demand, found.where.plan.num_devices
  return {
    "table_bytes": round(demand.tables / chips) + demand.unshared_tables,
    "moment_bytes": round(demand.moments / chips) + demand.unshared_moments,
    "dense_bytes": demand.dense,
    "batch_bytes": demand.batch // chips,
  }


def _num_bytes(leaf: Any) -> int:
  return math.prod(leaf.shape) * leaf.dtype.itemsize


def _bytes_on_a_chip(leaf: Any) -> int:
  """Returns the bytes of one device's shard of an array, which has a sharding."""
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def main(argv: list[str]) -> int:
  """Runs the command line; the exit code."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; expected --flags and --set key=value")
  host.quiet_libraries()
  given, topology = flags.FLAGS, flags.FLAGS.topology
  try:
    config, spec = job(given.model)
    config = overrides.with_overrides(config, given.set)
    if given.batch_size:
      config = dataclasses.replace(config, batch_size=given.batch_size)
    mesh = topologies.mesh(topology, virtual_devices.mesh_sizes(config.sharding, is_elsewhere=True))
    began, say = time.perf_counter(), functools.partial(print, file=sys.stderr)
    result = report(topology, compile_step(config, spec, mesh, say))
  except DoesNotFitError as error:
    result = refusal(topology, error)
  except config_lib.ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  result |= {"compile_seconds": round(time.perf_counter() - began, 1)}
  print(json.dumps({"model": given.model, "batch_size": config.batch_size, **result}), flush=True)
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("topology", "v5e:16x16", "v5e:16x16, v5p:4x4x4, v6e:16x16, h100:8, ...")
  flags.DEFINE_string("model", "dlrm_mlperf", f"One of {', '.join(MODELS)}.")
  flags.DEFINE_integer("batch_size", 0, "Examples of a global batch; 0: the model's own.")
  flags.DEFINE_multi_string("set", [], "key=value for any field: optimizer.table=adam.")
  app.run(main)
