"""ETA, and the models of a user's history that it is measured against.

All of them read the same: who the user is, the candidate, the context, the latest steps of the
history, and what a search finds in all of it. Each of the two is answered by attention, by the
product of the answer with the candidate, and by counts of how many steps are like it; an MLP over
all that gives the logit. They differ in the search:

    ETA               the k steps that the candidate's fingerprint finds
    full attention    every step
    SIM, hard search  the latest k steps of the candidate's category
    average pooling   every step, averaged whoever asks
    DIN               no search: an activation unit reads the latest steps alone

*Source*: ETA (Chen et al. 2021, arXiv 2108.04468, sections 3 and 4); DIN (Zhou et al., KDD 2018);
SIM hard search (Pi et al., CIKM 2020). Products and counts are ours; without them all these models
lose most of what a history says (docs/eta.md).
*Read next*: jaxrec/layers/lsh_attention.py.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.layers import attention, interaction, lsh_attention, mlp, sequences, simhash

Embeddings = Mapping[str, Any]  # f32[B, D], or a RowSequence


class HistoryModel(nn.Module):
  """A candidate, its user's history, and everything else.

  Attributes:
    short_term: reads the latest ``short_length`` steps: a module from a target f32[B, D] and a
      ``RowSequence`` to f32[B, n], as ``Interest`` is.
    long_term: the same over what ``search`` finds; None: the latest steps are all that is read.
    top_mlp: widths of the MLP on top; the last is the number of logits.
    search: a module from a target and a ``RowSequence`` to the steps that matter; None: all do.
    target: name of the candidate's feature, f32[B, D].
    history: name of the history's feature, a sequence of rows f32[U, D].
    short_length: steps that ``short_term`` reads; 0: it does not.
    category: names of the candidate's category, a sequence of one step, and of the history's, a
      sequence beside it; the search is then for the latest ``k`` steps of that category.
    k: see ``category``.
    dtype: of the computation; parameters are float32 and so are the logits. None: float32.
    dropout: share of the MLP's hidden units set to zero when applied with a ``dropout`` key.
  """

  short_term: nn.Module
  long_term: nn.Module | None
  top_mlp: tuple[int, ...]
  search: nn.Module | None = None
  target: str = "item"
  history: str = "history"
  short_length: int = 16
  category: tuple[str, str] | None = None
  k: int = 48
  dtype: Any = None
  dropout: float = 0.0

  @nn.compact
  def __call__(self, dense: jax.Array, embeddings: Embeddings) -> jax.Array:
    """Logits of B examples, or of B candidates for one user.

    Args:
      dense: f32[B, I], or [1, I]; I may be 0.
      embeddings: by feature name: f32[B, D] of any D, and the history. Of one user they are [1, D],
        and the history is one sequence; what is of the candidates is [B, D].

    Returns:
      f32[B], or f32[B, T] if ``top_mlp`` ends in T > 1.

    Raises:
      ValueError: a feature is missing or not of its shape; the message names it.
    """
    asked, history = self._asked(embeddings)
    dtype = jnp.float32 if self.dtype is None else self.dtype
    target = asked.astype(dtype)
    parts = [dense, *self._pooled(embeddings).values()]
    if self.short_length:
      parts.append(self.short_term(target, history.latest(self.short_length)))
    if self.category is not None:
      category, categories = (embeddings[name] for name in self.category)
      history = same_category(category, categories, history, self.k)
    elif self.search is not None:
      history = self.search(asked, history)  # whose fingerprint is that of its row, unrounded
    if self.long_term is not None:
      parts.append(self.long_term(target, history))
    parts = [jnp.broadcast_to(part, (len(target), part.shape[1])) for part in parts]
    x = jnp.concatenate([part.astype(dtype) for part in parts], axis=1)
    top = mlp.MLP(self.top_mlp, activate_last=False, dtype=dtype, dropout=self.dropout, name="top")
    logits = top(x).astype(jnp.float32)
    return logits[:, 0] if self.top_mlp[-1] == 1 else logits

  def _asked(self, embeddings: Embeddings) -> tuple[jax.Array, sequences.RowSequence]:
    if not self.short_length and self.long_term is None:
      raise ValueError("model.history.short_length: must be at least 1, as nothing else is read")
    named = [("target", self.target), ("history", self.history)]
    named += [("category", name) for name in self.category or ()]
    for role, name in named:
      if name not in embeddings:
        raise ValueError(f"{role}: no feature {name!r} among {', '.join(embeddings)}")
    target, history = embeddings[self.target], embeddings[self.history]
    for role, name in named[1:]:
      if not isinstance(embeddings[name], sequences.RowSequence):
        raise ValueError(
          f"{role} {name!r}: expected a sequence, got one vector an example; its feature needs "
          "combiner 'none' (--set data.combiner=none)"
        )
    if isinstance(target, sequences.RowSequence) or target.shape[1:] != history.rows.shape[1:]:
      raise ValueError(
        f"target {self.target!r}: expected [B, {history.rows.shape[1]}], as wide as the history "
        f"{self.history!r}, got {getattr(target, 'shape', 'a sequence')}"
      )
    return target, history

  def _pooled(self, embeddings: Embeddings) -> Mapping[str, jax.Array]:
    return collections.OrderedDict(
      (name, embedding)
      for name, embedding in interaction.ordered(embeddings).items()
      if not isinstance(embedding, sequences.RowSequence)
    )


class Interest(nn.Module):
  """What a unit says of a history, how it meets the candidate, and how many steps are like it.

  Attributes:
    unit: a module from a target f32[B, D] and a ``RowSequence`` to f32[B, n].
    has_product: whether the answer times the candidate stands beside the answer; then n = D.
    kernels: sharpness of the counts (``layers.kernel_counts``), at first; empty: there are none.
  """

  unit: nn.Module
  has_product: bool = True
  kernels: tuple[float, ...] = attention.KERNELS

  @nn.compact
  def __call__(self, target: jax.Array, sequence: sequences.RowSequence) -> jax.Array:
    """f32[B, n + n + K].

    Raises:
      ValueError: there is to be a product, of vectors that are not equally wide.
    """
    answer = self.unit(target, sequence)
    if self.has_product and answer.shape != target.shape:
      raise ValueError(
        f"product of a candidate {target.shape[1]} wide with an answer {answer.shape[1]} wide: "
        "choose a number of heads that divides the width, or has_product=False"
      )
    found = [answer, answer * target] if self.has_product else [answer]
    if self.kernels:
      counts = attention.KernelCounts(self.kernels, name="counts")
      found.append(counts(target, sequence).astype(answer.dtype))
    return jnp.concatenate(found, axis=1)


class MeanPooling(nn.Module):
  """The mean of the steps, whoever asks; zeros of an empty history."""

  def __call__(self, target: jax.Array, sequence: sequences.RowSequence) -> jax.Array:
    """f32[B, D]."""
    lengths = jnp.sum(sequence.mask, axis=1, keepdims=True)
    total = jnp.sum(sequence.embeddings().astype(target.dtype), axis=1)
    return jnp.broadcast_to(total / jnp.maximum(lengths, 1).astype(target.dtype), target.shape)


def same_category(
  category: sequences.RowSequence,
  categories: sequences.RowSequence,
  history: sequences.RowSequence,
  k: int,
) -> sequences.RowSequence:
  """SIM's hard search: the latest k steps of the candidate's category, the latest first.

  Args:
    category: of the candidate, a sequence of one step.
    categories: of the history's steps, rows of the same stack as ``category``'s.
    history: of as many steps.
    k: how many.
  """
  is_same = (categories.places == category.places[:, :1]) & categories.mask & history.mask
  return history.take(*simhash.nearest(jnp.zeros(is_same.shape, jnp.int32), is_same, k, num_bits=0))


def ETA(
  top_mlp: tuple[int, ...],
  *,
  k: int = 48,
  num_bits: int | None = None,
  variant: str = "inner_product",
  **fields: Any,
) -> HistoryModel:
  """ETA: target attention over the latest steps, and over the k nearest by fingerprint of all.

  ``k``, ``num_bits`` and ``variant`` are those of ``layers.LSHSearch``, ``fields`` those of
  ``FullAttention``; with ``has_product=False, kernels=()`` it is ETA as it is printed.
  """
  search = lsh_attention.LSHSearch(k, num_bits, variant)
  return FullAttention(top_mlp, search=search, **fields)


def FullAttention(
  top_mlp: tuple[int, ...],
  *,
  num_heads: int = 2,
  has_product: bool = True,
  kernels: tuple[float, ...] = attention.KERNELS,
  **fields: Any,
) -> HistoryModel:
  """Target attention over every step: what ETA approximates.

  ``has_product`` and ``kernels`` are those of ``Interest``, ``fields`` those of ``HistoryModel``.
  """
  short, long = (
    Interest(attention.TargetAttention(num_heads), has_product, kernels) for _ in range(2)
  )
  return HistoryModel(short, long, top_mlp, **fields)


def SIMHard(
  top_mlp: tuple[int, ...], category: tuple[str, str], *, k: int = 48, **fields: Any
) -> HistoryModel:
  """SIM with hard search: target attention over the latest k steps of the candidate's category."""
  return FullAttention(top_mlp, category=category, k=k, **fields)


def AveragePooling(
  top_mlp: tuple[int, ...],
  *,
  num_heads: int = 2,
  has_product: bool = True,
  kernels: tuple[float, ...] = attention.KERNELS,
  **fields: Any,
) -> HistoryModel:
  """Target attention over the latest steps, and the mean of all, which counts nothing."""
  short = Interest(attention.TargetAttention(num_heads), has_product, kernels)
  return HistoryModel(short, Interest(MeanPooling(), has_product, ()), top_mlp, **fields)


def DIN(
  top_mlp: tuple[int, ...],
  *,
  hidden: tuple[int, ...] = (32,),
  has_product: bool = True,
  kernels: tuple[float, ...] = attention.KERNELS,
  **fields: Any,
) -> HistoryModel:
  """DIN: an activation unit over the latest steps alone."""
  short = Interest(attention.ActivationUnit(hidden), has_product, kernels)
  return HistoryModel(short, None, top_mlp, **fields)
