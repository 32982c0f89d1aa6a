"""What does attention over a long history cost, and where does a hash search pay?

    python -m benchmarks.long_sequence [--quick]

One candidate for each of 64 users, and 512 candidates for one user, with histories of 256 to 8,192
steps of width 128, four heads, k = 48 steps and 256 bits. Compared are target attention over every
step, as the ETA paper prints it (every step is projected) and folded as ours is (none is); ETA with
fingerprints computed on the spot, and with fingerprints that are looked up; and DIN's activation
unit over the latest 50 steps. Forward passes; medians of alternating runs; FLOPs and bytes are the
compiler's (which counts an XOR or a comparison as one, and nothing for XLA:CPU's own top-k).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks import report
from jaxrec import layers
from jaxrec.layers import attention, lsh_attention, sequences, simhash
from jaxrec.training import host

_QUICK = flags.DEFINE_bool("quick", False, "Under a minute: two lengths, fewer rounds.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the histories.")

_USERS, _CANDIDATES, _DIM, _HEADS, _K, _BITS, _RECENT = 64, 512, 128, 4, 48, 256, 50

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
  """One candidate a user: each function of (params, target [B, D], steps [B, L, D], words)."""

  def whole(steps: jax.Array) -> sequences.RowSequence:
    return sequences.of_embeddings(steps, jnp.ones(steps.shape[:2], bool))

  def folded(params, target, steps, words):
    return layers.target_attention(params, target, whole(steps))

  def eta(params, target, steps, words, *, is_cached):
    asked = layers.fingerprints(target, params["planes"])
    words = words if is_cached else layers.fingerprints(steps, params["planes"])
    distances = layers.hamming(words, asked[:, None])
    mask = jnp.ones(distances.shape, bool)
    found = whole(steps).take(*simhash.nearest(distances, mask, _K, num_bits=_BITS))
    return layers.target_attention(params, target, found)

  def din(params, target, steps, words):
    unit = attention.ActivationUnit((32,))
    return unit.apply({"params": params["din"]}, target, whole(steps[:, -_RECENT:]))

  return {
    "full_projected": lambda params, target, steps, words: projected(params, target, steps),
    "full_folded": folded,
    "eta_online": functools.partial(eta, is_cached=False),
    "eta_cached": functools.partial(eta, is_cached=True),
    "din_50": din,
  }


def of_candidates() -> dict[str, Case]:
  """Many candidates of one user: each function of (params, target [B, D], steps [L, D], words)."""

  def everything(target: jax.Array, steps: jax.Array) -> sequences.RowSequence:
    places = jnp.broadcast_to(jnp.arange(len(steps)), (len(target), len(steps)))
    return sequences.RowSequence(steps, places, jnp.ones(places.shape, bool))

  def eta(params, target, steps, words, *, is_cached):
    found = lsh_attention.nearest_steps_of_one(
      target, steps, jnp.ones(len(steps), bool), params["planes"], _K,
      words=words if is_cached else None,
    )  # fmt: skip
    return layers.target_attention(params, target, found)

  def din(params, target, steps, words):
    unit = attention.ActivationUnit((32,))
    return unit.apply({"params": params["din"]}, target, everything(target, steps[-_RECENT:]))

  return {
    "full_projected": lambda params, target, steps, words: projected(params, target, steps),
    "eta_online": functools.partial(eta, is_cached=False),
    "eta_cached": functools.partial(eta, is_cached=True),
    "din_50": din,
  }


def parameters(key: jax.Array) -> dict[str, Any]:
  """Of all cases: one attention, one activation unit, one set of hyperplanes."""
  keys = jax.random.split(key, 3)
  one = sequences.of_embeddings(jnp.zeros((1, 2, _DIM)), jnp.ones((1, 2), bool))
  attend = layers.TargetAttention(_HEADS).init(keys[0], jnp.zeros((1, _DIM)), one)["params"]
  din = attention.ActivationUnit((32,)).init(keys[1], jnp.zeros((1, _DIM)), one)["params"]
  return {**attend, "din": din, "planes": layers.hyperplanes(keys[2], _DIM, _BITS)}


def measure(cases: dict[str, Case], shape: tuple[int, ...], batch_size: int) -> dict[str, Any]:
  """Times, FLOPs and temporary bytes of each case, and the ratios of full attention to ETA."""
  keys = jax.random.split(jax.random.key(_SEED.value), 3)
  params = parameters(keys[0])
  target = jax.random.normal(keys[1], (batch_size, _DIM))
  steps = jax.random.normal(keys[2], (*shape, _DIM))
  words = jax.jit(layers.fingerprints)(steps, params["planes"])
  arguments = (params, target, steps, words)
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
  return {"cases": found, "ratios": ratios}


def main(_: list[str]) -> None:
  """Runs the benchmark."""
  host.quiet_libraries()
  host.keep_large_allocations()
  lengths = [256, 1024] if _QUICK.value else [256, 512, 1024, 2048, 4096, 8192]
  report.finish(
    {
      "benchmark": "long_sequence",
      "dim": _DIM,
      "heads": _HEADS,
      "k": _K,
      "bits": _BITS,
      "users": {n: measure(of_users(), (_USERS, n), _USERS) for n in lengths},
      "candidates_of_one_user": {n: measure(of_candidates(), (n,), _CANDIDATES) for n in lengths},
      "seed": _SEED.value,
    }
  )


if __name__ == "__main__":
  app.run(main)
