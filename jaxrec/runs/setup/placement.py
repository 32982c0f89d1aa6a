"""Where the tables of a run lie on its devices.

*Read next*: jaxrec/sharding/sharded.py.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import socket
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxrec import config as config_lib
from jaxrec import sharding
from jaxrec.config import experiment as experiment_lib
from jaxrec.data import pipeline
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import id_counts
from jaxrec.runs.process import host, virtual_devices
from jaxrec.training import state

_STEPS_MEASURED = 4  # to plan by, and to choose the exchange's capacity


def placement(
  config: experiment_lib.ExperimentConfig,
  dataset: pipeline.Source,
  tx: state.Optimizers,
  say: Callable[[str], None] | None = None,
) -> sharding.Sharded | None:
  """Where the tables of ``dataset`` lie; None: on one device.

  What must be known of the data, by which the planner plans and the exchange has room, is counted
  on the first training batches.

  Args:
    config: of the run.
    dataset: to read batches of.
    tx: whose moments need memory too.
    say: is told of the plan, if the planner made it.

  Raises:
    ConfigError: the devices are not there, a rule does not fit, or batches do not divide.
  """
  sizes = virtual_devices.mesh_sizes(config.sharding)
  if sizes is None:
    return None
  mesh, spec = sharding.make_mesh(sizes), dataset.spec
  profiles = None
  if config.sharding.is_planned:
    counts = id_counts.count_ids(_first_batches(config, dataset), spec.features)
    profiles = {  # of a table that these batches do not look up, the planner assumes one
      feature.table.name: sharding.profile_of_counts(
        counts[feature.table.name].counts, feature.table.vocab_size
      )
      for feature in spec.features
      if counts[feature.table.name].lookups
    }
  where = placement_on(mesh, config, spec, tx, profiles, say)
  if config.sharding.capacity is None:
    batches = _first_batches(config, dataset, where)
    where = with_capacities(where, batches, config.accumulate_steps)
  return where


def placement_on(
  mesh: jax.sharding.Mesh,
  config: experiment_lib.ExperimentConfig,
  spec: batch_lib.BatchSpec,
  tx: state.Optimizers,
  profiles: Mapping[str, sharding.IdProfile] | None = None,
  say: Callable[[str], None] | None = None,
) -> sharding.Sharded:
  """The same on a mesh that is there, or only described; ``profiles`` of tables, for the planner.

  Raises:
    ConfigError: a rule does not fit, batches do not divide, or tables do not fit the devices.
  """
  micro_batch = config.batch_size // config.accumulate_steps
  config_lib.require(
    micro_batch % mesh.size == 0,
    f"batch_size: {mesh.size} devices cannot share {micro_batch} examples evenly; choose a "
    f"multiple of {mesh.size * config.accumulate_steps}",
  )
  device = mesh.devices.flat[0]
  if not config.sharding.is_planned:
    rules = (rule.partition("=") for rule in config.sharding.rules)
    plan = sharding.make_plan(
      spec.features,
      mesh.shape,
      [(pattern, layout) for pattern, _, layout in rules],
      capacity=config.sharding.capacity,
      platform=device.platform,
      wire_dtype=config.sharding.wire_dtype,
    )
    return sharding.Sharded(mesh, plan)
  found = sharding.find_plan(
    spec.features,
    mesh.shape,
    _numbers_of(device, mesh.size),
    batch_size=micro_batch,
    moments=sharding.moments_of(tx.rows, with_whole_rows=config.model.history.has_fingerprints),
    profiles=profiles,
    wire_dtype=config.sharding.wire_dtype,
  )
  if say is not None:
    say(str(found))
  plan = found.plan
  if config.sharding.capacity is not None:
    plan = plan.with_capacities({one.stack.name: config.sharding.capacity for one in plan.sharded})
  return sharding.Sharded(mesh, plan)


def _numbers_of(device: jax.Device, count: int) -> sharding.DeviceSpec:
  """Published ones; devices of a CPU share its memory."""
  found = sharding.of_kind(device.device_kind)
  if device.platform != "cpu":
    return found
  # All processes must plan alike; an int32 holds MiB, and those of one machine share its memory.
  machine = zlib.crc32(socket.gethostname().encode()) >> 1
  mine = np.array([machine, host.memory_bytes() >> 20], np.int32)
  mebibytes = dict(multihost_utils.process_allgather(mine).reshape(-1, 2).tolist())
  return dataclasses.replace(found, memory_bytes=(sum(mebibytes.values()) << 20) // count)


def _first_batches(
  config: experiment_lib.ExperimentConfig,
  dataset: pipeline.Source,
  where: sharding.Sharded | None = None,
) -> Iterator[batch_lib.Batch]:
  """The micro-batches of a few steps; for a placement, with the parts of all devices, also of other
  processes'.
  """
  options = pipeline.InputOptions(num_threads=1)
  if where is not None:
    count = where.plan.num_devices
    options = dataclasses.replace(options, parts=tuple(range(count)), num_parts=count)
  return pipeline.batches(
    dataset,
    config.batch_size // config.accumulate_steps,
    num_steps=_STEPS_MEASURED * config.accumulate_steps,
    seed=config.seed,
    plan=None if where is None else where.plan,
    options=options,
  )


def with_capacities(
  where: sharding.Sharded, batches: Iterable[batch_lib.Batch], accumulate_steps: int = 1
) -> sharding.Sharded:
  """``where``, with room in an exchange for what batches like these ask of a shard.

  The most that a device asked one shard for, six standard deviations of such a count, and a few. A
  plan by itself must expect that no id comes twice.

  Args:
    where: the tables.
    batches: some of the run's, of the parts of all devices, so that all processes see the same.
    accumulate_steps: how many of them a step sums the gradients of before it sends them.
  """
  asked: dict[str, int] = collections.defaultdict(int)
  sent: dict[str, int] = collections.defaultdict(int)
  found = iter(batches)
  while step := list(itertools.islice(found, accumulate_steps)):
    for sharded in where.plan.sharded:
      name = sharded.stack.name
      micro = [_rows_by_part(batch.rows[name]) for batch in step if batch.rows is not None]
      for parts in zip(*micro, strict=True):
        asked[name] = max(asked[name], *(_most_of_a_shard(sharded, rows) for rows in parts))
        sent[name] = max(sent[name], _most_of_a_shard(sharded, np.unique(np.concatenate(parts))))
  ask, send = ({n: _with_room(most) for n, most in counts.items()} for counts in (asked, sent))
  plan = where.plan.with_capacities(ask, send if accumulate_steps > 1 else None)
  return dataclasses.replace(where, plan=plan)


def _rows_by_part(rows: batch_lib.RowPlan) -> list[np.ndarray]:
  """Row numbers that each device's part of a batch touches."""
  parts = rows.rows.reshape(len(rows.num_rows), -1)
  return [part[:count] for part, count in zip(parts, rows.num_rows, strict=True)]


def _most_of_a_shard(sharded: sharding.ShardedStack, rows: np.ndarray) -> int:
  return int(np.bincount(rows // sharded.rows_per_shard, minlength=1).max())


def _with_room(most: int) -> int:
  return -(-(math.ceil(most + 6 * math.sqrt(most)) + 8) // 8) * 8
