from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import models
from tests.models import cases

WIDTHS = (("b", 1), ("a", 1), ("c", 1))


def expected_logits(params, dense, embeddings):
  logits = np.full(len(dense), params["bias"])
  if dense.shape[1]:
    logits = logits + dense @ params["kernel"]
  return (logits + sum(embedding[:, 0] for embedding in embeddings.values()))[:, None]


@pytest.mark.parametrize("num_dense", [4, 0])
def test_logits_and_all_gradients_equal_float64_numpy(strict_promotion, num_dense):
  model = models.LogisticRegression()
  case = cases.random_case(model, num_dense=num_dense, widths=WIDTHS)
  assert set(case[0]) == ({"bias", "kernel"} if num_dense else {"bias"})
  cases.check_logits_and_gradients(model, case, expected_logits)


def test_it_begins_at_the_ids_weights_alone():
  dense, embeddings = jnp.ones((2, 3)), {"a": jnp.array([[1.0], [2.0]]), "b": jnp.ones((2, 1))}
  logits, _ = models.LogisticRegression().init_with_output(jax.random.key(0), dense, embeddings)
  assert logits.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
  ("embedding", "message"),
  [
    (jnp.zeros((2, 8)), r"embedding 'user': expected \[B, 1\], got \(2, 8\).*embedding_dim=1"),
    (jnp.zeros((2, 5, 1)), r"embedding 'user': expected \[B, D\].*pool a sequence"),
  ],
)
def test_embeddings_that_are_not_one_weight_an_id_are_refused(embedding, message):
  with pytest.raises(ValueError, match=message):
    models.LogisticRegression().init(jax.random.key(0), jnp.zeros((2, 4)), {"user": embedding})


@pytest.mark.parametrize("num_dense", [4, 0])
def test_several_labels_are_regressions_side_by_side(strict_promotion, num_dense):
  model = models.LogisticRegression(3)
  widths = (("b", 3), ("a", 3), ("c", 3))
  case = cases.random_case(model, num_dense=num_dense, widths=widths)

  def expected(params, dense, embeddings):
    logits = params["bias"] + sum(embeddings.values())
    return logits + dense @ params["kernel"] if dense.shape[1] else logits

  cases.check_logits_and_gradients(model, case, expected)
  with pytest.raises(ValueError, match=r"expected \[B, 3\], got \(2, 1\).*embedding_dim=3"):
    model.init(jax.random.key(0), jnp.zeros((2, 4)), {"user": jnp.zeros((2, 1))})
