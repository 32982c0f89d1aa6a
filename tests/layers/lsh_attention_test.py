"""ETA's attention: what it finds, what has a gradient, and what never changes (T3, T4, T5, T9)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.layers import attention, lsh_attention, sequences, simhash
from tests import xla_flags

B, D = 6, 16


def histories(length: int, seed: int = 0):
  """Targets f32[B, D] and sequences of rows that several histories share."""
  rng = np.random.default_rng(seed)
  rows = jnp.asarray(rng.normal(size=(3 * length, D)), jnp.float32)
  lengths = np.concatenate([[length, 0, 1], rng.integers(1, length + 1, B - 3)])
  mask = np.arange(length) < lengths[:, None]
  places = np.where(mask, rng.integers(0, len(rows), (B, length)), len(rows))
  sequence = sequences.RowSequence(rows, jnp.asarray(places, jnp.int32), jnp.asarray(mask))
  return jnp.asarray(rng.normal(size=(B, D)), jnp.float32), sequence


def made(module, target, sequence):
  return module.init(jax.random.key(0), target, sequence)


def planes_of(variables):
  return variables[lsh_attention.CONSTANTS]["search"]["hyperplanes"]


def test_the_steps_found_are_those_of_a_search_by_hand():
  target, sequence = histories(40)
  planes = simhash.hyperplanes(jax.random.key(5), D, 48)
  found = lsh_attention.nearest_steps(target, sequence, planes, 7)
  bits = np.asarray(target) @ np.asarray(planes) > 0
  for b in range(B):
    steps = np.asarray(sequence.embeddings()[b])[np.asarray(sequence.mask[b])]
    distances = ((steps @ np.asarray(planes) > 0) != bits[b]).sum(axis=1)
    order = sorted(range(len(steps)), key=lambda step: (distances[step], -step))[:7]
    kept = np.asarray(found.embeddings()[b])[np.asarray(found.mask[b])]
    np.testing.assert_array_equal(kept, steps[order])


def shared(sequence, b):
  """The history of example ``b`` as one for all, and as a copy for each."""
  one = dataclasses.replace(
    sequence, places=sequence.places[b : b + 1], mask=sequence.mask[b : b + 1]
  )
  copies = (jnp.broadcast_to(part, (B, part.shape[1])) for part in (one.places, one.mask))
  return one, sequences.RowSequence(sequence.rows, *copies)


@pytest.mark.parametrize("is_cached", [False, True])
def test_one_history_for_many_candidates_is_found_as_if_each_had_its_own(is_cached):
  target, sequence = histories(40)
  planes = simhash.hyperplanes(jax.random.key(5), D, 48)
  words = simhash.fingerprints(sequence.rows, planes) if is_cached else None
  for b in (0, 1, 2, 4):
    one, copies = shared(sequence, b)
    ours = lsh_attention.nearest_steps(target, dataclasses.replace(one, words=words), planes, 7)
    theirs = lsh_attention.nearest_steps(target, copies, planes, 7)
    np.testing.assert_array_equal(ours.mask, theirs.mask)
    np.testing.assert_array_equal(ours.places, theirs.places)
    latest = one.latest(3), copies.latest(3)
    np.testing.assert_array_equal(jnp.broadcast_to(latest[0].places, (B, 3)), latest[1].places)


@pytest.mark.parametrize(
  "module", [lsh_attention.LSHAttention(k=7), attention.TargetAttention(2),
             attention.KernelCounts(), attention.ActivationUnit()], ids=lambda m: type(m).__name__
)  # fmt: skip
def test_a_layer_says_of_a_shared_history_what_it_says_of_copies(module):
  target, sequence = histories(40)
  for b in (0, 1, 2):
    one, copies = shared(sequence, b)
    variables = module.init(jax.random.key(0), target, copies)
    ours, theirs = (module.apply(variables, target, found) for found in (one, copies))
    assert ours.shape == theirs.shape and (b == 1 or np.asarray(ours).any())
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_variant_is_that_of_the_search_and_of_its_words():
  target, sequence = histories(40)
  found = {}
  for variant in simhash.VARIANTS:
    module = lsh_attention.LSHSearch(7, 48, variant)
    variables = made(module, target, sequence)
    found[variant] = module.apply(variables, target, sequence)
    planes = variables[lsh_attention.CONSTANTS]["hyperplanes"]
    assert planes.shape == (D, 48)
    words = simhash.fingerprints(sequence.rows, planes, variant=variant)
    known = module.apply(variables, target, dataclasses.replace(sequence, words=words))
    np.testing.assert_array_equal(found[variant].places, known.places)
    whole = lsh_attention.LSHAttention(7, 48, variant=variant)
    inner = {"params": whole.init(jax.random.key(0), target, sequence)["params"],
             lsh_attention.CONSTANTS: {"search": {"hyperplanes": planes}}}  # fmt: skip
    attend = attention.TargetAttention(2)
    np.testing.assert_array_equal(
      whole.apply(inner, target, sequence),
      attend.apply({"params": inner["params"]["attention"]}, target, found[variant]),
    )
  places = [np.asarray(one.places) for one in found.values()]
  assert (places[0] != places[1]).any(axis=1).sum() >= B - 2  # but of the empty and the one-step


def test_no_steps_to_find_is_refused():
  target, sequence = histories(40)
  with pytest.raises(ValueError, match="k must be at least 1, got 0"):
    lsh_attention.nearest_steps(target, sequence, simhash.hyperplanes(jax.random.key(5), D, 8), 0)


def test_words_of_another_search_are_refused():
  target, sequence = histories(40)
  planes = simhash.hyperplanes(jax.random.key(5), D, 48)
  words = simhash.fingerprints(sequence.rows, planes[:, :32])
  with pytest.raises(ValueError, match=r"expected words u32\[120, 2\] .* got \[120, 1\]"):
    lsh_attention.nearest_steps(target, dataclasses.replace(sequence, words=words), planes, 7)


@pytest.mark.parametrize("k", [40, 200])
def test_with_all_steps_it_is_full_attention_values_and_gradients(k):
  target, sequence = histories(40)
  module = lsh_attention.LSHAttention(k=k, num_heads=2)
  variables = made(module, target, sequence)
  full = attention.TargetAttention(2)

  def ours(params, target, rows):
    out = module.apply({**variables, "params": params}, target, sequence.replace(rows=rows))
    return jnp.sum(jnp.sin(out)), out

  def theirs(params, target, rows):
    out = full.apply({"params": params["attention"]}, target, sequence.replace(rows=rows))
    return jnp.sum(jnp.sin(out)), out

  arguments = (variables["params"], target, sequence.rows)
  (_, found), grads = jax.value_and_grad(ours, (0, 1, 2), has_aux=True)(*arguments)
  (_, expected), full_grads = jax.value_and_grad(theirs, (0, 1, 2), has_aux=True)(*arguments)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  # Sums of some hundred float32 products, in an order that is the compiler's.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), grads, full_grads)


def test_only_steps_that_are_found_have_a_gradient():
  target, sequence = histories(40)
  module = lsh_attention.LSHAttention(k=5)
  variables = made(module, target, sequence)

  def loss(variables, rows):
    return jnp.sum(jnp.sin(module.apply(variables, target, sequence.replace(rows=rows))))

  grads, of_rows = jax.grad(loss, (0, 1))(variables, sequence.rows)
  planes = planes_of(variables)
  found = lsh_attention.nearest_steps(target, sequence, planes, 5)
  reached = set(np.asarray(found.places)[np.asarray(found.mask)].tolist())
  moved = set(np.flatnonzero(np.asarray(of_rows).any(axis=1)).tolist())
  assert moved == reached and len(reached) < len(sequence.rows) / 2
  assert not np.asarray(planes_of(grads)).any()


def test_the_planes_are_constants_of_the_key_and_not_parameters():
  target, sequence = histories(10)
  module = lsh_attention.LSHAttention(k=3)
  variables = made(module, target, sequence)
  planes = planes_of(variables)
  assert planes.shape == (D, 2 * D)
  assert set(variables["params"]) == {"attention"}
  again = planes_of(made(module, target, sequence))
  np.testing.assert_array_equal(planes, again)
  other = planes_of(module.init(jax.random.key(1), target, sequence))
  assert (np.asarray(planes) != np.asarray(other)).all()
  once, twice = (module.apply(variables, target, sequence) for _ in range(2))
  np.testing.assert_array_equal(once, twice)


def test_empty_and_short_histories_give_zeros_and_no_nan():
  target, sequence = histories(12)
  module = lsh_attention.LSHAttention(k=8)
  variables = made(module, target, sequence)
  out, pull = jax.vjp(lambda rows: module.apply(variables, target, sequence.replace(rows=rows)),
                      sequence.rows)  # fmt: skip
  assert np.isfinite(out).all() and not np.asarray(out[1]).any() and np.asarray(out[2]).any()
  assert np.isfinite(pull(jnp.ones_like(out))[0]).all()
  narrow = module.apply(variables, target.astype(jnp.bfloat16), sequence)
  assert narrow.dtype == jnp.bfloat16 and np.isfinite(narrow.astype(jnp.float32)).all()


def recall(num_bits: int, *, k: int = 48, length: int = 1024, dim: int = 32) -> float:
  """Of the k steps of largest cosine, the share that is found, on interests in clusters."""
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(20, dim))
  steps = centres[rng.integers(0, 20, (32, length))] + 0.7 * rng.normal(size=(32, length, dim))
  target = centres[rng.integers(0, 20, 32)] + 0.7 * rng.normal(size=(32, dim))
  cosines = np.einsum("bln,bn->bl", steps, target) / np.linalg.norm(steps, axis=-1)
  best = np.argsort(-cosines, axis=1)[:, :k]
  sequence = sequences.of_embeddings(jnp.asarray(steps, jnp.float32), jnp.ones((32, length), bool))
  planes = simhash.hyperplanes(jax.random.key(7), dim, num_bits)
  found = lsh_attention.nearest_steps(jnp.asarray(target, jnp.float32), sequence, planes, k)
  places = np.asarray(found.places) - np.arange(32)[:, None] * length
  return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(places, best, strict=True)]))


def test_more_bits_find_more_and_twice_the_width_finds_most():
  """The floor, 0.6 at m = 2 D where chance is 48 / 1024, was fixed before the run (law T5)."""
  found = [recall(num_bits) for num_bits in (8, 16, 32, 64, 128, 256)]
  assert all(b > a for a, b in zip(found, found[1:], strict=False)), found
  assert found[3] >= 0.6 > 10 * 48 / 1024, found


@pytest.mark.parametrize(("length", "least"), [(1024, 15), (2048, 30)])
def test_with_known_fingerprints_full_attention_costs_many_times_the_operations(length, least):
  """Law T7, by the compiler's count: D = 128, k = 48, 256 bits, one candidate a user."""
  users, dim = 4, 128
  steps = jnp.zeros((users, length, dim))
  target, mask = jnp.zeros((users, dim)), jnp.ones((users, length), bool)
  planes = simhash.hyperplanes(jax.random.key(0), dim, 256)
  words = simhash.fingerprints(steps, planes)
  module = attention.TargetAttention(4)
  params = module.init(jax.random.key(0), target, sequences.of_embeddings(steps, mask))["params"]

  def projected(params, target, steps):  # as the paper prints it: keys and values of every step
    query = jnp.einsum("bt,thd->bhd", target, params["query"])
    key, value = (jnp.einsum("bln,nhd->blhd", steps, params[name]) for name in ("key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bhd,blhd->bhl", query, key))
    seen = jnp.einsum("bhl,blhd->bhd", weights, value)
    return jnp.einsum("bhd,hdo->bo", seen, params["out"])

  def eta(params, target, steps, words):
    sequence = sequences.of_embeddings(steps, mask)
    known = dataclasses.replace(sequence, words=words.reshape(-1, words.shape[-1]))
    found = lsh_attention.nearest_steps(target, known, planes, 48)
    return projected(params, target, found.embeddings())

  flops = [
    jax.jit(fn).lower(*arguments).compile(xla_flags.as_shipped()).cost_analysis()["flops"]
    for fn, arguments in (
      (projected, (params, target, steps)),
      (eta, (params, target, steps, words)),
    )
  ]
  assert flops[0] >= least * flops[1], flops
