"""Why tables do not fit, and what would make them fit: only ways that were tried and do.

*Read next*: jaxrec/sharding/planner/planner.py.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxrec import config
from jaxrec.sharding import layouts
from jaxrec.sharding.planner import cost, problem, report, search

_MOST_DEVICES = 2**16


def why_not(asked: problem.Problem, found: search.PlanCost, *, allow_host: bool) -> str:
  """The message for a problem whose best plan, ``found``, is still too large."""
  held = sum(stack.table_bytes + stack.buffer_bytes for _, stack in found.stacks)
  hosted = sum(stack.host_bytes for _, stack in found.stacks)
  device, gib = asked.device, report.gib
  problems = []
  if held > asked.available_bytes:
    problems.append(
      f"the layout that needs least holds {gib(held)} a device, and {gib(asked.available_bytes)} "
      f"are there ({gib(device.memory_bytes)} less reserve_bytes={device.reserved}): "
      f"{held - asked.available_bytes:,} bytes too many"
    )
  if hosted > device.host_memory_bytes:
    problems.append(
      f"the hosts would keep {gib(hosted)} a device, and {gib(device.host_memory_bytes)} are there "
      f"(host_memory_bytes): {hosted - device.host_memory_bytes:,} bytes too many"
    )
  if any(stack.excess_rows for _, stack in found.stacks):
    problems.append("a stack would have more rows than an int32 counts")
  ways = [*_ways(asked, allow_host=allow_host)] or [
    "nothing tried here alone: combine more devices, narrower tables and fewer rows"
  ]
  return (
    f"planner: {len({f.table for f in asked.features})} tables do not fit on {asked.num_devices} "
    f"{device.name} ({dict(asked.mesh)}): {', and '.join(problems)}. What would do: "
    f"{'; or '.join(ways)}"
  )


def _ways(asked: problem.Problem, *, allow_host: bool) -> Iterator[str]:
  """Each alone makes a plan possible."""
  mesh = _larger_mesh(asked)
  if mesh is not None:
    yield f"{layouts.size(mesh, tuple(mesh))} devices, {mesh}"
  bfloat16 = _with_tables(asked, lambda table: dataclasses.replace(table, dtype="bfloat16"))
  rowwise = dataclasses.replace(asked, moments=_rowwise(asked.moments))
  both = dataclasses.replace(bfloat16, moments=rowwise.moments)
  if fits(bfloat16):
    yield "dtype='bfloat16' for the tables"
  if fits(rowwise):
    yield "tables.rowwise_adagrad, which keeps 4 bytes a row"
  if not fits(bfloat16) and not fits(rowwise) and fits(both):
    yield "dtype='bfloat16' together with tables.rowwise_adagrad"
  if not allow_host:
    _, found = asked.solve(is_host_allowed=True)
    if not found.cost.excess_bytes:
      demands = asked.evaluator().demands
      names = [d.table.name for d, c in zip(demands, found.choices, strict=True) if c is None]
      some = ", ".join(names[:5]) + (f", ... ({len(names)} tables)" if len(names) > 5 else "")
      yield f"allow_host=True, which leaves {some} with the host"
  rows = _largest(lambda rows: fits(_capped(asked, rows)), max(_vocab_sizes(asked)))
  if rows:
    yield f"at most {rows:,} rows a table" + (", and profiles of these" if asked.profiles else "")


def fits(asked: problem.Problem) -> bool:
  """Whether a simple plan fits; all tables alike, so it is quick and may be too strict."""
  evaluate = asked.evaluator()
  options = [search.spread_evenly(demand, asked.mesh) for demand in evaluate.demands]
  return any(
    not evaluate({i: way if way in o else o[0] for i, o in enumerate(options)}).excess_bytes
    for way in dict.fromkeys(layout for some in options for layout in some)
  )


def _larger_mesh(asked: problem.Problem) -> dict[str, int] | None:
  """With the fewest devices along its first axis that suffice and share the batch evenly."""
  axis, size = next(iter(asked.mesh.items()))
  others = asked.num_devices // size
  most = min(asked.batch_size, _MOST_DEVICES) // others
  larger = [n for n in range(size + 1, most + 1) if asked.batch_size % (n * others) == 0]
  meshes = [{**asked.mesh, axis: n} for n in larger]
  # Where more devices do not always hold more, what is found still fits: it was tried.
  found = bisect.bisect_left(
    meshes, True, key=lambda mesh: fits(dataclasses.replace(asked, mesh=mesh))
  )
  return meshes[found] if found < len(meshes) else None


def _rowwise(moments: Any) -> Any:
  """Row-wise Adagrad's in their place, with whole rows where they are asked for."""
  if isinstance(moments, Mapping):
    return {label: _rowwise(one) for label, one in moments.items()}
  return dataclasses.replace(cost.ROWWISE_ADAGRAD, is_by_column=moments.is_by_column)


def _vocab_sizes(asked: problem.Problem) -> list[int]:
  return [feature.table.vocab_size for feature in asked.features]


def _capped(asked: problem.Problem, rows: int) -> problem.Problem:
  profiles = {name: profile.of_most_popular(rows) for name, profile in asked.profiles.items()}
  return _with_tables(
    dataclasses.replace(asked, profiles=profiles),
    lambda table: dataclasses.replace(table, vocab_size=min(table.vocab_size, rows)),
  )


def _with_tables(
  asked: problem.Problem, change: Callable[[config.TableConfig], config.TableConfig]
) -> problem.Problem:
  features = tuple(
    dataclasses.replace(feature, table=change(feature.table)) for feature in asked.features
  )
  return dataclasses.replace(asked, features=features)


def _largest(is_good: Callable[[int], bool], above: int) -> int:
  """The largest number below ``above`` that is good, if all below it are; 0: none."""
  low, high = 0, above
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if is_good(middle) else (low, middle)
  return low
