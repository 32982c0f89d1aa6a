"""A training step that tells which of its numbers are not finite, in the order they are computed.

The step itself is not rewritten: it is built around a model and optimizers that look at what
passes through them. The model is given identities for parameters and embeddings, whose gradients
therefore pass through here too, and every module's output is captured. What is seen is reported to
the host by callbacks, in order, so that the micro-batches of an accumulated step can be told apart.
All of this costs as much as the step; it is for the replay of a run that has diverged.

Read next: jaxrec/runs/divergence/first_nonfinite.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import tables as tables_lib
from jaxrec.training import state


@dataclasses.dataclass(frozen=True)
class Finding:
  """Something that is not finite.

  Attributes:
    stage: ``embedding``, ``output``, ``gradient`` (of a parameter), ``embedding gradient``;
      ``summed gradient`` and ``summed row gradient``: as the optimizer gets them.
    name: of the feature, module, parameter, or stack.
    place: the first bad entry of its leading axis: an example, a slot of unique rows.
    value: what stands there.
    micro_batch: 0 for the first; -1 for what belongs to none of them.
  """

  stage: str
  name: str
  place: int
  value: float
  micro_batch: int = -1


class Recorder:
  """What a watched step has reported; its callbacks fill it."""

  def __init__(self) -> None:
    self.findings: list[Finding] = []
    self._micro_batch = -1

  def clear(self) -> None:
    self.findings, self._micro_batch = [], -1

  def report(self, stages: Sequence[str], names: Sequence[str], arrays: Sequence[Any]) -> None:
    """Within ``jit``: has the host look at ``arrays``, in this order."""
    if arrays:
      places, values = zip(*map(first_not_finite, arrays), strict=True)
      receive = functools.partial(self._receive, tuple(stages), tuple(names))
      jax.debug.callback(receive, jnp.stack(places), jnp.stack(values), ordered=True)

  def _receive(self, stages: Sequence[str], names: Sequence[str], places: Any, values: Any) -> None:
    if "output" in stages:  # one forward pass a micro-batch
      self._micro_batch += 1
    for stage, name, place, value in zip(
      stages, names, np.asarray(places).tolist(), np.asarray(values).tolist(), strict=True
    ):
      if place >= 0:
        micro_batch = -1 if stage.startswith("summed") else self._micro_batch
        self.findings.append(Finding(stage, name, place, value, micro_batch))


def first_not_finite(array: jax.Array) -> tuple[jax.Array, jax.Array]:
  """i32[] and f32[]: where on the leading axis the first bad number is (-1: nowhere), and it."""
  flat = array.reshape(array.shape[0] if array.ndim else 1, -1)
  is_bad = ~jnp.isfinite(flat)
  place = jnp.where(is_bad.any(), jnp.argmax(is_bad.any(axis=1)), -1)
  row = flat[jnp.maximum(place, 0)]
  return place.astype(jnp.int32), row[jnp.argmax(~jnp.isfinite(row))].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class WatchedModel:
  """Stands in for ``model`` where a step calls ``model.apply``."""

  model: nn.Module
  recorder: Recorder

  def apply(self, params: Any, dense: Any, embeddings: Any, *args: Any, **options: Any) -> Any:
    """As ``model.apply``."""
    order: list[str] = []  # of module outputs; filled below, before any gradient is traced
    params, embeddings = self._watch_gradients(params, embeddings, order)
    output, found = self.model.apply(
      params,
      dense,
      embeddings,
      *args,
      mutable=["intermediates"],
      capture_intermediates=True,
      **options,
    )
    outputs = list(_outputs(found["intermediates"]))
    order += [name for name, _ in outputs]
    looked_up = list(_embeddings(embeddings))
    self.recorder.report(
      ["embedding"] * len(looked_up) + ["output"] * len(outputs),
      [name for name, _ in looked_up + outputs],
      [array for _, array in looked_up + outputs],
    )
    return output

  def _watch_gradients(self, params: Any, embeddings: Any, order: list[str]) -> Any:
    leaves, treedef = jax.tree.flatten((params, embeddings))
    names = [*map(_stage_and_name, jax.tree_util.tree_leaves_with_path((params, embeddings)))]
    floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    @jax.custom_vjp
    def same(arrays: Any) -> Any:
      return arrays

    def forward(arrays: Any) -> Any:
      return arrays, None

    def backward(_: None, grads: Any) -> Any:
      found = [(*names[i], grad) for i, grad in zip(floats, grads, strict=True)]
      # Backwards: the last module's parameters come first, the tables' rows last.
      found.sort(key=lambda part: (part[0] != "gradient", -_rank(part[1], order)))
      self.recorder.report(*zip(*found, strict=True))
      return (grads,)

    same.defvjp(forward, backward)
    for i, leaf in zip(floats, same([leaves[i] for i in floats]), strict=True):
      leaves[i] = leaf
    return jax.tree.unflatten(treedef, leaves)


def watched_optimizers(tx: state.Optimizers, recorder: Recorder) -> state.Optimizers:
  """``tx``, whose gradients are looked at before it uses them."""

  def update(grads: Any, opt_state: Any, params: Any = None, **extra: Any) -> Any:
    found = jax.tree_util.tree_leaves_with_path(grads)
    names = [parameter_name(path) for path, _ in found]
    recorder.report(["summed gradient"] * len(found), names, [leaf for _, leaf in found])
    return tx.dense.update(grads, opt_state, params, **extra)

  def watched_rows(optimizer: tables_lib.RowOptimizer) -> tables_lib.RowOptimizer:
    def update_rows(grads: Any, *rest: Any) -> Any:
      recorder.report(["summed row gradient"] * len(grads), list(grads), list(grads.values()))
      return optimizer.update(grads, *rest)

    return optimizer._replace(update=update_rows)

  rows = tx.rows
  if isinstance(rows, tables_lib.RowOptimizer):
    return state.Optimizers(optax.GradientTransformation(tx.dense.init, update), watched_rows(rows))
  by_label = {label: watched_rows(optimizer) for label, optimizer in rows.items()}
  return state.Optimizers(optax.GradientTransformation(tx.dense.init, update), by_label)


def parameter_name(path: Any) -> str:
  """A dense parameter as people write it: ``top/layer_0/kernel``."""
  return jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("params/")


def _outputs(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  """(module, output) in order of execution, which is the order Flax stores them in."""
  for name, found in tree.items():
    path = prefix if name == "__call__" else f"{prefix}/{name}".lstrip("/")
    if isinstance(found, Mapping):
      yield from _outputs(found, path)
    else:
      for leaf in jax.tree.leaves(found):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size:
          yield path, leaf


def _embeddings(embeddings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  for name, found in embeddings.items():
    yield name, found[0] if isinstance(found, tuple) else found


def _stage_and_name(path_and_leaf: tuple[Any, Any]) -> tuple[str, str]:
  (which, *path), _ = path_and_leaf
  if which.idx == 0:
    return "gradient", parameter_name(tuple(path))
  return "embedding gradient", str(path[0].key)


def _rank(name: str, order: Sequence[str]) -> int:
  """Which of the outputs in ``order`` a parameter first takes part in."""
  holders = [
    i for i, module in enumerate(order) if not module or f"{name}/".startswith(f"{module}/")
  ]
  return max(holders, key=lambda i: len(order[i]), default=0)
