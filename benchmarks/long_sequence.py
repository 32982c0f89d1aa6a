"""What does attention over a long history cost, and where does a hash search pay?

    python -m benchmarks.long_sequence [--quick] [--figure=long_sequence.png]

One candidate for each of 64 users, and 512 candidates for one user, with histories of 256 to 8,192
steps of width 128, four heads, k = 48 steps and 256 bits. The users' steps are of 50,000 items by a
Zipf law, so that a batch repeats rows as real ones do. Compared are target attention over every
step, as the ETA paper prints it (every step is projected) and folded as ours is (none is); ETA with
fingerprints computed on the spot, once a row, and with such as lie beside the table; and DIN's
activation unit over the latest 50 steps. Forward passes; medians of alternating runs; FLOPs and
bytes are the compiler's (which counts an XOR or a comparison as one, and nothing for XLA:CPU's own
top-k).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import report
from jaxrec import layers
from jaxrec.layers import attention, sequences
from jaxrec.runs.process import host

_QUICK = flags.DEFINE_bool("quick", False, "Under a minute: two lengths, fewer rounds.")
_FIGURE = flags.DEFINE_string("figure", None, "Where to draw times against lengths.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the histories.")

_USERS, _CANDIDATES, _ITEMS = 64, 512, 50_000
_DIM, _HEADS, _K, _BITS, _RECENT = 128, 4, 48, 256, 50

Case = Callable[..., jax.Array]


def projected(params: dict[str, Any], target: jax.Array, steps: jax.Array) -> jax.Array:
  """The paper's form: keys and values of every step. ``steps`` [B, L, D], or [L, D] of one user."""
  query = jnp.einsum("bt,thd->bhd", target, params["query"]) / params["query"].shape[-1] ** 0.5
  if steps.ndim == 2:
    key, value = (jnp.einsum("ln,nhd->lhd", steps, params[n]) for n in ("key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bhd,lhd->bhl", query, key))
    heads = jnp.einsum("bhl,lhd->bhd", weights, value)
  else:
    key, value = (jnp.einsum("bln,nhd->blhd", steps, params[n]) for n in ("key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bhd,blhd->bhl", query, key))
    heads = jnp.einsum("bhl,blhd->bhd", weights, value)
  return jnp.einsum("bhd,hdo->bo", heads, params["out"])


def of_users() -> dict[str, Case]:
  """One candidate a user: each function of (params, target [B, D], sequence with its words)."""

  def eta(params, target, sequence, *, is_cached):
    if not is_cached:
      sequence = dataclasses.replace(sequence, words=None)
    found = layers.nearest_steps(target, sequence, params["planes"], _K)
    return layers.target_attention(params, target, found)

  return {
    "full_projected": lambda params, target, sequence: projected(
      params, target, sequence.embeddings()
    ),
    "full_folded": layers.target_attention,
    "eta_online": functools.partial(eta, is_cached=False),
    "eta_cached": functools.partial(eta, is_cached=True),
    "din_50": lambda params, target, sequence: activation(params, target, sequence.latest(_RECENT)),
  }


def activation(params: dict[str, Any], target: jax.Array, sequence: Any) -> jax.Array:
  """DIN's unit."""
  unit = attention.ActivationUnit((32,))
  return unit.apply({"params": params["din"]}, target, sequence)


def of_candidates() -> dict[str, Case]:
  """The same for many candidates of one user, whose steps are projected once for all of them."""
  return of_users() | {
    "full_projected": lambda params, target, sequence: projected(
      params, target, sequence.embeddings()[0]
    ),
  }


def parameters(key: jax.Array) -> dict[str, Any]:
  """Of all cases: one attention, one activation unit, one set of hyperplanes."""
  keys = jax.random.split(key, 3)
  one = sequences.of_embeddings(jnp.zeros((1, 2, _DIM)), jnp.ones((1, 2), bool))
  attend = layers.TargetAttention(_HEADS).init(keys[0], jnp.zeros((1, _DIM)), one)["params"]
  din = attention.ActivationUnit((32,)).init(keys[1], jnp.zeros((1, _DIM)), one)["params"]
  return {**attend, "din": din, "planes": layers.hyperplanes(keys[2], _DIM, _BITS)}


def histories(num_users: int, length: int) -> layers.RowSequence:
  """Of ``num_users``, each ``length`` long; of one, its steps are the rows."""
  rng = np.random.default_rng(_SEED.value)
  items = np.arange(length)[None]
  if num_users > 1:
    shares = 1 / (1 + np.arange(_ITEMS))
    items = rng.choice(_ITEMS, (num_users, length), p=shares / shares.sum())
  unique, places = np.unique(items, return_inverse=True)
  rows = jnp.asarray(rng.normal(size=(len(unique), _DIM)), jnp.float32)
  places = jnp.asarray(places.reshape(items.shape), jnp.int32)
  return layers.RowSequence(rows, places, jnp.ones(places.shape, bool))


def measure(cases: dict[str, Case], sequence: layers.RowSequence, batch_size: int) -> dict:
  """Times, FLOPs and temporary bytes of each case, and the ratios of full attention to ETA."""
  keys = jax.random.split(jax.random.key(_SEED.value))
  params = parameters(keys[0])
  target = jax.random.normal(keys[1], (batch_size, _DIM))
  words = jax.jit(layers.fingerprints)(sequence.rows, params["planes"])
  arguments = (params, target, dataclasses.replace(sequence, words=words))
  compiled = {name: jax.jit(fn).lower(*arguments).compile() for name, fn in cases.items()}
  runs = {
    name: functools.partial(lambda fn: jax.block_until_ready(fn(*arguments)), fn)
    for name, fn in compiled.items()
  }
  times = report.alternate(runs, rounds=7 if _QUICK.value else 15)
  found = {}
  for name, fn in compiled.items():
    cost = fn.cost_analysis()
    memory = fn.memory_analysis()
    found[name] = {
      **times[name],
      "mflops": round(cost.get("flops", 0) / 1e6, 2),
      "temporary_mib": round(memory.temp_size_in_bytes / 2**20, 2),
    }
  ratios = {}
  for full in ("full_projected", "full_folded"):
    for eta in ("eta_online", "eta_cached"):
      if full in found:
        ratios[f"{full}/{eta}"] = {
          what: round(found[full][field] / max(1e-9, found[eta][field]), 2)
          for what, field in (("time", "median_ms"), ("flops", "mflops"))
        }
  return {"rows": len(sequence.rows), "cases": found, "ratios": ratios}


def draw(path: str, found: dict[str, dict[int, Any]]) -> None:
  """Time against the history's length, a panel for users and one for candidates."""
  with report.drawing(path, columns=2, width=9) as panels:
    for axes, (title, points) in zip(panels, found.items(), strict=True):
      for case in next(iter(points.values()))["cases"]:
        times = [one["cases"][case]["median_ms"] for one in points.values()]
        axes.plot(list(points), times, marker="o", label=case)
      axes.set_xscale("log", base=2)
      axes.set_yscale("log")
      axes.set_title(title)
      axes.set_xlabel("steps in the history")
      axes.set_ylabel("ms a forward pass")
      axes.legend(fontsize=8)


def main(_: list[str]) -> None:
  """Runs the benchmark."""
  host.quiet_libraries()
  host.keep_large_allocations()
  lengths = [256, 1024] if _QUICK.value else [256, 512, 1024, 2048, 4096, 8192]
  found = {
    f"{_USERS} users": {n: measure(of_users(), histories(_USERS, n), _USERS) for n in lengths},
    f"{_CANDIDATES} candidates of one user": {
      n: measure(of_candidates(), histories(1, n), _CANDIDATES) for n in lengths
    },
  }
  if _FIGURE.value:
    draw(_FIGURE.value, found)
  report.finish(
    {
      "benchmark": "long_sequence",
      "dim": _DIM,
      "heads": _HEADS,
      "k": _K,
      "bits": _BITS,
      **found,
      "peer": "full_projected, attention over every step as the paper prints it",
      "seed": _SEED.value,
    }
  )


if __name__ == "__main__":
  app.run(main)
