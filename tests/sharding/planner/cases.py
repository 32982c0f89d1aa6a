"""Models of published size, and small random ones, to plan for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrec import sharding
from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.config.presets import criteo
from jaxrec.sharding.planner import problem, search

MOMENTS = {"sgd": sharding.SGD, "rowwise": sharding.ROWWISE_ADAGRAD, "adam": sharding.ADAM}
SMALL_DEVICE = sharding.DeviceSpec(
  "small", 1 << 20, 1e9, 1e8, 2e7, 5e7, 1e-5, 0, 32, host_memory_bytes=10**9, reserve_bytes=0
)
SMALL_MESHES = ({"data": 2}, {"data": 4}, {"data": 2, "model": 2}, {"dcn": 2, "data": 2})


def tables(*rows: int, dim: int = 32, **options: Any) -> list[FeatureConfig]:
  """A feature each of tables with so many rows."""
  return [
    FeatureConfig(f"f{i}", TableConfig(f"t{i}", n, dim), **options) for i, n in enumerate(rows)
  ]


def published(config_name: str, **changes: Any) -> tuple[FeatureConfig, ...]:
  """The features of a shipped recipe."""
  run = criteo.MAKERS[config_name]()
  found = [
    FeatureConfig(f"C{i}", TableConfig(f"C{i}", rows, run.model.embedding_dim, **changes), "sum", n)
    for i, (rows, n) in enumerate(
      zip(run.data.vocab_sizes, run.data.ids_per_bag, strict=True), start=1
    )
  ]
  return tuple(found)


GOLDEN: Mapping[str, dict[str, Any]] = {
  "mlperf_dcnv2_8_h100": dict(
    features=published("mlperf_dcnv2"),
    mesh={"data": 8},
    device=sharding.H100,
    batch_size=65_536,
    moments=sharding.ADAGRAD,
  ),
  "mlperf_dcnv2_256_v5e": dict(
    features=published("mlperf_dcnv2"),
    mesh={"data": 16, "model": 16},
    device=sharding.V5E,
    batch_size=65_536,
    moments=sharding.ADAGRAD,
  ),
  "kaggle_8_v5e": dict(
    features=published("kaggle"),
    mesh={"data": 2, "model": 4},
    device=sharding.V5E,
    batch_size=16_384,
    moments=sharding.ROWWISE_ADAGRAD,
  ),
  "mlperf_v1_2_hosts_of_8_h100": dict(
    features=published("mlperf_v1"),
    mesh={"dcn": 2, "data": 8},
    device=sharding.H100,
    batch_size=65_536,
    moments=sharding.SGD,
  ),
}


def random_problem(seed: int) -> problem.Problem:
  """Up to four tables on up to four devices, whose memory may be scarce or too small."""
  rng = np.random.default_rng(seed)
  mesh = SMALL_MESHES[rng.integers(len(SMALL_MESHES))]
  most = {2: 4, 4: 3 if seed % 4 else 2}[int(np.prod(list(mesh.values())))]
  dims = rng.choice([4, 8, 32], size=int(rng.integers(1, most + 1)))
  if rng.random() < 0.6:
    dims[:] = dims[0]
  features = tuple(
    FeatureConfig(
      f"f{i}",
      TableConfig(
        f"t{i}", int(10 ** rng.uniform(0, 4)), int(dim), rng.choice(["float32", "bfloat16"])
      ),
      ids_per_bag=int(rng.integers(1, 9)),
    )
    for i, dim in enumerate(dims)
  )
  moments = MOMENTS[rng.choice(list(MOMENTS))]
  held = sum(
    f.table.num_bytes + f.table.vocab_size * moments.num_bytes(f.table.embedding_dim)
    for f in features
  )
  batch_size = 8 * int(2 ** rng.integers(0, 7))
  buffers = sum(16 * batch_size * f.ids_per_bag * f.table.embedding_dim for f in features)
  memory = int((held + buffers) * rng.uniform(0.2, 2.5)) + 100
  return problem.Problem(
    features=features,
    mesh=mesh,
    device=dataclasses.replace(
      SMALL_DEVICE,
      memory_bytes=memory,
      collective_latency=float(10 ** rng.uniform(-7, -4)),
      torus_axes=int(rng.integers(0, 3)),
    ),
    batch_size=batch_size,
    moments=moments,
    profiles={
      f.table.name: sharding.zipf_profile(f.table.vocab_size, float(rng.uniform(0, 1.5)))
      for f in features
    },
  )


def cheapest(asked: problem.Problem) -> search.PlanCost:
  """Of all combinations of candidates, one by one."""
  evaluate = asked.evaluator()
  options = [search.candidates(demand, asked.mesh) for demand in evaluate.demands]
  plans = (evaluate(dict(enumerate(choices))) for choices in itertools.product(*options))
  return min(plans, key=lambda found: found.objective)


def arguments(asked: problem.Problem) -> dict[str, Any]:
  """Of ``find_plan``, for this problem."""
  return {field.name: getattr(asked, field.name) for field in dataclasses.fields(asked)}
