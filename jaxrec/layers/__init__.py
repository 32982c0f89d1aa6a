"""Layers of ranking models: pure functions over arrays, with thin Flax modules around them."""

from jaxrec.layers.attention import (
  ActivationUnit,
  KernelCounts,
  TargetAttention,
  kernel_counts,
  target_attention,
)
from jaxrec.layers.compression import (
  memory_ratio,
  merge_quotient_remainder,
  mixed_dims,
  quotient_remainder,
  split_ids,
)
from jaxrec.layers.cross import LowRankCross, cross_layer, low_rank_cross
from jaxrec.layers.embedding_bag import EmbeddingBag, embed_bags
from jaxrec.layers.interaction import dot_interaction, ordered
from jaxrec.layers.lsh_attention import LSHAttention, LSHSearch, nearest_steps
from jaxrec.layers.mlp import MLP, apply_mlp, dense
from jaxrec.layers.pooling import pool, to_sequence
from jaxrec.layers.sequences import RowSequence
from jaxrec.layers.simhash import fingerprints, hamming, hyperplanes, nearest
from jaxrec.layers.wide import wide_logits

__all__ = [
  "MLP",
  "ActivationUnit",
  "EmbeddingBag",
  "KernelCounts",
  "LSHAttention",
  "LSHSearch",
  "LowRankCross",
  "RowSequence",
  "TargetAttention",
  "apply_mlp",
  "cross_layer",
  "dense",
  "dot_interaction",
  "embed_bags",
  "fingerprints",
  "hamming",
  "hyperplanes",
  "kernel_counts",
  "low_rank_cross",
  "memory_ratio",
  "merge_quotient_remainder",
  "mixed_dims",
  "nearest",
  "nearest_steps",
  "ordered",
  "pool",
  "quotient_remainder",
  "split_ids",
  "target_attention",
  "to_sequence",
  "wide_logits",
]
