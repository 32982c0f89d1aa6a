"""Shardings for the parameters of any model: rules by name, as for tables.

jaxrec's own tables lie by a plan, which spreads and pads their rows. A model from elsewhere keeps
its tables as parameters; ``shardings`` says, for each of its arrays, which devices hold which part,
and ``jax.jit`` does the rest: to its compiler such a table is an array like others.

*Source*: the partition rules of T5X and Flax's logical axes, with layouts instead of axes.
*Read next*: jaxrec/sharding/layouts.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec import config
from jaxrec.sharding import layouts

ArrayRules = Sequence[tuple[str, layouts.Layout | PartitionSpec]]


def shardings(tree: Any, rules: ArrayRules, mesh: Mesh) -> Any:
  """A ``NamedSharding`` for each array of ``tree``, of the first rule that matches its whole name.

  A name is the path to the array, ``params/Dense_0/kernel``; in an optimizer's state it ends in
  that of the parameter, so ``.*/kernel`` is both. ``row_wise`` shares an array's first dimension,
  ``column_wise`` its last, and a ``PartitionSpec`` says it by dimension. Scalars are replicated.

  Args:
    tree: arrays or shapes (``jax.eval_shape``), of Flax, optax or any other pytree.
    rules: pairs of a regular expression and a layout.
    mesh: the devices.

  Returns:
    The same tree, for ``in_shardings`` and ``out_shardings`` of ``jax.jit`` or ``jax.device_put``.

  Raises:
    ConfigError: no rule matches, or a dimension does not divide, is not there, or lies on a part of
      an axis (``table_wise``), which no sharding of one array can say.

  >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  >>> tree = {"embedding": jax.ShapeDtypeStruct((8, 4), "float32")}
  >>> shardings(tree, [("embed.*", layouts.row_wise())], mesh)["embedding"].spec
  P('data', None)
  """
  patterns = [(re.compile(pattern), layout) for pattern, layout in rules]

  def of(path: Any, leaf: Any) -> NamedSharding:
    if not leaf.ndim:
      return NamedSharding(mesh, PartitionSpec())
    name = _name(path)
    where = f"sharding: array {name!r} {leaf.shape}"
    layout = next((layout for pattern, layout in patterns if pattern.fullmatch(name)), None)
    if layout is None:
      raise config.ConfigError(
        f"{where}: no rule matches it; the patterns are {', '.join(p for p, _ in rules)}; end them "
        "with ('.*', replicated())"
      )
    spec = layout if isinstance(layout, PartitionSpec) else _spec(layout, leaf.ndim, mesh, where)
    _check(spec, leaf.shape, mesh, where)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(of, tree)


def _name(path: tuple[Any, ...]) -> str:
  """The path without what Flax boxes an array in, so that annotations do not change names."""
  if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
    path = path[:-1]
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _spec(layout: layouts.Layout, num_dims: int, mesh: Mesh, where: str) -> PartitionSpec:
  found = layout.on(mesh.shape, where)
  rows, columns = found.rows or (), found.columns or ()
  config.require(
    found.num_shards == layouts.size(mesh.shape, rows),
    f"{where}: on one or some of the devices along {rows} alone lie tables of a plan "
    "(sharding.make_plan); an array of its own can be row_wise, column_wise or replicated",
  )
  config.require(
    num_dims > 1 or not (rows and columns),
    f"{where}: rows and columns are one dimension here; name axes for one of them",
  )
  if num_dims == 1:
    return PartitionSpec(rows or columns or None)
  return PartitionSpec(rows or None, *[None] * (num_dims - 2), columns or None)


def _check(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh, where: str) -> None:
  config.require(
    len(spec) <= len(shape), f"{where}: {spec} names {len(spec)} dimensions, and it has fewer"
  )
  for i, axes in enumerate(spec):
    names = (axes,) if isinstance(axes, str) else axes or ()
    for axis in names:
      config.require(
        axis in mesh.shape,
        f"{where}: no mesh axis {axis!r}; {config.did_you_mean(axis, mesh.shape)}",
      )
    count = layouts.size(mesh.shape, names)
    config.require(
      shape[i] % count == 0,
      f"{where}: dimension {i} is {shape[i]}, which {count} devices along {names} cannot share "
      f"evenly; pad it to {-(-shape[i] // count) * count}, or let a rule before say replicated()",
    )
