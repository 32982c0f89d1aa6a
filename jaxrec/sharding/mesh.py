"""Meshes of devices.

*Read next*: jaxrec/sharding/layouts.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxrec import config


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with axes of these names and sizes, the slowest links first (``dcn`` before ``data``).

  Args:
    sizes: ``{"data": 2, "model": 4}``; one of them may be -1, as many as are left.
    devices: to use; None: all that there are, or the first of them if all are not needed and this
      is the only process.

  Raises:
    ConfigError: other devices are there than the sizes ask for.
  """
  found = list(jax.devices() if devices is None else devices)
  known = math.prod(size for size in sizes.values() if size != -1)
  sizes = {name: len(found) // known if size == -1 else size for name, size in sizes.items()}
  wanted = math.prod(sizes.values())
  config.require(
    0 < wanted <= len(found),
    f"mesh: {dict(sizes)} needs {wanted} devices and there are {len(found)}; on a CPU set "
    f"jax_num_cpu_devices={wanted} (or XLA_FLAGS=--xla_force_host_platform_device_count={wanted}) "
    "before JAX starts",
  )
  config.require(
    wanted == len(found) or jax.process_count() == 1,
    f"mesh: {dict(sizes)} has {wanted} devices, and the {jax.process_count()} processes have "
    f"{len(found)}; use all of them, or start fewer processes",
  )
  types = (AxisType.Auto,) * len(sizes)
  if wanted < len(found) or devices is not None:
    array = np.array(found[:wanted]).reshape(tuple(sizes.values()))
    return Mesh(array, tuple(sizes), axis_types=types)
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types)
