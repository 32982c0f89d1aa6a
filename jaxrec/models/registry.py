"""Models by name, as train.py's flags give them. Add a model here to make it trainable by name.

Read next: jaxrec/models/dlrm.py.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxrec import config as config_lib
from jaxrec.config import experiment as experiment_lib
from jaxrec.models import dcn, dlrm, history, linear, wide_deep

OF_HISTORIES = ("eta", "full_attention", "din", "average_pooling", "sim_hard")
NAMES = (
  "dlrm", "dlrm_dcnv2", "logistic_regression", "wide_deep", "wide", "deep", *OF_HISTORIES
)  # fmt: skip


def parts(name: str) -> tuple[bool, bool] | None:
  """Whether the model of that name has a wide part, and a deep one; None where that is no matter.

  >>> parts("wide_deep"), parts("deep"), parts("dlrm")
  ((True, True), (False, True), None)
  """
  return {"wide_deep": (True, True), "wide": (True, False), "deep": (False, True)}.get(name)


def build(
  config: experiment_lib.ModelConfig, *, num_logits: int = 1, wide: tuple[str, ...] = ()
) -> nn.Module:
  """The model that ``config`` describes, with ``num_logits`` in place of the last of ``top_mlp``;
  ``wide`` are the features of its wide part.

  Raises:
    ConfigError: no such model, or not in that precision.
  """
  dtype = jnp.bfloat16 if config.precision == "bf16" else None
  top_mlp = (*config.top_mlp[:-1], num_logits)
  if config.name == "dlrm":
    return dlrm.DLRM(
      bottom_mlp=config.bottom_mlp,
      top_mlp=top_mlp,
      self_interaction=config.self_interaction,
      dtype=dtype,
      dropout=config.dropout,
    )
  if config.name == "dlrm_dcnv2":
    return dcn.DLRMDCNv2(
      bottom_mlp=config.bottom_mlp,
      top_mlp=top_mlp,
      cross_layers=config.cross_layers,
      cross_rank=config.cross_rank,
      dtype=dtype,
      dropout=config.dropout,
    )
  if (found := parts(config.name)) is not None:
    deep_mlp = top_mlp if found[1] else ()
    return wide_deep.WideDeep(wide, deep_mlp, dtype=dtype, dropout=config.dropout)
  if config.name == "logistic_regression":
    if dtype is not None:
      raise config_lib.ConfigError(
        "model.precision: logistic_regression is computed in f32 only; leave bf16 away"
      )
    return linear.LogisticRegression(num_logits)
  if config.name in OF_HISTORIES:
    return _of_histories(config, top_mlp, dtype)
  raise config_lib.ConfigError(
    f"model.name: no model {config.name!r}; {config_lib.did_you_mean(config.name, NAMES)}"
  )


def _of_histories(
  config: experiment_lib.ModelConfig, top_mlp: tuple[int, ...], dtype: Any
) -> nn.Module:
  how = config.history
  fields: dict[str, Any] = {
    "target": how.target,
    "history": how.sequence,
    "short_length": how.short_length,
    "has_product": how.has_product,
    "kernels": how.kernels,
    "dtype": dtype,
    "dropout": config.dropout,
  }
  if config.name == "din":
    return history.DIN(top_mlp, **fields)
  fields["num_heads"] = how.num_heads
  if config.name == "eta":
    return history.ETA(top_mlp, k=how.k, num_bits=how.num_bits, variant=how.variant, **fields)
  if config.name == "sim_hard":
    config_lib.require(
      len(how.category) == 2,
      "model.history.category: sim_hard needs two features, the candidate's category and the "
      f"history's, got {how.category}",
    )
    return history.SIMHard(top_mlp, (how.category[0], how.category[1]), k=how.k, **fields)
  make = {"full_attention": history.FullAttention, "average_pooling": history.AveragePooling}
  return make[config.name](top_mlp, **fields)
