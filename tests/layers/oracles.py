"""Float64 NumPy, written from the formulas alone, for layers and models to be compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def to_float64(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: np.array(leaf, np.float64), tree)


def random_like(tree: Any, seed: int = 0) -> Any:
  """Float32 normal numbers in the shapes of ``tree``: no parameter is left at zero."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)


def numeric_grad(loss_fn: Callable[[Any], float], tree: Any, *, step: float = 1e-6) -> Any:
  """The gradient of ``loss_fn`` at ``tree`` by central differences in float64."""
  leaves, structure = jax.tree.flatten(to_float64(tree))
  grads = [np.zeros_like(leaf) for leaf in leaves]
  for leaf, grad in zip(leaves, grads, strict=True):
    for index in np.ndindex(leaf.shape):
      value = leaf[index]
      above, below = (
        _loss_with(loss_fn, leaves, structure, leaf, index, value + s) for s in (step, -step)
      )
      leaf[index] = value
      grad[index] = (above - below) / (2 * step)
  return jax.tree.unflatten(structure, grads)


def _loss_with(loss_fn, leaves, structure, leaf, index, value) -> float:
  leaf[index] = value
  return loss_fn(jax.tree.unflatten(structure, leaves))


def assert_close(actual: Any, expected: Any, *, tolerance: float = 2e-5) -> None:
  """Same structure, and each array within ``tolerance`` of its largest number."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.shape == e.shape
    scale = max(1.0, np.abs(e).max(initial=0.0))
    np.testing.assert_allclose(np.asarray(a, np.float64), e, rtol=0, atol=tolerance * scale)


def mlp(params: Any, x: np.ndarray, *, activate_last: bool) -> np.ndarray:
  depth = len(params)
  for i in range(depth):
    x = np.einsum("bn,nm->bm", x, params[f"layer_{i}"]["kernel"]) + params[f"layer_{i}"]["bias"]
    if activate_last or i < depth - 1:
      x = np.where(x > 0, x, 0.0)
  return x


def dots(vectors: list[np.ndarray], *, self_interaction: bool) -> np.ndarray:
  columns = []
  for i in range(len(vectors)):
    for j in range(i + 1 if self_interaction else i):
      columns.append((vectors[i] * vectors[j]).sum(axis=1))
  return np.array(columns).T.reshape(len(vectors[0]), len(columns))


def cross(params: Any, x0: np.ndarray) -> np.ndarray:
  x = x0
  for i in range(len(params)):
    layer = params[f"layer_{i}"]
    matrix = layer["kernel"] if "kernel" in layer else layer["v_kernel"] @ layer["w_kernel"]
    x = x0 * (x @ matrix + layer["bias"]) + x
  return x
