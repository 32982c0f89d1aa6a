"""Models of histories: what they find, what they share, and what has no gradient (T3, T4, T9)."""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import models
from jaxrec.layers import lsh_attention, sequences
from jaxrec.models import history

B, L, D = 5, 30, 8
MAKERS = {
  "eta": lambda **fields: models.ETA((8, 1), k=6, **fields),
  "full_attention": lambda **fields: models.FullAttention((8, 1), **fields),
  "din": lambda **fields: models.DIN((8, 1), **fields),
  "average_pooling": lambda **fields: models.AveragePooling((8, 1), **fields),
  "sim_hard": lambda **fields: models.SIMHard((8, 1), ("kind", "kinds"), k=6, **fields),
}


def sequence_of(rng, lengths, length=L, num_rows=40):
  mask = np.arange(length) < np.asarray(lengths)[:, None]
  rows = jnp.asarray(rng.normal(size=(num_rows, D)), jnp.float32)
  places = np.where(mask, rng.integers(0, num_rows, mask.shape), num_rows)
  return sequences.RowSequence(rows, jnp.asarray(places, jnp.int32), jnp.asarray(mask))


def inputs(seed=0, lengths=(30, 0, 1, 17, 29)):
  rng = np.random.default_rng(seed)
  found = sequence_of(rng, lengths)
  kinds = sequence_of(rng, lengths, num_rows=4)
  own = sequences.RowSequence(
    kinds.rows, jnp.asarray(rng.integers(0, 4, (B, 1)), jnp.int32), jnp.ones((B, 1), bool)
  )
  embeddings = collections.OrderedDict(
    user=jnp.asarray(rng.normal(size=(B, 3)), jnp.float32),
    item=found.rows[jnp.asarray(rng.integers(0, 40, B))],
    history=found,
    kind=own,
    kinds=kinds,
  )
  return jnp.asarray(rng.normal(size=(B, 2)), jnp.float32), embeddings


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    *((name, None) for name in MAKERS),
    ("eta", jnp.bfloat16),
    *(
      pytest.param(name, jnp.bfloat16, marks=pytest.mark.nightly)
      for name in MAKERS
      if name != "eta"
    ),
  ],
)
def test_logits_and_gradients_are_finite_whatever_the_history(name, dtype):
  dense, embeddings = inputs()
  model = MAKERS[name](dtype=dtype)
  variables = model.init(jax.random.key(0), dense, embeddings)
  logits = model.apply(variables, dense, embeddings)
  assert logits.shape == (B,) and logits.dtype == jnp.float32
  np.testing.assert_array_equal(logits, model.apply(variables, dense, embeddings))

  def loss(variables, rows, target):
    changed = collections.OrderedDict(embeddings)
    changed["history"], changed["item"] = embeddings["history"].replace(rows=rows), target
    return jnp.sum(jnp.sin(model.apply(variables, dense, changed)))

  arguments = (variables, embeddings["history"].rows, embeddings["item"])
  grads = jax.grad(loss, (0, 1, 2))(*arguments)
  assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(grads))
  assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads[0]["params"]))


def test_the_models_differ_in_their_search_alone():
  dense, embeddings = inputs()
  shapes = {
    name: jax.tree.map(
      jnp.shape, jax.eval_shape(MAKERS[name]().init, jax.random.key(0), dense, embeddings)["params"]
    )
    for name in MAKERS
  }
  assert shapes["eta"] == shapes["full_attention"] == shapes["sim_hard"]
  # dense, user and candidate; of each unit the answer, its product with the candidate, the counts
  inputs_of_top = shapes["eta"]["top"]["layer_0"]["kernel"][0]
  assert inputs_of_top == 2 + 3 + D + 2 * (D + D + 3)
  init = models.ETA((8, 1), kernels=()).init
  bare = jax.eval_shape(init, jax.random.key(0), dense, embeddings)["params"]
  assert bare["top"]["layer_0"]["kernel"].shape[0] == inputs_of_top - 6
  init = models.ETA((8, 1), kernels=(), has_product=False).init
  printed = jax.eval_shape(init, jax.random.key(0), dense, embeddings)["params"]
  assert printed["top"]["layer_0"]["kernel"].shape[0] == 2 + 3 + D + 2 * D
  assert set(printed["long_term"]) == {"unit"}
  assert set(shapes["din"]) == {"short_term", "top"}
  assert set(shapes["average_pooling"]) == {"short_term", "top"}


def test_a_product_of_unlike_widths_is_refused():
  dense, embeddings = inputs()
  with pytest.raises(ValueError, match="candidate 8 wide with an answer 9 wide"):
    models.ETA((8, 1), num_heads=3).init(jax.random.key(0), dense, embeddings)


@pytest.mark.parametrize("name", MAKERS)
def test_candidates_of_one_user_are_scored_as_if_each_had_a_copy_of_the_user(name):
  dense, embeddings = inputs()
  model = MAKERS[name]()
  variables = model.init(jax.random.key(0), dense, embeddings)
  own = ("item", "kind")  # of the candidate

  def of_one(x, b):
    return x[b : b + 1] if x.shape[0] == B else x  # the rows of a sequence stay

  def of_each(x, b):
    return jnp.broadcast_to(x[b], x.shape) if x.shape[0] == B else x

  for b in (0, 1, 3):
    logits = []
    for change in (of_one, of_each):
      changed = {
        feature: found if feature in own else jax.tree.map(lambda x: change(x, b), found)  # noqa: B023
        for feature, found in embeddings.items()
      }
      logits.append(model.apply(variables, change(dense, b), collections.OrderedDict(changed)))
    assert logits[0].shape == (B,) and len(np.unique(logits[0])) == B
    np.testing.assert_allclose(*logits, atol=1e-6)


@pytest.mark.parametrize("k", [L, 1000])
def test_eta_that_finds_all_steps_is_full_attention(k):
  dense, embeddings = inputs()
  model = models.ETA((8, 1), k=k)
  variables = model.init(jax.random.key(0), dense, embeddings)
  full = models.FullAttention((8, 1))
  np.testing.assert_allclose(
    model.apply(variables, dense, embeddings),
    full.apply({"params": variables["params"]}, dense, embeddings),
    atol=1e-6,
  )


@pytest.mark.parametrize("name", MAKERS)
def test_without_a_short_length_the_latest_steps_are_not_read_apart(name):
  dense, embeddings = inputs()
  model = MAKERS[name](short_length=0)
  if name == "din":
    with pytest.raises(ValueError, match="short_length: must be at least 1"):
      model.init(jax.random.key(0), dense, embeddings)
    return
  params = model.init(jax.random.key(0), dense, embeddings)["params"]
  assert set(params) == {"long_term", "top"} - (
    {"long_term"} if name == "average_pooling" else set()
  )


def test_a_bf16_model_searches_with_the_candidates_own_fingerprint():
  """Rounded to bfloat16 first, one item in a hundred would not find itself."""
  rng = np.random.default_rng(0)
  rows = jnp.asarray(rng.normal(size=(4000, D)), jnp.float32)
  places = jnp.arange(4000, dtype=jnp.int32)[:, None]
  one_step = sequences.RowSequence(rows, places, jnp.ones((4000, 1), bool))
  seen = []

  class Search(lsh_attention.LSHSearch):
    def __call__(self, target, sequence):
      seen.append(jnp.array_equal(target, sequence.rows))
      return super().__call__(target, sequence)

  model = models.ETA((4, 1), k=1, dtype=jnp.bfloat16).clone(search=Search(1))
  embeddings = collections.OrderedDict(item=rows, history=one_step)
  model.init(jax.random.key(0), jnp.zeros((4000, 0)), embeddings)
  assert seen == [True]


def test_short_term_attention_sees_the_latest_steps_alone():
  dense, embeddings = inputs()
  model = models.DIN((8, 1), short_length=4)
  variables = model.init(jax.random.key(0), dense, embeddings)

  def logits(rows):
    changed = embeddings | {"history": sequences.of_embeddings(rows, embeddings["history"].mask)}
    return model.apply(variables, dense, collections.OrderedDict(changed))

  steps = embeddings["history"].embeddings()
  moved = jax.jacobian(logits)(steps)
  for b, length in enumerate((30, 0, 1, 17, 29)):
    felt = np.flatnonzero(np.asarray(moved[b, b]).any(axis=1))
    assert felt.tolist() == list(range(max(0, length - 4), length))


def test_hard_search_finds_the_latest_of_the_same_category():
  _, embeddings = inputs()
  found = history.same_category(embeddings["kind"], embeddings["kinds"], embeddings["history"], 3)
  for b in range(B):
    kinds, mask = (
      np.asarray(embeddings["kinds"].places[b]),
      np.asarray(embeddings["history"].mask[b]),
    )
    steps = [
      step for step in range(L) if mask[step] and kinds[step] == embeddings["kind"].places[b, 0]
    ]
    expected = np.asarray(embeddings["history"].places[b])[steps[::-1][:3]]
    assert np.asarray(found.places[b])[np.asarray(found.mask[b])].tolist() == expected.tolist()


def test_a_candidate_without_a_category_finds_nothing():
  _, embeddings = inputs()
  none = sequences.RowSequence(
    embeddings["kinds"].rows, jnp.full((B, 1), 4, jnp.int32), jnp.zeros((B, 1), bool)
  )
  found = history.same_category(none, embeddings["kinds"], embeddings["history"], 3)
  assert not np.asarray(found.mask).any()


def test_average_pooling_is_the_mean_and_zeros_of_nothing():
  _, embeddings = inputs()
  steps = embeddings["history"]
  found = history.MeanPooling().apply({}, embeddings["item"], steps)
  for b in range(B):
    kept = np.asarray(steps.embeddings()[b])[np.asarray(steps.mask[b])]
    expected = kept.mean(axis=0) if len(kept) else np.zeros(D)
    np.testing.assert_allclose(found[b], expected, atol=1e-6)


def test_several_labels_have_a_logit_each():
  dense, embeddings = inputs()
  model = models.ETA((8, 3), k=6)
  variables = model.init(jax.random.key(0), dense, embeddings)
  assert model.apply(variables, dense, embeddings).shape == (B, 3)
  assert variables[lsh_attention.CONSTANTS]["search"]["hyperplanes"].shape == (D, 2 * D)


@pytest.mark.parametrize(
  ("change", "fields", "message"),
  [
    ({"history": None}, {}, "history: no feature 'history' among user, item, kind"),
    ({"history": jnp.zeros((B, D))}, {}, "history 'history': expected a sequence, got one vector"),
    ({"item": jnp.zeros((B, 3))}, {}, r"target 'item': expected \[B, 8\], as wide as the history"),
    ({}, {"target": "itm"}, "target: no feature 'itm' among"),
    ({}, {"category": ("user", "kinds")}, "category 'user': expected a sequence"),
  ],
)
def test_features_that_do_not_fit_are_named(change, fields, message):
  dense, embeddings = inputs()
  changed = collections.OrderedDict(
    (name, change.get(name, value)) for name, value in embeddings.items()
  )
  changed = collections.OrderedDict((n, v) for n, v in changed.items() if v is not None)
  with pytest.raises(ValueError, match=message):
    models.FullAttention((8, 1), **fields).init(jax.random.key(0), dense, changed)
