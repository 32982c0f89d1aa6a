"""Optimizers over touched rows.

A ``RowOptimizer`` updates the rows that a batch touched and nothing else. Its state splits in two:
*row leaves*, arrays with one entry a row, which live, move and are evicted with their row; and
*globals* (step counts, schedules), which advance once a step. ``update`` sees touched rows only,
[U, ...], so the same function serves a device table, a cache slot or a shard.

``rowwise_adagrad`` keeps one accumulator a row. ``lazily`` (lazy.py) turns an optax transform into
a RowOptimizer.

Source: row-wise Adagrad as in DLRM and FBGEMM (papers note, section 3): accumulator += mean(g^2).
Read next: jaxrec/tables/optimizers/lazy.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from jaxrec import config
from jaxrec.inputs import table_plan
from jaxrec.tables import bulk_ops, device_table, placement
from jaxrec.tables import row_gradients as row_gradients_lib

Rows = Mapping[str, jax.Array]  # one array a stack, [U, D] or [V, D]
RowLeaves = Mapping[str, tuple[jax.Array, ...]]  # the moments of those rows, [U, ...] each


@flax.struct.dataclass
class RowOptState:
  """Optimizer state of all stacks.

  Attributes:
    rows: for each stack its row leaves, ``[num_rows, ...]`` each as the stack's layout has it: row
      r of a leaf belongs to row r.
    globals: everything else; advances once a step.
  """

  rows: dict[str, tuple[jax.Array, ...]]
  globals: Any


class RowOptimizer(NamedTuple):
  """A pair of pure functions, as in optax.

  Attributes:
    init: ``values -> RowOptState``, for whole tables or for any rows of them.
    update: ``(gradients, row_leaves, globals, values) -> (values, row_leaves, globals)`` on touched
      rows: gradients and values f32[U, D], leaves [U, ...], by stack.
    over_columns: ``{stack: mesh axes} -> RowOptimizer`` for stacks whose columns are shared by the
      devices along these axes, each seeing its own; None: it cannot be done.
  """

  init: Callable[[Rows], RowOptState]
  update: Callable[[Rows, RowLeaves, Any, Rows], tuple[Rows, RowLeaves, Any]]
  over_columns: Callable[[Mapping[str, tuple[str, ...]]], RowOptimizer] | None = None


class Counts(NamedTuple):
  """What became of a step's rows.

  Attributes:
    num_bad_rows: i32[] rows written that hold an infinity or a NaN.
    num_extra_rounds: i32[] exchanges between devices beyond the first, for rows that did not fit.
  """

  num_bad_rows: jax.Array
  num_extra_rounds: jax.Array


def init_row_state(optimizer: RowOptimizer, tables: device_table.DeviceTables) -> RowOptState:
  """The optimizer's state for whole tables: every row's initial moments, and the globals.

  Raises:
    ValueError: devices share columns of a table, and the optimizer needs whole rows.
  """
  with_shared_columns(optimizer, tables)

  def init(tables: device_table.DeviceTables) -> RowOptState:
    state = optimizer.init(bulk_ops.all_rows(tables))
    rows = {
      name: tuple(tables.placement.layout(name).pack(leaf) for leaf in leaves)
      for name, leaves in state.rows.items()
    }
    return RowOptState(rows=rows, globals=state.globals)

  return jax.jit(functools.partial(tables.placement.on_each_device, init))(tables)


def apply_row_gradients(
  tables: device_table.DeviceTables,
  state: RowOptState,
  row_grads: Mapping[str, row_gradients_lib.RowGradients],
  optimizer: RowOptimizer,
) -> tuple[device_table.DeviceTables, RowOptState]:
  """One step of ``optimizer`` on the rows of ``row_grads``; every other row keeps its bits.

  Donate ``tables`` and ``state`` to the jitted step that calls this, and XLA updates them in place.
  """
  return apply_and_count(tables, state, row_grads, optimizer)[:2]


def apply_and_count(
  tables: device_table.DeviceTables,
  state: RowOptState,
  row_grads: Mapping[str, row_gradients_lib.RowGradients],
  optimizer: RowOptimizer,
) -> tuple[device_table.DeviceTables, RowOptState, Counts]:
  """``apply_row_gradients``, and what was seen of the rows on their way into the tables."""
  optimizer = with_shared_columns(optimizer, tables)

  def update(carry: Any, found: Mapping[str, row_gradients_lib.RowGradients]) -> Any:
    now, rows, _, counts = carry
    # Every round of a step has the globals of before the step, and leaves the same after it.
    new, moved = _update(now, RowOptState(rows, state.globals), found, optimizer)
    num_bad = counts.num_bad_rows + _count_bad_rows(tables.plan, found, new)
    written = device_table.write_rows(now, {name: g.ids for name, g in found.items()}, new)
    return written, moved.rows, moved.globals, Counts(num_bad, counts.num_extra_rounds + 1)

  first = (tables, state.rows, state.globals, Counts(jnp.int32(0), jnp.int32(-1)))
  new, rows, globals_, counts = row_gradients_lib.fold_rounds(
    row_grads, first, update, tables_of=lambda carry: carry[0]
  )
  return new, RowOptState(rows=rows, globals=globals_), counts


def with_shared_columns(optimizer: RowOptimizer, tables: device_table.DeviceTables) -> RowOptimizer:
  """``optimizer`` for tables of which a device may have some columns only.

  Raises:
    ValueError: it needs whole rows.
  """
  axes = {s.name: tables.placement.column_axes(s.name) for s in tables.plan.stacks}
  shared = {name: found for name, found in axes.items() if found}
  if not shared:
    return optimizer
  if optimizer.over_columns is None:
    raise ValueError(
      f"sharding: the columns of {', '.join(shared)} are shared among devices, and this row "
      "optimizer needs whole rows; shard these tables by rows, or use tables.rowwise_adagrad or "
      "tables.lazily of an elementwise transform"
    )
  return optimizer.over_columns(shared)


def _update(
  tables: device_table.DeviceTables,
  state: RowOptState,
  row_grads: Mapping[str, row_gradients_lib.RowGradients],
  optimizer: RowOptimizer,
) -> tuple[Rows, RowOptState]:
  """New values of the rows of one round, and the state with their new moments."""
  for g in row_grads.values():
    chex.assert_rank([g.ids, g.rows], [1, 2])
    chex.assert_equal_shape_prefix([g.ids, g.rows], 1)
  ids = {name: g.ids for name, g in row_grads.items()}
  grads = {name: g.rows for name, g in row_grads.items()}
  layouts = {name: tables.placement.layout(name) for name in row_grads}
  # On one device identical to the read of the forward pass: XLA keeps one gather of the two.
  values = device_table.read_rows(tables, ids)
  leaves = {
    name: tuple(layouts[name].read(leaf, ids[name]) for leaf in state.rows[name])
    for name in row_grads
  }
  new_values, new_leaves, globals_ = optimizer.update(grads, leaves, state.globals, values)
  written = {
    name: tuple(
      layouts[name].write(old, ids[name], new)
      for old, new in zip(state.rows[name], new_leaves[name], strict=True)
    )
    for name in row_grads
  }
  return new_values, RowOptState(rows={**state.rows, **written}, globals=globals_)


def _count_bad_rows(
  plan: table_plan.TablePlan, row_grads: Mapping[str, row_gradients_lib.RowGradients], values: Rows
) -> jax.Array:
  count = jnp.zeros((), jnp.int32)
  for stack in plan.stacks:
    if stack.name in row_grads:
      g = row_grads[stack.name]
      stored = values[stack.name].astype(stack.dtype)  # what fits float32 may overflow a float16
      is_bad = ~jnp.isfinite(stored).all(axis=1)
      is_bad &= jnp.arange(is_bad.shape[0]) < g.num_valid
      count += placement.total(jnp.sum(is_bad, dtype=jnp.int32), g.axes)
  return count


def rowwise_adagrad(
  learning_rate: float | Callable[[jax.Array], jax.Array],
  *,
  initial_accumulator: float = 0.0,
  eps: float = 1e-10,
) -> RowOptimizer:
  """Adagrad with one accumulator a row: ``a += mean(g**2); row -= lr * g / (sqrt(a) + eps)``.

  Duplicates are summed before the square. ``learning_rate`` may be an optax schedule.
  """

  def init(values: Rows) -> RowOptState:
    rows: dict[str, tuple[jax.Array, ...]] = {
      name: (jnp.full(array.shape[:1], initial_accumulator, jnp.float32),)
      for name, array in values.items()
    }
    return RowOptState(rows=rows, globals=jnp.zeros((), jnp.int32))

  def over_columns(axes: Mapping[str, tuple[str, ...]]) -> RowOptimizer:
    def update(
      grads: Rows, leaves: RowLeaves, count: jax.Array, values: Rows
    ) -> tuple[Rows, RowLeaves, Any]:
      rate = learning_rate(count) if callable(learning_rate) else learning_rate
      new_values, new_leaves = {}, {}
      for name, g in grads.items():
        (accumulator,) = leaves[name]
        accumulator = accumulator + _mean_over_devices(mean_over_dim(g * g), axes.get(name, ()))
        step = rate * g / (jnp.sqrt(accumulator)[:, None] + eps)
        # A row whose gradients were all zero has 0 / (0 + eps): it does not move.
        new_values[name] = values[name] - step
        new_leaves[name] = (accumulator,)
      return new_values, new_leaves, count + 1

    return RowOptimizer(init, update, over_columns)

  return over_columns({})


def _mean_over_devices(means: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  return jax.lax.pmean(means, axes) if axes else means


def mean_over_dim(x: jax.Array) -> jax.Array:
  """Mean of ``x: f32[U, D]`` over D by one fixed halving tree, so U never changes its bits.

  ``jnp.mean`` picks its order of summation by shape, and a row's moments would then depend on how
  many other rows the batch happened to touch.
  """
  dim = x.shape[-1]
  width = 1 << (dim - 1).bit_length()
  x = jnp.pad(x, ((0, 0), (0, width - dim)))
  while width > 1:
    width //= 2
    x = x[:, :width] + x[:, width:]
  return x[:, 0] / dim


def by_label(
  optimizers: RowOptimizer | Mapping[Any, RowOptimizer], plan: table_plan.TablePlan
) -> RowOptimizer:
  """One RowOptimizer for all stacks: each stack uses the entry that ``TableConfig.optimizer``
  names.

  Raises:
    ConfigError: a table names an optimizer that is not there, or several are given and it names
    none; or two labels are equal as text, as None and "None" are.
    TypeError: one of ``optimizers`` is no RowOptimizer, as an optax transform is not.
  """
  _check_kinds(optimizers)
  if isinstance(optimizers, RowOptimizer):
    for stack in plan.stacks:
      if stack.optimizer is not None:
        raise config.ConfigError(
          f"table {stack.tables[0].name!r} asks for optimizer {stack.optimizer!r}, but "
          "Optimizers.rows is a single row optimizer; give a dict: "
          f"rows={{{stack.optimizer!r}: ..., None: ...}}"
        )
    return optimizers
  groups: dict[str | None, list[str]] = {}
  for stack in plan.stacks:
    if stack.optimizer not in optimizers:
      raise config.ConfigError(
        f"table {stack.tables[0].name!r}: no row optimizer {stack.optimizer!r} in Optimizers.rows, "
        f"which has {sorted(map(str, optimizers))}"
      )
    groups.setdefault(stack.optimizer, []).append(stack.name)
  return _partition({label: optimizers[label] for label in groups}, groups)


def _check_kinds(optimizers: Any) -> None:
  """Raises unless ``optimizers`` is a RowOptimizer or a dict of them."""
  several = optimizers if isinstance(optimizers, Mapping) else {None: optimizers}
  for label, optimizer in several.items():
    if not isinstance(optimizer, RowOptimizer):
      where = "Optimizers.rows" + (f"[{label!r}]" if several is optimizers else "")
      raise TypeError(
        f"{where}: expected a row optimizer, got {type(optimizer).__name__}; wrap an optax "
        "transform as tables.lazily(tx), or use tables.rowwise_adagrad(rate)"
      )
  names = [str(label) for label in several]
  for label, name in zip(several, names, strict=True):
    if names.count(name) > 1:  # the state keeps each one's globals under its name
      raise config.ConfigError(
        f"Optimizers.rows: label {label!r} is there twice, as text and as a value; rename one"
      )


def _partition(
  optimizers: Mapping[Any, RowOptimizer], groups: Mapping[Any, list[str]]
) -> RowOptimizer:
  def take(tree: Mapping[str, Any], label: Any) -> dict[str, Any]:
    return {name: tree[name] for name in groups[label] if name in tree}

  def init(values: Rows) -> RowOptState:
    states = {label: opt.init(take(values, label)) for label, opt in optimizers.items()}
    rows = {name: leaves for state in states.values() for name, leaves in state.rows.items()}
    return RowOptState(rows=rows, globals={str(k): s.globals for k, s in states.items()})

  def update(
    grads: Rows, leaves: RowLeaves, globals_: Any, values: Rows
  ) -> tuple[Rows, RowLeaves, Any]:
    new_values: dict[str, jax.Array] = {}
    new_leaves: dict[str, tuple[jax.Array, ...]] = {}
    new_globals: dict[str, Any] = {}
    for label, opt in optimizers.items():
      moved, moments, rest = opt.update(
        take(grads, label), take(leaves, label), globals_[str(label)], take(values, label)
      )
      new_values.update(moved)
      new_leaves.update(moments)
      new_globals[str(label)] = rest
    return new_values, new_leaves, new_globals

  def over_columns(axes: Mapping[str, tuple[str, ...]]) -> RowOptimizer:
    return _partition({k: _split(opt, take(axes, k)) for k, opt in optimizers.items()}, groups)

  can_split = all(opt.over_columns for opt in optimizers.values())
  return RowOptimizer(init, update, over_columns if can_split else None)


def _split(optimizer: RowOptimizer, axes: Mapping[str, tuple[str, ...]]) -> RowOptimizer:
  return optimizer.over_columns(axes) if optimizer.over_columns and axes else optimizer
