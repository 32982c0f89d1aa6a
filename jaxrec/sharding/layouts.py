"""How a table can lie on a mesh, as values.

Devices along some axes of the mesh share a table's rows, along others its columns; along the axes
that are left they hold copies. The field's layouts are cases of that one:

| layout | rows over | columns over | copies |
|---|---|---|---|
| ``replicated()`` | - | - | all devices |
| ``row_wise()`` | all devices | - | - |
| ``table_wise()`` | one device of all | - | - |
| ``table_row_wise(8)`` | 8 neighbours, say a host's | - | - |
| ``column_wise()`` | - | all devices | - |
| ``row_wise("model")`` on data x model, a 2D grid | the model axis | - | along data |
| ``row_wise("data").and_columns("model")`` | data | model | - |

*Source*: the sharding types of TorchRec (Ivchenko et al., RecSys 2022), its 2D parallelism.
*Read next*: jaxrec/sharding/plan.py.
"""

from __future__ import annotations

import dataclasses
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrec import config


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where a table's numbers are.

  Attributes:
    rows: mesh axes whose devices share the rows; None: all that ``columns`` does not name.
    columns: mesh axes whose devices share the columns; None: all that ``rows`` names not.
    num_shards: of the devices along ``rows``, how many share this table's rows; None: all.
    first: the first of these; None: where the plan finds room.
  """

  rows: tuple[str, ...] | None = None
  columns: tuple[str, ...] | None = ()
  num_shards: int | None = None
  first: int | None = None

  def and_columns(self, *axes: str) -> Layout:
    """The same, with columns shared along ``axes`` too."""
    return dataclasses.replace(self, columns=axes)

  def on(self, mesh: Mapping[str, int], where: str) -> Layout:
    """With ``rows`` spelled out for the axes of ``mesh``, in their order.

    Raises:
      ConfigError: naming ``where``: an axis that the mesh has not or that is named twice, or more
        shards than devices.
    """
    config.require(
      self.num_shards is None or isinstance(self.num_shards, numbers.Integral),
      f"{where}: num_shards must be an int, got {self.num_shards!r}",
    )
    for axis in (*(self.rows or ()), *(self.columns or ())):
      config.require(
        axis in mesh, f"{where}: no mesh axis {axis!r}; {config.did_you_mean(str(axis), mesh)}"
      )
    twice = set(self.rows or ()) & set(self.columns or ())
    config.require(not twice, f"{where}: {sorted(twice)} can share rows or columns, not both")
    rows, columns = (
      tuple(axis for axis in mesh if (axis not in (others or ()) if axes is None else axis in axes))
      for axes, others in ((self.rows, self.columns), (self.columns, self.rows))
    )
    most = size(mesh, rows)
    count = most if self.num_shards is None else self.num_shards
    config.require(
      0 < count <= most, f"{where}: num_shards must lie in [1, {most}], got {self.num_shards}"
    )
    config.require(
      self.first is None or 0 <= self.first <= most - count,
      f"{where}: first must lie in [0, {most - count}] with {count} of {most} shards, got "
      f"{self.first}",
    )
    return Layout(rows, columns, count, self.first)


def size(mesh: Mapping[str, int], axes: tuple[str, ...]) -> int:
  """How many devices lie along ``axes``."""
  count = 1
  for axis in axes:
    count *= mesh[axis]
  return count


def replicated() -> Layout:
  """Every device has the whole table."""
  return Layout(rows=())


def row_wise(*axes: str) -> Layout:
  """Row r is on shard r mod S, shifted by table; over ``axes``, or over all devices."""
  return Layout(rows=axes or None)


def table_wise(*axes: str, first: int | None = None) -> Layout:
  """One device along ``axes`` has the whole table, another device the next one."""
  return Layout(rows=axes or None, num_shards=1, first=first)


def table_row_wise(num_shards: int, *axes: str, first: int | None = None) -> Layout:
  """``num_shards`` neighbouring devices share the rows, such as those of one host."""
  return Layout(rows=axes or None, num_shards=num_shards, first=first)


def column_wise(*axes: str) -> Layout:
  """Devices along ``axes``, or all, have some columns of every row; along the rest are copies."""
  return Layout(rows=(), columns=axes or None)


_MADE_BY = {
  "replicated": replicated,
  "row_wise": row_wise,
  "table_wise": table_wise,
  "table_row_wise": table_row_wise,
  "column_wise": column_wise,
}


_TEXT = re.compile(r"(\w+)(?:\(([^()]*)\))?(?:\.and_columns\(([^()]*)\))?")


def parse(text: str) -> Layout:
  """The layout of a text such as ``row_wise``, ``row_wise(model)``, ``table_row_wise(8)``.

  Raises:
    ConfigError: there is no such layout, or it does not take such arguments.

  >>> parse("table_row_wise(8)").num_shards, parse("row_wise(data, model)").rows
  (8, ('data', 'model'))
  >>> parse("row_wise(data).and_columns(model)") == row_wise("data").and_columns("model")
  True
  """
  found = _TEXT.fullmatch(text.strip())
  name = found[1] if found else text.partition("(")[0].strip()
  config.require(
    found is not None and name in _MADE_BY,
    f"sharding: layout {text!r}; {config.did_you_mean(name, _MADE_BY)}",
  )
  assert found is not None
  words, columns = _words(found[2]), _words(found[3])
  num_counts = 1 if name == "table_row_wise" else 0
  counts, axes = words[:num_counts], words[num_counts:]
  config.require(
    len(counts) == num_counts
    and all(count.isdecimal() for count in counts)
    and not any(axis.isdecimal() for axis in axes)
    and not (axes and name == "replicated"),
    f"sharding: layout {text!r}: {name} takes "
    + ("no arguments" if name == "replicated" else "names of mesh axes")
    + (", after how many shards: table_row_wise(8)" if num_counts else ""),
  )
  config.require(
    found[3] is None or bool(columns),
    f"sharding: layout {text!r}: and_columns takes names of mesh axes, one at least",
  )
  layout = _MADE_BY[name](*map(int, counts), *axes)  # type: ignore[operator]
  return layout.and_columns(*columns) if columns else layout


def _words(text: str | None) -> list[str]:
  return [word.strip() for word in (text or "").split(",") if word.strip()]


def compiled(rules: Any, *others: type) -> list[tuple[re.Pattern[str], Any]]:
  """Rules as they are looked up: patterns that are compiled, layouts that are no text.

  Args:
    rules: pairs of a regular expression and a layout, or the text of one; or a mapping of them.
    others: types that may stand for a layout.

  Raises:
    ConfigError: no pairs, no regular expression, or no layout.
  """
  pairs = list(rules.items() if isinstance(rules, Mapping) else rules)
  found: list[tuple[re.Pattern[str], Any]] = []
  for pair in pairs:
    config.require(
      isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2,
      "sharding: rules must be pairs of a regular expression and a layout, such as "
      f"[('.*', row_wise())], got {pair!r} among them",
    )
    pattern, layout = pair
    layout = parse(layout) if isinstance(layout, str) else layout
    config.require(
      isinstance(layout, (Layout, *others)),
      f"sharding: the rule for {pattern!r} must have a layout, such as row_wise(), or its text, "
      f"'row_wise', got {layout!r}",
    )
    try:
      found.append((re.compile(pattern), layout))
    except (re.error, TypeError) as error:
      raise config.ConfigError(
        f"sharding: the pattern {pattern!r} of a rule is no regular expression ({error}); '.*' "
        "matches every name, and 'user_.*' those that begin so"
      ) from None
  return found
