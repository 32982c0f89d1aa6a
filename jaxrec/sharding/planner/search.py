"""The cheapest layouts that fit: exactly where tables are few, by a bounded search where many.

What is compared, in this order: bytes above a device's memory, then seconds a step. A table's
choices are few, each for a reason:

* ``replicated`` and ``row_wise``, the two ends: no exchange, or the least memory;
* ``row_wise`` along the last axes of the mesh, with copies along the first (a 2D grid): fewer
  partners, each asked for more, and with ``dcn`` first no exchange between hosts;
* ``column_wise`` along all axes but ``dcn``, where the row optimizer allows it: balanced without
  padding, at the price of every row number going everywhere;
* ``table_row_wise`` on each of the first axis's groups of neighbours, such as hosts, and
  ``table_wise`` on each device: they share the stack, so the collectives, of ``row_wise``.

Rows over some axes and columns over others, or one device of a grid's, are not tried: the exchange
pads every pair of devices to the busiest, so they differ little from those that are.

*Source*: branch and bound (Land and Doig 1960); greedy starts and local search, in a fixed order
and without a clock, so that the same question has the same answer on every machine.
*Read next*: jaxrec/sharding/planner/planner.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from jaxrec import config
from jaxrec.sharding import layouts
from jaxrec.sharding import plan as plan_lib
from jaxrec.sharding.planner import cost, device_spec

Choice = layouts.Layout | None  # None: in the host's memory
Choices = Mapping[int, Choice]  # by the number of a table

EXACT_PLANS = 20_000  # at most so many combinations are solved exactly
_TABLE_EVALUATIONS = 400_000  # the bounded search stops after so many, plans times tables
_BLOCKS = 64
_STARTS = 8
_DEVICES_TRIED = 8  # of those that could have a whole table, the emptiest


@dataclasses.dataclass(frozen=True)
class PlanCost:
  """Of one way to lay out tables.

  Attributes:
    stacks: numbers of the tables of each stack, and its cost; the host's last.
    excess_bytes: above the memory of a device, and above its share of its host's.
  """

  stacks: tuple[tuple[tuple[int, ...], cost.StackCost], ...]
  excess_bytes: int

  @property
  def seconds(self) -> float:
    return sum(found.seconds for _, found in self.stacks)

  @property
  def objective(self) -> tuple[int, float]:
    """What is minimized, in lexicographic order."""
    return self.excess_bytes, self.seconds


class Evaluator:
  """Costs of plans of ``demands``; remembers those of stacks, which recur.

  Attributes:
    links: of the mesh.
    demands: of the tables, which are named by their number here.
    available_bytes: of a device, for tables and the exchange.
    num_plans: evaluated so far.
  """

  def __init__(
    self, links: device_spec.Links, demands: Sequence[cost.Demand], available_bytes: int
  ):
    self.links = links
    self.demands = tuple(demands)
    self.available_bytes = available_bytes
    self.num_plans = 0
    self._stacks: dict[tuple, cost.StackCost] = {}
    self._kinds: dict[layouts.Layout, str] = {}

  def __call__(self, choices: Choices) -> PlanCost:
    """Of some or all tables. More tables never cost less."""
    self.num_plans += 1
    found = [(members, self._stack(members, choices)) for members in self._groups(choices)]
    held = sum(stack.table_bytes + stack.buffer_bytes for _, stack in found)
    hosted = sum(stack.host_bytes for _, stack in found)
    excess = max(0, held - self.available_bytes)
    excess += max(0, hosted - self.links.device.host_memory_bytes)
    # A stack that has more rows than numbers is as impossible as one without memory.
    excess += sum(stack.excess_rows for _, stack in found)
    return PlanCost(tuple(found), excess)

  def _stack(self, members: tuple[int, ...], choices: Choices) -> cost.StackCost:
    key = tuple((i, choices[i]) for i in members)
    if key not in self._stacks:
      if choices[members[0]] is None:
        self._stacks[key] = cost.host_cost(self.links, [self.demands[i] for i in members])
      else:
        pairs = [(self.demands[i], layout) for i, layout in key if layout is not None]
        self._stacks[key] = cost.stack_cost(self.links, pairs)
    return self._stacks[key]

  def _groups(self, choices: Choices) -> list[tuple[int, ...]]:
    """Tables of one stack, as ``features.plan_tables`` stacks them."""
    groups: dict[tuple, list[list[int]]] = {}
    rows: dict[tuple, int] = {}
    for i in sorted(choices, key=lambda i: (choices[i] is None, i)):
      table, layout = self.demands[i].table, choices[i]
      if layout is None:
        groups.setdefault(("host",), [[]])[0].append(i)
        continue
      key = (table.embedding_dim, table.dtype, table.optimizer, self._kind(layout))
      stacks = groups.setdefault(key, [[]])
      if rows.get(key, 0) + table.vocab_size > config.MAX_ROWS_PER_STACK:
        stacks.append([])
        rows[key] = 0
      stacks[-1].append(i)
      rows[key] = rows.get(key, 0) + table.vocab_size
    return [tuple(members) for stacks in groups.values() for members in stacks if members]

  def _kind(self, layout: layouts.Layout) -> str:
    if layout not in self._kinds:
      self._kinds[layout] = plan_lib.kind_of(layout, self.links.mesh)
    return self._kinds[layout]


def options_of(
  demands: Sequence[cost.Demand], mesh: Mapping[str, int], *, is_host_allowed: bool = False
) -> list[tuple[Choice, ...]]:
  """The ``candidates`` of each table, and the host; one tuple for all tables that have the same."""
  known: dict[tuple[int, bool], tuple[Choice, ...]] = {}
  found = []
  for demand in demands:
    key = (demand.table.embedding_dim, demand.moments.is_by_column)
    if key not in known:
      known[key] = candidates(demand, mesh) + ((None,) if is_host_allowed else ())
    found.append(known[key])
  return found


def candidates(demand: cost.Demand, mesh: Mapping[str, int]) -> tuple[Choice, ...]:
  """The layouts that are tried for a table, resolved; the simplest first."""
  num_devices, placed = layouts.size(mesh, tuple(mesh)), []
  if num_devices > 1:
    group = num_devices // next(iter(mesh.values()))
    if 1 < group < num_devices:
      placed += [layouts.table_row_wise(group, first=i) for i in range(0, num_devices, group)]
    placed += [layouts.table_wise(first=i) for i in range(num_devices)]
  return (*spread_evenly(demand, mesh), *(layout.on(mesh, "") for layout in placed))


def spread_evenly(demand: cost.Demand, mesh: Mapping[str, int]) -> tuple[layouts.Layout, ...]:
  """Those of them that ask as much of every device."""
  axes, num_devices = tuple(mesh), layouts.size(mesh, tuple(mesh))
  found = [layouts.row_wise()]
  if num_devices > 1:
    found.append(layouts.replicated())
    suffixes = [axes[i:] for i in range(1, len(axes))]
    found += [
      layouts.row_wise(*some) for some in suffixes if 1 < layouts.size(mesh, some) < num_devices
    ]
    local = tuple(axis for axis in axes if axis != device_spec.DCN)
    parts = layouts.size(mesh, local)
    if parts > 1 and demand.moments.is_by_column and demand.table.embedding_dim % parts == 0:
      found.append(layouts.column_wise(*local))
  return tuple(dict.fromkeys(layout.on(mesh, "") for layout in found))


@dataclasses.dataclass(frozen=True)
class Found:
  """The best plan.

  Attributes:
    choices: one for each table.
    cost: of them.
    is_exact: there is no better one among the candidates.
  """

  choices: tuple[Choice, ...]
  cost: PlanCost
  is_exact: bool


def best(evaluate: Evaluator, options: Sequence[Sequence[Choice]]) -> Found:
  """The cheapest choice of one of ``options`` for each table."""
  found = bounded(evaluate, options)
  if math.prod(len(some) for some in options) > EXACT_PLANS:
    return found
  return exact(evaluate, options, found)


def exact(evaluate: Evaluator, options: Sequence[Sequence[Choice]], start: Found) -> Found:
  """Branch and bound: table by table, the largest first, no further where it costs too much.

  The bound is the cost of the tables placed so far, as more tables never cost less.
  """
  order = _largest_first(evaluate)
  best_choices, best_cost = start.choices, start.cost

  def place(depth: int, choices: dict[int, Choice]) -> None:
    nonlocal best_choices, best_cost
    partial = evaluate(choices)
    if partial.objective >= best_cost.objective:
      return
    if depth == len(order):
      best_choices, best_cost = tuple(choices[i] for i in range(len(order))), partial
      return
    for choice in options[order[depth]]:
      place(depth + 1, choices | {order[depth]: choice})

  place(0, {})
  return Found(best_choices, best_cost, is_exact=True)


def bounded(evaluate: Evaluator, options: Sequence[Sequence[Choice]]) -> Found:
  """The best of many starts, improved by moving tables and all tables of a kind.

  Above ``_BLOCKS`` tables, those of neighbouring sizes move together.
  """
  last = evaluate.num_plans + max(200, _TABLE_EVALUATIONS // len(options))
  costs: dict[tuple[Choice, ...], PlanCost] = {}
  for start in _starts(evaluate, options):
    if start not in costs and (not costs or evaluate.num_plans < last):
      costs[start] = evaluate(dict(enumerate(start)))
  tops = sorted(costs, key=lambda start: costs[start].objective)[:_STARTS]
  improved = [_improve(evaluate, options, start, costs[start], last) for start in tops]
  choices, found = min(improved, key=lambda pair: pair[1].objective)
  return Found(choices, found, is_exact=False)


def _improve(
  evaluate: Evaluator,
  options: Sequence[Sequence[Choice]],
  choices: tuple[Choice, ...],
  found: PlanCost,
  last: int,
) -> tuple[tuple[Choice, ...], PlanCost]:
  while True:
    before = found.objective
    for moves in (_of_all, _of_one, _swaps):
      for move in moves(evaluate, options, choices):
        if evaluate.num_plans >= last:
          return choices, found
        moved = tuple(move.get(i, choice) for i, choice in enumerate(choices))
        tried = evaluate(dict(enumerate(moved)))
        if tried.objective < found.objective:
          choices, found = moved, tried
    if found.objective == before:
      return choices, found


def _starts(
  evaluate: Evaluator, options: Sequence[Sequence[Choice]]
) -> Iterator[tuple[Choice, ...]]:
  """All tables in one way, the smallest replicated; whole tables; the rarely used with the host."""
  order = _largest_first(evaluate)[::-1]
  step = max(1, len(order) // 32)
  for spread in _common(options):
    for num_copied in [*range(0, len(order), step), len(order)]:
      copied = set(order[:num_copied])
      yield tuple(
        next((c for c in some if (_is_copied(c) if i in copied else c == spread)), some[0])
        for i, some in enumerate(options)
      )
  sizes = [demand.table.num_bytes for demand in evaluate.demands]
  yield _whole_tables(options, sizes)
  if all(None in some for some in options):
    rarely = sorted(order, key=lambda i: evaluate.demands[i].unique / sizes[i])
    for num_hosted in range(1, len(order) + 1, step):
      hosted = set(rarely[:num_hosted])
      yield tuple(None if i in hosted else some[0] for i, some in enumerate(options))


def _whole_tables(options: Sequence[Sequence[Choice]], sizes: Sequence[int]) -> tuple[Choice, ...]:
  """Each on the device that has least so far, the largest first."""
  filled: dict[Choice, int] = {}
  placed = {}
  for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
    single = [c for c in options[i] if _is_whole(c)] or [options[i][0]]
    placed[i] = min(single, key=lambda c: filled.get(c, 0))
    filled[placed[i]] = filled.get(placed[i], 0) + sizes[i]
  return tuple(placed[i] for i in range(len(options)))


def _of_one(
  evaluate: Evaluator, options: Sequence[Sequence[Choice]], choices: tuple[Choice, ...]
) -> Iterator[dict[int, Choice]]:
  """Each table, or block of tables, the largest first, anywhere else."""
  order = _largest_first(evaluate)
  count = -(-len(order) // _BLOCKS)
  for start in range(0, len(order), count):
    block = order[start : start + count]
    for choice in alternatives(evaluate, options[block[0]], choices, block[0]):
      some = options[block[0]]
      yield {i: choice for i in block if options[i] is some or choice in options[i]}


def alternatives(
  evaluate: Evaluator, options: Sequence[Choice], choices: Sequence[Choice], i: int
) -> list[Choice]:
  """Other ``options`` of table ``i``; of devices, or groups, those that have least."""
  filled: dict[Choice, int] = {}
  for demand, choice in zip(evaluate.demands, choices, strict=True):
    filled[choice] = filled.get(choice, 0) + demand.table.num_bytes
  found = [choice for choice in options if not _is_placed(choice)]
  placed = sorted(filter(_is_placed, options), key=lambda choice: filled.get(choice, 0))
  for is_wanted in (_is_whole, lambda choice: not _is_whole(choice)):
    found += itertools.islice(filter(is_wanted, placed), _DEVICES_TRIED)
  return [choice for choice in found if choice != choices[i]]


def _swaps(
  evaluate: Evaluator, options: Sequence[Sequence[Choice]], choices: tuple[Choice, ...]
) -> Iterator[dict[int, Choice]]:
  """Two tables in each other's place: memory may be too full for a move of one."""
  order = _largest_first(evaluate)[:_BLOCKS]
  for i, j in itertools.combinations(order, 2):
    a, b = choices[i], choices[j]
    if a != b and (options[i] is options[j] or (a in options[j] and b in options[i])):
      yield {i: b, j: a}


def _of_all(
  evaluate: Evaluator, options: Sequence[Sequence[Choice]], choices: tuple[Choice, ...]
) -> Iterator[dict[int, Choice]]:
  """All tables of a kind in another way: alone, none of them might gain by a stack of its own."""
  del evaluate
  kinds: dict[Choice, list[int]] = {}
  for i, choice in enumerate(choices):
    kinds.setdefault(choice and dataclasses.replace(choice, first=None), []).append(i)
  for members in kinds.values():
    for choice in _common([options[i] for i in members]):
      yield {i: choice for i in members if choice in options[i]}


def _common(options: Sequence[Sequence[Choice]]) -> list[Choice]:
  """Choices of any table but devices and groups, which would not hold many."""
  different = {id(some): some for some in options}.values()  # most tables share one tuple
  return list(dict.fromkeys(c for some in different for c in some if not _is_placed(c)))


def _is_copied(choice: Choice) -> bool:
  return choice is not None and not choice.rows and not choice.columns


def _is_placed(choice: Choice) -> bool:
  return choice is not None and choice.first is not None


def _is_whole(choice: Choice) -> bool:
  return choice is not None and choice.first is not None and choice.num_shards == 1


def _largest_first(evaluate: Evaluator) -> list[int]:
  sizes = [demand.table.num_bytes for demand in evaluate.demands]
  return sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
