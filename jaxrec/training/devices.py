"""The devices that a run uses, and where its tables lie on them.

*Read next*: jaxrec/sharding/placement.py.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable

import jax
import numpy as np

from jaxrec import config as config_lib
from jaxrec import experiment as experiment_lib
from jaxrec import sharding
from jaxrec.features import batch as batch_lib
from jaxrec.sharding import layouts


def mesh_sizes(
  config: experiment_lib.ShardingConfig, *, is_elsewhere: bool = False
) -> dict[str, int] | None:
  """Axes and sizes of the mesh that a config asks for; None: one device.

  ``auto`` asks JAX what there is, which starts it; a mesh that is spelled out does not. For devices
  that are elsewhere it says nothing.

  Raises:
    ConfigError: it is not spelled ``data:2,model:4``.

  >>> mesh_sizes(experiment_lib.ShardingConfig(mesh="data:2,model:4"))
  {'data': 2, 'model': 4}
  """
  text = config.mesh.strip()
  if text == "none" or (text == "auto" and is_elsewhere):
    return None
  if text == "auto":
    is_cpu = jax.default_backend() == "cpu"  # where one process has one device, but for tests
    count = jax.process_count() if is_cpu else jax.device_count()
    return {"data": jax.device_count()} if count > 1 else None
  sizes = {}
  for part in text.split(","):
    name, colon, size = part.strip().partition(":")
    is_axis = name.isidentifier() and size.isdigit() and int(size) > 0 and name not in sizes
    config_lib.require(
      bool(colon) and is_axis,
      "sharding.mesh: expected axes and sizes such as data:2,model:4, or auto, or none, got "
      f"{text!r}",
    )
    sizes[name] = int(size)
  return sizes


def provide(config: experiment_lib.ShardingConfig, num_processes: int = 1) -> None:
  """Makes a CPU have as many devices as the mesh wants of this process; before JAX starts."""
  if config.mesh in ("auto", "none"):
    return
  wanted = math.prod((mesh_sizes(config) or {}).values())
  share = -(-wanted // num_processes)
  if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", share)
  # XLA's threads: with fewer than devices, those that wait for each other never meet.
  os.environ.setdefault("NPROC", str(max(2 * share, os.cpu_count() or 1)))


def placement(
  config: experiment_lib.ExperimentConfig, spec: batch_lib.BatchSpec
) -> sharding.Sharded | None:
  """Where the tables of ``spec`` lie; None: on one device.

  Raises:
    ConfigError: the devices are not there, a rule does not fit, or batches do not divide.
  """
  sizes = mesh_sizes(config.sharding)
  return None if sizes is None else placement_on(sharding.make_mesh(sizes), config, spec)


def placement_on(
  mesh: jax.sharding.Mesh, config: experiment_lib.ExperimentConfig, spec: batch_lib.BatchSpec
) -> sharding.Sharded:
  """The same on a mesh that is there, or only described; errors as ``placement``."""
  sizes = dict(mesh.shape)
  micro_batch = config.batch_size // config.accumulate_steps
  config_lib.require(
    micro_batch % mesh.size == 0,
    f"batch_size: {mesh.size} devices cannot share {micro_batch} examples evenly; choose a "
    f"multiple of {mesh.size * config.accumulate_steps}",
  )
  pairs = (rule.split("=", 1) for rule in config.sharding.rules)
  rules = tuple((pattern, layouts.parse(layout)) for pattern, layout in pairs)
  plan = sharding.make_plan(
    spec.features,
    sizes,
    rules,
    capacity=config.sharding.capacity,
    platform=mesh.devices.flat[0].platform,
    wire_dtype=config.sharding.wire_dtype,
  )
  return sharding.Sharded(mesh, plan)


def with_capacities(
  where: sharding.Sharded, batches: Iterable[batch_lib.Batch]
) -> sharding.Sharded:
  """``where``, with room in an exchange for what batches like these ask of a shard.

  The most that a device asked one shard for, six standard deviations of such a count, and a few. A
  plan by itself must expect that no id comes twice.

  Args:
    where: the tables.
    batches: some of the run's, of the parts of all devices, so that all processes see the same.
  """
  most = {sharded.stack.name: 0 for sharded in where.plan.sharded}
  for batch in batches:
    for name, rows in (batch.rows or {}).items():
      sharded = where.plan.of(name)
      for part, count in zip(rows.rows.reshape(len(rows.num_rows), -1), rows.num_rows, strict=True):
        asked = np.bincount(part[:count] // sharded.rows_per_shard, minlength=1)
        most[name] = max(most[name], int(asked.max()))
  wanted = {name: -(-(math.ceil(m + 6 * math.sqrt(m)) + 8) // 8) * 8 for name, m in most.items()}
  plan = dataclasses.replace(
    where.plan,
    sharded=tuple(
      dataclasses.replace(sharded, capacity=wanted[sharded.stack.name])
      for sharded in where.plan.sharded
    ),
  )
  return dataclasses.replace(where, plan=plan)
