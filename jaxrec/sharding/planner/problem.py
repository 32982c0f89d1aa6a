"""What a plan is asked for, as a value that can be varied: more devices, narrower tables, ...

*Read next*: jaxrec/sharding/planner/planner.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxrec import config
from jaxrec.sharding import layouts
from jaxrec.sharding.planner import cost, device_spec, id_profile, search


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
  """What ``find_plan`` was asked; its arguments, see there."""

  features: tuple[config.FeatureConfig, ...]
  mesh: Mapping[str, int]
  device: device_spec.DeviceSpec
  batch_size: int
  moments: cost.Moments | Mapping[str | None, cost.Moments]
  profiles: Mapping[str, id_profile.IdProfile]
  wire_dtype: str | None = None

  @property
  def num_devices(self) -> int:
    return layouts.size(self.mesh, tuple(self.mesh))

  @property
  def available_bytes(self) -> int:
    return self.device.memory_bytes - self.device.reserved

  def evaluator(self) -> search.Evaluator:
    demands = cost.demands_of(
      self.features,
      batch_size=self.batch_size,
      num_devices=self.num_devices,
      moments=self.moments,
      profiles=self.profiles,
      wire_dtype=self.wire_dtype,
    )
    return search.Evaluator(
      device_spec.Links(self.mesh, self.device), demands, self.available_bytes
    )

  def solve(self, *, is_host_allowed: bool = False) -> tuple[search.Evaluator, search.Found]:
    evaluate = self.evaluator()
    options = search.options_of(evaluate.demands, self.mesh, is_host_allowed=is_host_allowed)
    return evaluate, search.best(evaluate, options)


def check(problem: Problem) -> None:
  """Raises ConfigError where the arguments make no sense."""
  config.check_features(problem.features)
  config.require(bool(problem.features), "planner: there are no features, so no tables to place")
  config.require(
    bool(problem.mesh) and min(problem.mesh.values()) > 0,
    f"planner: every mesh axis must have a size of at least 1, got {dict(problem.mesh)}",
  )
  count = problem.num_devices
  config.require(
    problem.batch_size > 0 and problem.batch_size % count == 0,
    f"planner: batch_size must be a multiple of the {count} devices, got {problem.batch_size}",
  )
  config.require(
    problem.wire_dtype in config.WIRE_DTYPES,
    f"planner: wire_dtype must be one of {config.WIRE_DTYPES}, got {problem.wire_dtype!r}",
  )
  known = {feature.table.name: feature.table for feature in problem.features}
  for name, profile in problem.profiles.items():
    config.require(
      name in known, f"planner: a profile of no table {name!r}; {config.did_you_mean(name, known)}"
    )
    num_rows, wanted = int(profile.num_rows.sum()), known[name].vocab_size
    config.require(
      num_rows == wanted,
      f"planner: table {name!r} has {wanted:,} rows, and its profile is of {num_rows:,}; make the "
      f"profile with vocab_size={wanted}",
    )
