"""Models by name, with as many logits as labels and with dropout where it is asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import models
from jaxrec.config import ConfigError
from jaxrec.config.experiment import VARIANTS, HistoryConfig, ModelConfig
from jaxrec.layers import sequences, simhash
from jaxrec.models import registry


def inputs(width):
  rng = np.random.default_rng(0)
  return rng.normal(size=(8, 4)).astype(np.float32), {
    name: jnp.asarray(rng.normal(size=(8, width)), jnp.float32) for name in "abc"
  }


@pytest.mark.parametrize("name", registry.NAMES)
@pytest.mark.parametrize("num_logits", [1, 3])
def test_every_model_yields_a_logit_a_label(name, num_logits):
  asked = HistoryConfig(target="a", sequence="s", category=("t", "s"))
  config = ModelConfig(name, 8, bottom_mlp=(8,), top_mlp=(6, 1), cross_rank=2, history=asked)
  is_linear, (_, has_deep) = name == "logistic_regression", registry.parts(name) or (False, True)
  wide = ("a", "b", "c") if not has_deep else ()
  model = registry.build(config, num_logits=num_logits, wide=wide)
  dense, embeddings = inputs(num_logits if is_linear or wide else 8)
  if name == "wide_deep":
    embeddings = {**embeddings, "w": jnp.ones((8, num_logits))}
    model = registry.build(config, num_logits=num_logits, wide=("w",))
  if name in registry.OF_HISTORIES:
    steps = sequences.of_embeddings(jnp.ones((8, 5, 8)), jnp.ones((8, 5), bool))
    embeddings = {**embeddings, "s": steps, "t": steps.latest(1)}
  logits, _ = model.init_with_output(jax.random.key(0), dense, embeddings)
  assert logits.shape == ((8,) if num_logits == 1 else (8, num_logits))


HOW = HistoryConfig(
  target="a", sequence="s", short_length=7, num_heads=4, k=9, category=("t", "s"), num_bits=40,
  variant="paper_alg1", has_product=False, kernels=(2.0, 3.0),
)  # fmt: skip
FIELDS = {"target": "a", "history": "s", "short_length": 7, "dropout": 0.25, "dtype": jnp.bfloat16}
PLAIN = {"has_product": False, "kernels": (2.0, 3.0)}


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    (
      "eta",
      models.ETA((6, 1), k=9, num_bits=40, variant="paper_alg1", num_heads=4, **PLAIN, **FIELDS),
    ),
    ("full_attention", models.FullAttention((6, 1), num_heads=4, **PLAIN, **FIELDS)),
    ("din", models.DIN((6, 1), **PLAIN, **FIELDS)),
    ("average_pooling", models.AveragePooling((6, 1), num_heads=4, **PLAIN, **FIELDS)),
    ("sim_hard", models.SIMHard((6, 1), ("t", "s"), k=9, num_heads=4, **PLAIN, **FIELDS)),
  ],
)
def test_every_setting_of_a_history_reaches_its_model(name, expected):
  assert VARIANTS == simhash.VARIANTS
  config = ModelConfig(name, 8, top_mlp=(6, 1), history=HOW, precision="bf16", dropout=0.25)
  assert registry.build(config) == expected
  plain = registry.build(
    ModelConfig(name, 8, top_mlp=(6, 1), history=HistoryConfig(category=("t", "s")))
  )
  assert plain != expected


def test_what_a_model_is_asked_for_is_in_its_parts():
  model = registry.build(ModelConfig("eta", 8, top_mlp=(6, 1), history=HOW))
  assert (model.search.k, model.search.num_bits, model.search.variant) == (9, 40, "paper_alg1")
  for unit in (model.short_term, model.long_term):
    assert (unit.unit.num_heads, unit.has_product, unit.kernels) == (4, False, (2.0, 3.0))
  hard = registry.build(ModelConfig("sim_hard", 8, top_mlp=(6, 1), history=HOW))
  assert (hard.k, hard.category, hard.search) == (9, ("t", "s"), None)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("num_bits", 9000, "model.history.num_bits: must be at most 8192, got 9000"),
    ("variant", "paper", "model.history.variant: 'paper'; .*paper_alg1"),
    ("kernels", (4.0, 0.0), "model.history.kernels: must be numbers above 0"),
  ],
)
def test_a_setting_that_cannot_be_is_named(field, value, message):
  with pytest.raises(ConfigError, match=message):
    HistoryConfig(**{field: value})


def test_a_hard_search_without_categories_is_refused():
  with pytest.raises(ConfigError, match="model.history.category: sim_hard needs two features"):
    registry.build(ModelConfig("sim_hard"))


@pytest.mark.parametrize("name", ["dlrm", "dlrm_dcnv2"])
@pytest.mark.parametrize(("bottom", "top"), [((50, 8), (1,)), ((8,), (50, 1))])
def test_dropout_reaches_both_mlps_in_training_and_neither_in_serving(name, bottom, top):
  config = ModelConfig(name, 8, bottom_mlp=bottom, top_mlp=top, cross_rank=2, dropout=0.5)
  model, case = registry.build(config), inputs(8)
  without = registry.build(ModelConfig(name, 8, bottom_mlp=bottom, top_mlp=top, cross_rank=2))
  params = model.init(jax.random.key(0), *case)
  served = model.apply(params, *case)
  np.testing.assert_array_equal(served, without.apply(params, *case))
  trained = model.apply(params, *case, rngs={"dropout": jax.random.key(1)})
  assert (np.asarray(trained) != np.asarray(served)).all()
