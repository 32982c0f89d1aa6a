"""Any row-separable optax transform, on touched rows only.

``lazily(tx)`` is *defined* as: do the dense optax update, then restore every untouched row and its
row leaves. It computes just that on the touched rows alone. A leaf of the state belongs to the rows
of a stack if and only if its shape changes when the stack has one more row; all others are globals
and advance once a step.

A transform whose rows see each other (a norm over the whole table, noise drawn by shape, factored
moments) has no such form. It is refused at construction, by name, with what to use instead.

Source: design section 4. optax's own sparse story is a dense gradient; TorchRec's optimizers are
fused kernels, one per algorithm.
Read next: jaxrec/training/state.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec.tables.optimizers import row_optimizer

_PROBE_ROWS, _PROBE_SUBSET, _PROBE_DIM = 256, 130, 128  # wide enough for Adafactor to factor
_PROBE_STEPS = 8  # in which an estimate of a rate, as D-Adaptation's, leaves its first value


def lazily(tx: optax.GradientTransformation) -> row_optimizer.RowOptimizer:
  """A RowOptimizer that equals the dense ``tx`` with untouched rows and their moments restored.

  ``tx`` sees a dict with one array a stack, so ``optax.masked`` and ``multi_transform`` take stack
  names (``tables.plan.stacks``). Schedules and ``inject_hyperparams`` advance once a step. In the
  state, ``globals`` holds what belongs to no row by its path in optax's own state, as
  ``"hyperparams.learning_rate"``.

  Raises:
    ValueError: ``tx`` is not row-separable; the message says what to use on RowGradients instead.

  >>> import optax
  >>> lazily(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)))
  Traceback (most recent call last):
  ValueError: lazily: clip_by_global_norm is not row-separable: ...
  """
  _refuse_by_name(tx)
  if not isinstance(tx, optax.GradientTransformation):
    raise TypeError(f"lazily: expected an optax.GradientTransformation, got {type(tx).__name__}")
  tx = optax.with_extra_args_support(tx)
  _probe(tx, ("rows",), must_fit=False)

  probed: set[tuple[str, ...]] = set()  # a run asks for the state's shapes again and again

  def init(values: row_optimizer.Rows) -> row_optimizer.RowOptState:
    if (names := tuple(values)) not in probed:  # masks and labels may tell real names apart
      _probe(tx, names, must_fit=True)
      probed.add(names)
    wide = {name: array.astype(jnp.float32) for name, array in values.items()}
    rows, rest = _split(jax.tree.leaves(tx.init(wide)), _leaves(tx, wide), wide)
    return row_optimizer.RowOptState(rows=rows, globals=rest)

  def update(
    grads: row_optimizer.Rows,
    leaves: row_optimizer.RowLeaves,
    globals_: Mapping[str, jax.Array],
    values: row_optimizer.Rows,
  ) -> tuple[row_optimizer.Rows, row_optimizer.RowLeaves, dict[str, jax.Array]]:
    known = _leaves(tx, values)
    treedef = jax.tree.structure(jax.eval_shape(tx.init, dict(values)))
    state = jax.tree.unflatten(treedef, _join(leaves, globals_, known))
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic mixes dtypes
      updates, state = tx.update(dict(grads), state, dict(values))
      new_values = optax.apply_updates(dict(values), updates)
    new_leaves, new_globals = _split(jax.tree.leaves(state), known, values)
    return new_values, new_leaves, new_globals

  def over_columns(axes: Mapping[str, tuple[str, ...]]) -> row_optimizer.RowOptimizer:
    _probe(tx, tuple(axes), must_fit=False, num_columns=_PROBE_DIM // 2)
    return optimizer

  optimizer = row_optimizer.RowOptimizer(init, update, over_columns)
  return optimizer


class _Leaf(NamedTuple):
  """A leaf of optax's state: its path in the tree, and the stack whose rows it holds, or None."""

  name: str
  owner: str | None


def _leaves(tx: optax.GradientTransformation, values: row_optimizer.Rows) -> list[_Leaf]:
  """The leaves of ``tx``'s state in order."""

  def shapes(grown: str | None) -> list[tuple[Any, Any]]:
    specs = {
      name: jax.ShapeDtypeStruct((v.shape[0] + (name == grown), *v.shape[1:]), jnp.float32)
      for name, v in values.items()
    }
    return jax.tree_util.tree_leaves_with_path(jax.eval_shape(tx.init, specs))

  base = shapes(None)
  owners: list[str | None] = [None] * len(base)
  for name in values:
    for index, ((_, before), (_, after)) in enumerate(zip(base, shapes(name), strict=True)):
      if before.shape != after.shape:
        owners[index] = name
  names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in base]
  return [_Leaf(name, owner) for name, owner in zip(names, owners, strict=True)]


def _split(
  leaves: list[jax.Array], known: list[_Leaf], values: Mapping[str, Any]
) -> tuple[dict[str, tuple[jax.Array, ...]], dict[str, jax.Array]]:
  rows = {
    name: tuple(x for x, leaf in zip(leaves, known, strict=True) if leaf.owner == name)
    for name in values
  }
  return rows, {leaf.name: x for x, leaf in zip(leaves, known, strict=True) if leaf.owner is None}


def _join(
  rows: row_optimizer.RowLeaves, globals_: Mapping[str, jax.Array], known: list[_Leaf]
) -> list[jax.Array]:
  sources = {name: iter(leaves) for name, leaves in rows.items()}
  return [
    globals_[leaf.name] if leaf.owner is None else next(sources[leaf.owner]) for leaf in known
  ]


# What to do instead, by the name of the optax function that built the offending part.
_INSTEAD = {
  "clip_by_global_norm": "call tables.clip_by_global_norm(row_grads, max_norm) before the update",
  "add_noise": "call tables.add_noise(row_grads, key, stddev=...) before the update",
  "MultiSteps": "use --accumulate_steps, or tables.accumulate over the micro-batches",
  "apply_if_finite": "skip the step when tables.global_norm(row_grads) is not finite",
  "scale_by_factored_rms": "use tables.rowwise_adagrad: one accumulator a row, as small",
  "scale_by_trust_ratio": "use tables.rowwise_adagrad or tables.lazily(optax.adam(...))",
}
_ALIASES = {"scale_by_factored_rms": "adafactor", "scale_by_trust_ratio": "lamb / lars"}


def _refuse(name: str, instead: str) -> None:
  shown = f"{_ALIASES[name]} ({name})" if name in _ALIASES else name
  raise ValueError(
    f"lazily: {shown} is not row-separable: a row's update depends on more than its own gradients. "
    f"Instead, {instead}."
  )


def _refuse_by_name(tx: Any) -> None:
  for part in _parts(tx):
    name = getattr(part, "__qualname__", type(part).__qualname__).split(".")[0]
    if name in _INSTEAD:
      _refuse(name, _INSTEAD[name])


def _parts(root: Any) -> Iterator[Any]:
  """Every function and object that ``root``'s closures reach: what an optax chain is made of."""
  stack, seen = [root], set()
  while stack:
    part = stack.pop()
    if id(part) in seen:
      continue
    seen.add(id(part))
    yield part
    if isinstance(part, functools.partial):
      stack += [part.func, *part.args, *part.keywords.values()]
    elif isinstance(part, tuple | list):
      stack += part
    elif isinstance(part, Mapping):
      stack += part.values()
    elif hasattr(part, "__self__") and callable(part):
      stack.append(part.__self__)
      stack.append(getattr(part, "__func__", None))
    elif hasattr(part, "__closure__"):
      for cell in part.__closure__ or ():
        try:
          stack.append(cell.cell_contents)
        except ValueError:  # an empty cell: a name not yet bound
          continue


def _probe(
  tx: optax.GradientTransformation,
  names: tuple[str, ...],
  *,
  must_fit: bool,
  num_columns: int = _PROBE_DIM,
) -> bool:
  """Runs ``tx`` on a small table and on a part of it: the rows they share must come out the same.

  ``num_columns`` of the part: with fewer than all, columns must not depend on each other either.
  Returns False when ``tx`` is tied to other stack names (a mask, labels), unless ``must_fit``.
  """
  rng = np.random.default_rng(0)
  shape = (_PROBE_ROWS, _PROBE_DIM)
  values = {name: rng.normal(size=shape).astype(np.float32) for name in names}
  # Large gradients, so that whatever bounds a norm acts; the part left out is the largest.
  spread = np.linspace(1.0, 1e4, _PROBE_ROWS, dtype=np.float32)[:, None]
  drift = {name: rng.normal(size=shape) for name in names}  # the steps agree on a direction
  grads = [
    {n: spread * (drift[n] + 0.1 * rng.normal(size=shape)).astype(np.float32) for n in names}
    for _ in range(_PROBE_STEPS)
  ]

  def run(num_rows: int, num_columns: int) -> tuple[Any, Any]:
    part = (slice(num_rows), slice(num_columns))
    params = {name: jnp.asarray(v[part]) for name, v in values.items()}
    state, seen = tx.init(params), []
    for g in grads:
      updates, state = tx.update({n: jnp.asarray(x[part]) for n, x in g.items()}, state, params)
      seen.append(updates)
      params = optax.apply_updates(params, updates)
    return seen, state

  with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
    try:
      tx.init({name: jnp.asarray(v) for name, v in values.items()})
    except (ValueError, KeyError, TypeError):
      if must_fit:
        raise
      return False
    whole, part = run(_PROBE_ROWS, _PROBE_DIM), run(_PROBE_SUBSET, num_columns)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    a = a[tuple(map(slice, b.shape))] if a.ndim == b.ndim else a
    # At each leaf's own scale: an estimate of 1e-6 that differs must show.
    is_float = jnp.issubdtype(b.dtype, jnp.floating)
    scale = np.max(np.abs(b[np.isfinite(b)]), initial=0) if is_float else 0
    if not np.allclose(a, b, rtol=1e-4, atol=1e-6 * float(scale), equal_nan=True):
      if num_columns < _PROBE_DIM:
        raise ValueError(
          "sharding: this transform moves a column by the gradients of others (such as a norm of "
          "the row), and its columns would be on several devices; shard its tables by rows"
        )
      _refuse("this transform", "compose functions over RowGradients (clip_by_global_norm, scale, "
              "add_noise, freeze) with a row-separable transform such as optax.adam")  # fmt: skip
  return True
