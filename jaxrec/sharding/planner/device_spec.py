"""What a device can hold and move: the numbers a plan is made from.

They are published ones, so a plan is made on a laptop; none of them is measured here. A link's
bandwidth is what one device sends while it receives as much. Times of collectives are those of the
usual algorithms, without contention:

* ``all_to_all`` of X bytes a device among G: X (G - 1) / G cross links. In a torus a byte passes
  g / 4 links of a ring of g, so that 256 chips of v5e exchange at 25 GB/s each, as their published
  bisection of 1.6 TB/s says.
* ``all_reduce`` of X bytes: 2 X (G - 1) / G. ``all_gather`` of X bytes a device: X (G - 1).

Between hosts, along the mesh axis ``dcn``, the slower ``dcn_bandwidth`` counts, and collectives go
in two steps: an ``all_reduce`` sends there only the share of it that each device of a host sums.

*Source*: docs.cloud.google.com/tpu (v5e, v5p, v6e), NVIDIA's data sheets of the H100 and H200 SXM
and of DGX H100 and H200.
*Read next*: jaxrec/sharding/planner/cost.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from jaxrec import config

DCN = "dcn"  # the mesh axis whose devices are on different hosts or slices


@dataclasses.dataclass(frozen=True)
class DeviceSpec:
  """One device of a mesh.

  Attributes:
    name: for reports.
    memory_bytes: its own memory.
    memory_bandwidth: of that, bytes/s.
    link_bandwidth: bytes/s to devices along all axes but ``dcn``, one direction, all links.
    dcn_bandwidth: bytes/s to other hosts.
    host_bandwidth: bytes/s to its host's memory.
    collective_latency: seconds a collective takes that moves nothing.
    torus_axes: how many axes the links make a torus of; 0: a switch.
    access_bytes: the least that one access to memory moves.
    platform: JAX's name for such devices, by which rows lie in their memory.
    host_memory_bytes: the device's share of its host's memory, for tables that stay there; 0: none
      can.
    reserve_bytes: of ``memory_bytes``, for all that is no table; None: a tenth.

  Raises:
    ConfigError: a number that cannot be.
  """

  name: str
  memory_bytes: int
  memory_bandwidth: float
  link_bandwidth: float
  dcn_bandwidth: float
  host_bandwidth: float
  collective_latency: float
  torus_axes: int = 0
  access_bytes: int = 32
  platform: str = "gpu"
  host_memory_bytes: int = 0
  reserve_bytes: int | None = None

  def __post_init__(self) -> None:
    where = f"DeviceSpec {self.name!r}"
    for field in dataclasses.fields(self):
      if field.name in _NO_AMOUNTS:
        continue
      value, least = getattr(self, field.name), 0 if field.name in _MAY_BE_ZERO else None
      config.require(
        math.isfinite(value) and (value > 0 or value == least),
        f"{where}: {field.name} must be a finite number above 0, got {value}",
      )
    config.require(
      0 <= self.reserved < self.memory_bytes,
      f"{where}: reserve_bytes must lie in [0, {self.memory_bytes}), the device's memory, got "
      f"{self.reserve_bytes}",
    )

  @property
  def reserved(self) -> int:
    """Bytes of its memory that tables and their exchange must leave."""
    return self.memory_bytes // 10 if self.reserve_bytes is None else self.reserve_bytes


_NO_AMOUNTS = ("name", "platform", "reserve_bytes")
_MAY_BE_ZERO = ("torus_axes", "collective_latency", "host_memory_bytes")

# Memory in decimal GB as sold, so a plan leaves a little. Latencies, and host bandwidths of TPUs
# (16 lanes of PCIe), are assumptions: nobody publishes them. Memory of hosts: a v5e machine of 8
# chips has 384 GB, a v6e host of 8 chips 1,536 GiB, DGX H100 and H200 2 TB for 8 GPUs; a v5p host
# of 4 chips is assumed to have 448 GB.

V5E = DeviceSpec("v5e", 16 * 10**9, 819e9, 200e9, 3.1e9, 16e9, 10e-6, 2, 512, "tpu", 48 * 10**9)
V5P = DeviceSpec("v5p", 95 * 10**9, 2765e9, 600e9, 6.25e9, 16e9, 10e-6, 3, 512, "tpu", 112 * 10**9)
V6E = DeviceSpec("v6e", 32 * 10**9, 1638e9, 400e9, 12.5e9, 32e9, 10e-6, 2, 512, "tpu", 192 << 30)
# NVLink: 900 GB/s both directions together. Hosts: one 400 Gb/s adapter a GPU.
_DGX = 2 * 10**12 // 8
H100 = DeviceSpec("h100", 80 * 10**9, 3350e9, 450e9, 50e9, 64e9, 20e-6, host_memory_bytes=_DGX)
H200 = DeviceSpec("h200", 141 * 10**9, 4800e9, 450e9, 50e9, 64e9, 20e-6, host_memory_bytes=_DGX)
# One of eight virtual devices of a small machine: a guess, to try plans out.
CPU = DeviceSpec("cpu", 2 * 10**9, 5e9, 2e9, 1e9, 5e9, 100e-6, 0, 64, "cpu", 2 * 10**9)

# How JAX calls them (``Device.device_kind``), in small letters; the first that begins so.
_KINDS = {
  "tpu v5 lite": V5E,
  "tpu v5e": V5E,
  "tpu v5": V5P,
  "tpu v6": V6E,
  "nvidia h100": H100,
  "nvidia h200": H200,
  "cpu": CPU,
}


def of_kind(device_kind: str) -> DeviceSpec:
  """The numbers of a device by JAX's name for it.

  Raises:
    ConfigError: they are not known here.

  >>> of_kind("TPU v5 lite").name
  'v5e'
  """
  kind = device_kind.lower()
  found = next((spec for start, spec in _KINDS.items() if kind.startswith(start)), None)
  if found is None:
    raise config.ConfigError(
      f"planner: no numbers of a device {device_kind!r} are known, only of {', '.join(_KINDS)}; "
      "give rules, or call sharding.find_plan with a sharding.DeviceSpec of its data sheet"
    )
  return found


@dataclasses.dataclass(frozen=True)
class Links:
  """The links of ``device`` in a mesh; all times in seconds, of what each device moves."""

  mesh: Mapping[str, int]
  device: DeviceSpec

  def all_to_all(self, num_bytes: float, axes: tuple[str, ...]) -> float:
    """``num_bytes``: all that a device sends, its part to itself included."""
    hosts, local, side = self._group(axes)
    fast = num_bytes / hosts * (local - 1) / local
    if self.device.torus_axes:
      fast *= max(side / 4, 0.5) * self.device.torus_axes  # the links of the longest ring
    slow = num_bytes * (hosts - 1) / hosts
    return fast / self.device.link_bandwidth + slow / self.device.dcn_bandwidth

  def all_reduce(self, num_bytes: float, axes: tuple[str, ...]) -> float:
    """``num_bytes``: of the array that all devices sum."""
    hosts, local, _ = self._group(axes)
    fast = 2 * num_bytes * (local - 1) / local
    slow = 2 * num_bytes / local * (hosts - 1) / hosts
    return fast / self._bandwidth(axes) + slow / self.device.dcn_bandwidth

  def all_gather(self, num_bytes: float, axes: tuple[str, ...]) -> float:
    """``num_bytes``: of the part that each device has."""
    hosts, local, _ = self._group(axes)
    fast = num_bytes * hosts * (local - 1)
    slow = num_bytes * (hosts - 1)
    return fast / self._bandwidth(axes) + slow / self.device.dcn_bandwidth

  def _group(self, axes: tuple[str, ...]) -> tuple[int, int, float]:
    """Hosts, devices of one host, and the longest ring among these."""
    hosts = self.mesh[DCN] if DCN in axes else 1
    sides = [self.mesh[axis] for axis in self._fast(axes)]
    local = math.prod(sides)
    if self._is_whole(axes):
      return hosts, local, local ** (1 / max(self.device.torus_axes, 1))
    return hosts, local, max(sides, default=1)

  def _bandwidth(self, axes: tuple[str, ...]) -> float:
    """Bytes/s of the links along the axes that are not between hosts."""
    most = self.device.torus_axes
    if not most or self._is_whole(axes):
      return self.device.link_bandwidth
    return self.device.link_bandwidth * min(max(len(self._fast(axes)), 1), most) / most

  def _is_whole(self, axes: tuple[str, ...]) -> bool:
    """Whether all devices of a host take part, by whatever names: the torus is then a cube."""
    return self._fast(axes) == self._fast(tuple(self.mesh))

  def _fast(self, axes: tuple[str, ...]) -> list[str]:
    return [axis for axis in self.mesh if axis in axes and axis != DCN and self.mesh[axis] > 1]
