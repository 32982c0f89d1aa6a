"""Makes as many devices as the mesh of a config asks for.

Read next: jaxrec/runs/setup/placement.py, which lays the tables out on them.
"""

from __future__ import annotations

import math
import os

import jax

from jaxrec import config as config_lib
from jaxrec.config import experiment as experiment_lib


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
