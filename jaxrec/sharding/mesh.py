"""Meshes of devices.

*Read next*: jaxrec/sharding/layouts.py.
"""

from __future__ import annotations

import math
import numbers
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
    ConfigError: other devices are there than the sizes ask for, or a size is none.
  """
  for name, size in sizes.items():
    config.require(
      isinstance(size, numbers.Integral) and (size > 0 or size == -1),
      f"mesh: axis {name!r} must have a size of at least 1, or -1 for all that are left, got "
      f"{size!r}",
    )
  open_axes = [name for name, size in sizes.items() if size == -1]
  config.require(
    len(open_axes) < 2,
    f"mesh: {dict(sizes)} leaves the sizes of {' and '.join(map(repr, open_axes))} open; only one "
    "may be -1",
  )
  found = list(jax.devices() if devices is None else devices)
  known = math.prod(size for size in sizes.values() if size != -1)
  config.require(
    not open_axes or len(found) % known == 0,
    f"mesh: {dict(sizes)}: {known} does not divide the {len(found)} devices; choose sizes whose "
    "product does",
  )
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
