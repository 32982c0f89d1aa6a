"""Shardings for the parameters of any model: rules by name, as for tables.

jaxrec's own tables lie by a plan, which spreads and pads their rows. A model from elsewhere keeps
its tables as parameters; ``shardings`` says, for each of its arrays, which devices hold which part,
and ``jax.jit`` does the rest: to its compiler such a table is an array like others.

*Source*: the partition rules of T5X and Flax's logical axes, with layouts instead of axes.
*Read next*: jaxrec/sharding/layouts.py.
"""

from __future__ import annotations

import collections
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec import config
from jaxrec.sharding import layouts

_Where = layouts.Layout | PartitionSpec | str
ArrayRules = Sequence[tuple[str, _Where]] | Mapping[str, _Where]


def shardings(tree: Any, rules: ArrayRules, mesh: Mesh) -> Any:
  """A ``NamedSharding`` for each array of ``tree``, of the first rule that matches its whole name.

  A name is the path to the array, ``params/Dense_0/kernel``; in an optimizer's state it ends in
  that of the parameter, so ``.*/kernel`` is both. ``row_wise`` shares an array's first dimension,
  ``column_wise`` its last, and a ``PartitionSpec`` says it by dimension. Scalars, Python's numbers
  too, are replicated.

  Args:
    tree: arrays or shapes (``jax.eval_shape``), of Flax, optax or any other pytree.
    rules: pairs of a regular expression and a layout, or its text, ``row_wise(model)``.
    mesh: the devices.

  Returns:
    The same tree, for ``in_shardings`` and ``out_shardings`` of ``jax.jit`` or ``jax.device_put``.

  Raises:
    ConfigError: a rule that is none; no rule matches; what has no shape; or a dimension does not
      divide, is not there, or lies on a part of an axis (``table_wise``), which no sharding of one
      array can say.

  >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  >>> tree = {"embedding": jax.ShapeDtypeStruct((8, 4), "float32")}
  >>> shardings(tree, [("embed.*", layouts.row_wise())], mesh)["embedding"].spec
  P('data', None)
  """
  patterns = layouts.compiled(rules, PartitionSpec)

  def of(path: Any, leaf: Any) -> NamedSharding:
    name = _name(path)
    shape = () if isinstance(leaf, numbers.Number) else getattr(leaf, "shape", None)
    if shape is None:
      raise config.ConfigError(
        f"sharding: {name!r} is no array or number but {type(leaf).__name__}; leave it out of the "
        "tree, or give what jax.eval_shape says of it"
      )
    if not shape:
      return NamedSharding(mesh, PartitionSpec())
    where = f"sharding: array {name!r} {shape}"
    layout = next((layout for pattern, layout in patterns if pattern.fullmatch(name)), None)
    if layout is None:
      raise config.ConfigError(
        f"{where}: no rule matches it; the patterns are "
        f"{', '.join(pattern.pattern for pattern, _ in patterns)}; end them with ('.*', "
        "replicated())"
      )
    spec = layout if isinstance(layout, PartitionSpec) else _spec(layout, len(shape), mesh, where)
    _check(spec, shape, mesh, where)
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
  used: collections.Counter[str] = collections.Counter()
  for i, axes in enumerate(spec):
    if axes is PartitionSpec.UNCONSTRAINED:
      continue  # left to the compiler
    names = axes if isinstance(axes, tuple) else () if axes is None else (axes,)
    used.update(names)
    for axis in names:
      config.require(
        axis in mesh.shape,
        f"{where}: no mesh axis {axis!r}; {config.did_you_mean(str(axis), mesh.shape)}",
      )
      config.require(
        used[axis] == 1,
        f"{where}: {spec} names mesh axis {axis!r} more than once; an axis shares one dimension",
      )
    count = layouts.size(mesh.shape, names)
    config.require(
      shape[i] % count == 0,
      f"{where}: dimension {i} is {shape[i]}, which {count} devices along {names} cannot share "
      f"evenly; pad it to {-(-shape[i] // count) * count}, or let a rule before say replicated()",
    )
