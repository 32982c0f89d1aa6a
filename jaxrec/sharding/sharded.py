"""Tables that are spread over the devices of a mesh.

``Sharded`` is what a step speaks to (``tables.Placement``). ``over_devices`` runs a step, written
for one device, on all of them: each sees its own part of the batch and of the tables, and the same
dense parameters.

*Source*: design, sections 4 and 5.
*Read next*: jaxrec/sharding/exchange.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec import config
from jaxrec.data import pipeline
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import table_plan
from jaxrec.sharding import exchange
from jaxrec.sharding import plan as plan_lib
from jaxrec.tables import device_table, fingerprints, placement, row_gradients, row_init
from jaxrec.tables.layouts import layout as layout_lib
from jaxrec.tables.layouts import packed_rows
from jaxrec.tables.optimizers import row_optimizer


@dataclasses.dataclass(frozen=True)
class Sharded:
  """The rows of ``plan`` on the devices of ``mesh``; a ``tables.Placement``."""

  mesh: Mesh
  plan: plan_lib.ShardingPlan

  def __post_init__(self) -> None:
    if tuple(self.mesh.shape.items()) != self.plan.mesh:
      raise ValueError(
        f"sharding: the plan is for a mesh of {dict(self.plan.mesh)}, and this one is "
        f"{dict(self.mesh.shape)}; plan anew for it"
      )

  @property
  def axes(self) -> tuple[str, ...]:
    return self.plan.axes

  def layout(self, stack: str) -> layout_lib.Layout:
    sharded = self.plan.of(stack)
    if sharded.in_lines:
      return packed_rows.Lines(sharded.rows_per_shard, sharded.embedding_dim)
    return layout_lib.RowMajor()

  def num_rows(self, stack: table_plan.Stack) -> int:
    return self.plan.of(stack.name).rows_per_shard

  def column_axes(self, stack: str) -> tuple[str, ...]:
    return self.plan.of(stack).column_axes

  def is_of(self, stack: table_plan.Stack, table: config.TableConfig, ids: jax.Array) -> jax.Array:
    sharded = self.plan.of(stack.name)
    spread = sharded.spread(table)
    holds = spread.is_on(_shard_index(sharded))
    return holds & (ids >= spread.base) & (ids < spread.base + spread.rows)

  def numbering(self, plan: table_plan.TablePlan) -> table_plan.Numbering:
    del plan
    return self.plan

  def fetch(
    self, stored: Mapping[str, Sequence[jax.Array]], rows: Mapping[str, jax.Array]
  ) -> dict[str, list[jax.Array]]:
    return {
      name: exchange.fetch(self.plan.of(name), self.layout(name), arrays, rows[name], self.axes)
      for name, arrays in stored.items()
    }

  def collect(
    self, row_grads: Mapping[str, row_gradients.RowGradients]
  ) -> dict[str, row_gradients.RowGradients]:
    return {
      name: exchange.collect(self.plan.of(name), g, self.axes) for name, g in row_grads.items()
    }

  def on_each_device(self, fn: Callable[[Any], Any], given: Any) -> Any:
    specs = specs_of(given, self)
    own = jax.tree.map(
      lambda x, spec: jax.ShapeDtypeStruct(self.sharding(spec).shard_shape(x.shape), x.dtype),
      given,
      specs,
    )
    shapes = jax.eval_shape(fn, own)
    where = placement_of(shapes)  # tables may be laid out anew
    made = specs_of(shapes, where if isinstance(where, Sharded) else self)
    return jax.shard_map(fn, mesh=self.mesh, in_specs=(specs,), out_specs=made, check_vma=False)(
      given
    )

  def spec(self, stack: str, *dims: int) -> PartitionSpec:
    """How an array of a stack lies on the mesh that is ``[n, *dims]``, there or on a device.

    Its columns are shared as the rows' are, if it has as many.
    """
    sharded = self.plan.of(stack)
    rows, columns = sharded.row_axes or None, sharded.stored_columns
    if sharded.column_axes and dims in ((columns,), (columns * sharded.num_columns,)):
      return PartitionSpec(rows, sharded.column_axes)
    return PartitionSpec(rows)

  def sharding(self, spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(self.mesh, spec)

  @property
  def batches(self) -> NamedSharding:
    """Of what has an entry an example: a part on every device."""
    return self.sharding(PartitionSpec(self.axes))

  @property
  def parts(self) -> tuple[int, ...]:
    """Which parts of a batch are for devices of this process."""
    own = jax.process_index()
    return tuple(i for i, d in enumerate(self.mesh.devices.flat) if d.process_index == own)

  def input_options(
    self, options: pipeline.InputOptions = pipeline.InputOptions()
  ) -> pipeline.InputOptions:
    """``options`` for ``data.batches``, of batches in parts for the devices of this process.

    They go with ``plan=where.plan``.
    """
    return dataclasses.replace(options, parts=self.parts, num_parts=self.plan.num_devices)

  def replicate(self, tree: Any) -> Any:
    """Copies of all arrays on every device."""
    # Not device_put, which takes no array to devices of other processes.
    return jax.jit(lambda tree: tree, out_shardings=self.sharding(PartitionSpec()))(tree)


def _shard_index(sharded: plan_lib.ShardedStack) -> jax.Array:
  """i32[]: which of the stack's shards this device has."""
  return jax.lax.axis_index(sharded.row_axes) if sharded.row_axes else jnp.int32(0)


def create(where: Sharded, key: jax.Array) -> device_table.DeviceTables:
  """Tables with their initial rows, each made on the device that holds it.

  They are the rows that ``tables.create`` makes on one device, bit for bit.
  """
  specs = {s.stack.name: where.spec(s.stack.name, s.stored_columns) for s in where.plan.sharded}
  fill = jax.shard_map(
    functools.partial(_initial_values, where),
    mesh=where.mesh,
    in_specs=PartitionSpec(),
    out_specs=specs,
    check_vma=False,
  )
  values = jax.jit(fill)(where.replicate(key))
  return device_table.DeviceTables(values=values, plan=where.plan.tables, placement=where)


def _initial_values(where: Sharded, key: jax.Array) -> dict[str, jax.Array]:
  values = {}
  for sharded in where.plan.sharded:
    stack, shard, layout = sharded.stack, _shard_index(sharded), where.layout(sharded.stack.name)
    zeros = jnp.zeros((sharded.rows_per_shard, sharded.embedding_dim), stack.dtype)
    array = layout.pack(device_table.encode(zeros, stack.dtype))
    for table in stack.tables:
      spread = sharded.spread(table)
      first, step = spread.ids_on(shard)
      array = row_init.fill_table(
        array,
        row_init.table_words(key, table),
        table,
        spread.base,
        encode=functools.partial(_own_columns, sharded),
        layout=layout,
        ids=row_init.IdRange(
          first, step, jnp.where(spread.is_on(shard), spread.rows, 0), spread.rows
        ),
      )
    values[stack.name] = array
  return values


def _own_columns(sharded: plan_lib.ShardedStack, rows: jax.Array) -> jax.Array:
  """Of whole rows, this device's columns as they are stored."""
  if sharded.num_columns > 1:
    start = jax.lax.axis_index(sharded.column_axes) * sharded.embedding_dim
    rows = jax.lax.dynamic_slice_in_dim(rows, start, sharded.embedding_dim, axis=1)
  return device_table.encode(rows, sharded.stack.dtype)


def specs_of(tree: Any, where: Sharded) -> Any:
  """A PartitionSpec for each leaf: tables and moments by their stack, a batch over all devices.

  Everything else is the same on all devices.
  """

  def spec_of(node: Any) -> Any:
    if isinstance(node, device_table.DeviceTables):
      return _specs_of_tables(node, where)
    if isinstance(node, row_optimizer.RowOptState):
      rows: Any = {
        name: tuple(where.spec(name, *leaf.shape[1:]) for leaf in leaves)
        for name, leaves in node.rows.items()
      }
      globals_ = jax.tree.map(lambda _: PartitionSpec(), node.globals)
      return row_optimizer.RowOptState(rows=rows, globals=globals_)
    if isinstance(node, fingerprints.Fingerprints):
      words: Any = {name: where.spec(name) for name in node.words}
      planes: Any = {name: PartitionSpec() for name in node.planes}
      return dataclasses.replace(node, words=words, planes=planes)
    if isinstance(node, batch_lib.Batch):
      micro = (None,) * (node.weights.ndim - 1)  # an axis of micro-batches comes first
      return jax.tree.map(lambda _: PartitionSpec(*micro, where.axes), node)
    return PartitionSpec()

  kinds = (
    device_table.DeviceTables,
    fingerprints.Fingerprints,
    row_optimizer.RowOptState,
    batch_lib.Batch,
  )
  return jax.tree.map(spec_of, tree, is_leaf=lambda node: isinstance(node, kinds))


def _specs_of_tables(found: device_table.DeviceTables, where: Sharded) -> Any:
  values: Any = {name: where.spec(name, *v.shape[1:]) for name, v in found.values.items()}
  kept = specs_of(found.fingerprints, where)
  return dataclasses.replace(found, values=values, fingerprints=kept)


def placed(shapes: Any, where: Sharded) -> Any:
  """``jax.ShapeDtypeStruct`` for each leaf, with the sharding that it has on the mesh."""
  return jax.tree.map(
    lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where.sharding(spec)),
    shapes,
    specs_of(shapes, where),
  )


def over_devices(step: Callable[..., Any]) -> Callable[..., Any]:
  """``step(state, batch) -> (state, figures)``, run on every device that the state's tables lie on.

  Inside, each device has its own part of the batch and of the tables, and the same everything else;
  ``figures`` must come out the same on all, as sums over devices do. For tables on one device it is
  ``step`` itself. Use it under ``jit``, and donate the state.

  The batch: its examples in order, a device's after another's. One with bags must be joined of one
  batch a device (``features.join_parts``), since ``row_splits`` count within a device's part.
  """

  @functools.wraps(step)
  def on_devices(state: Any, *rest: Any) -> Any:
    where = placement_of(state)
    if not isinstance(where, Sharded):
      return step(state, *rest)
    return _run(step, (state, *rest), where, (specs_of(state, where), PartitionSpec()))

  return on_devices


def each_example(fn: Callable[..., Any]) -> Callable[..., Any]:
  """The same for a function whose outputs are one entry an example.

  They come out whole on every device, in the order of the batch.
  """

  @functools.wraps(fn)
  def on_devices(*args: Any) -> Any:
    where = placement_of(args)
    if not isinstance(where, Sharded):
      return fn(*args)

    def gathered(*args: Any) -> Any:
      return jax.lax.all_gather(fn(*args), where.axes, tiled=True)

    return _run(gathered, args, where, PartitionSpec())

  return on_devices


def _run(fn: Callable[..., Any], args: tuple[Any, ...], where: Sharded, out_specs: Any) -> Any:
  is_batch = [isinstance(arg, batch_lib.Batch) for arg in args]
  for arg, is_one in zip(args, is_batch, strict=True):
    if is_one:
      check_batch(arg, where)

  def own(*args: Any) -> Any:
    return fn(*(_own_part(a) if is_one else a for a, is_one in zip(args, is_batch, strict=True)))

  return jax.shard_map(
    own,
    mesh=where.mesh,
    in_specs=specs_of(args, where),
    out_specs=out_specs,
    check_vma=False,
  )(*args)


def placement_of(tree: Any) -> placement.Placement:
  """Where the tables of a state lie."""
  is_tables = lambda node: isinstance(node, device_table.DeviceTables)  # noqa: E731
  found = [node for node in jax.tree.leaves(tree, is_leaf=is_tables) if is_tables(node)]
  return found[0].placement if found else placement.OneDevice()


def check_batch(batch: batch_lib.Batch, where: Sharded) -> None:
  """Raises ValueError unless the batch is made of one part for each device of the mesh."""
  num_devices, size = where.plan.num_devices, batch.weights.shape[-1]
  if size % num_devices:
    raise ValueError(
      f"sharding: a batch of {size} examples does not divide among {num_devices} devices; choose "
      f"a batch_size that is a multiple of {num_devices}"
    )
  for name, bags in batch.ids.items():
    splits = bags.row_splits
    if splits is not None and splits.shape[-1] != size + num_devices:
      raise ValueError(
        f"sharding: feature {name!r} has {splits.shape[-1]} row_splits for {size} examples, and "
        f"{size + num_devices} are expected: one batch for each of {num_devices} devices, joined "
        "by features.join_parts"
      )


def _own_part(batch: batch_lib.Batch) -> batch_lib.Batch:
  """A device's part as a batch of its own: counts, one a device, are numbers again."""
  if batch.rows is None:
    return batch
  rows = {
    name: dataclasses.replace(plan, num_rows=plan.num_rows[..., 0])
    for name, plan in batch.rows.items()
  }
  return dataclasses.replace(batch, rows=rows)
