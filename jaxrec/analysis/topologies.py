"""Devices that are not here: their compilers, and meshes to compile for.

The compilers of TPUs and GPUs run without the chips (extra ``aot``). A mesh of such devices can be
compiled for and nothing else.

*Source*: ``jax.experimental.topologies``; design, section 6.
*Read next*: jaxrec/aot.py.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from jaxrec import config as config_lib
from jaxrec import sharding


class Chip(NamedTuple):
  """What a chip can do at most, as published.

  Attributes:
    device: its bandwidths, as the planner has them.
    memory_bytes: as the compiler counts them, where it counts in GiB.
    flops: a second, of bfloat16 products.
    shapes: Of the slices that are let, and of hosts, the smallest first.
  """

  device: sharding.DeviceSpec
  memory_bytes: int
  flops: float
  shapes: tuple[str, ...]


_SQUARE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = (
  "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"
)  # fmt: skip


# FLOP/s: Google Cloud's pages on v5e, v5p and v6e; NVIDIA's data sheet of the H100 SXM.
CHIPS: Mapping[str, Chip] = {
  "v5e": Chip(sharding.V5E, 16 << 30, 197e12, _SQUARE),
  "v5p": Chip(sharding.V5P, 95 << 30, 459e12, _CUBE),
  "v6e": Chip(sharding.V6E, 32 << 30, 918e12, _SQUARE),
  "h100": Chip(sharding.H100, 80 * 10**9, 989e12, ("1", "2", "4", "8", "16", "32", "64")),
}

_TPU_ENVIRONMENT = {  # what libtpu asks a TPU's host otherwise
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# What XLA's compiler wants to know of an H100.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def is_installed(topology: str) -> bool:
  """Whether the compiler that a topology needs is here."""
  package = "jax_cuda12_plugin" if chip_of(topology) == "h100" else "libtpu"
  return importlib.util.find_spec(package) is not None


def chip_of(topology: str) -> str:
  """``v5e`` of ``v5e:16x16``.

  Raises:
    ConfigError: it is not spelled so, or of a chip that is not known.
  """
  name, colon, shape = topology.partition(":")
  config_lib.require(
    name in CHIPS and bool(colon) and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) is not None,
    f"--topology={topology}: expected a chip and how many of them, such as v5e:16x16, v5p:4x4x4, "
    f"v6e:16x16 or h100:8; known: {', '.join(CHIPS)}",
  )
  return name


def num_chips(topology: str) -> int:
  """Returns how many chips a topology has: 8 of ``v5e:2x4``.

  Raises:
    ConfigError: as ``chip_of``.
  """
  chip_of(topology)
  return math.prod(map(int, topology.partition(":")[2].split("x")))


def devices(topology: str) -> list[Any]:
  """The devices of ``v5e:16x16`` or ``h100:8``, to compile for.

  Raises:
    ConfigError: no such topology, or its compiler is not installed.
  """
  chip, shape = chip_of(topology), topology.partition(":")[2]
  config_lib.require(
    is_installed(topology),
    f"--topology={topology}: its compiler is not installed; pip install 'jaxrec[aot]'",
  )
  if chip == "h100":
    return topologies.get_topology_desc(
      platform="cuda", topology_name="1x1x1", topology=f"1x1x{shape}", target_config=_H100
    ).devices
  for name, value in _TPU_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  bounds = {"chips_per_host_bounds": [1, 1, 1]} if shape == "1x1" else {}
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds).devices
  except jax.errors.JaxRuntimeError as error:
    first_line = str(error).splitlines()[0]
    raise config_lib.ConfigError(f"--topology={topology}: {first_line}") from error


def mesh(topology: str, sizes: Mapping[str, int] | None = None) -> Mesh:
  """A mesh of all its devices; ``sizes`` of the axes, None: one axis ``data``."""
  found = np.array(devices(topology))
  sizes = {"data": found.size} if sizes is None else sizes
  wanted = tuple(sizes.values())
  config_lib.require(
    int(np.prod(wanted)) == found.size,
    f"sharding.mesh: {dict(sizes)} does not use the {found.size} devices of {topology}",
  )
  types = (jax.sharding.AxisType.Auto,) * len(wanted)
  return Mesh(found.reshape(wanted), tuple(sizes), axis_types=types)
