"""Ranking models: ``(dense, embeddings) -> logits``. They never see a table."""

from jaxrec.models.dcn import DLRMDCNv2
from jaxrec.models.dlrm import DLRM
from jaxrec.models.history import (
  HistoryModel,
  average_pooling,
  din,
  eta,
  full_attention,
  sim_hard,
)
from jaxrec.models.linear import LogisticRegression
from jaxrec.models.wide_deep import WideDeep

__all__ = [
  "DLRM",
  "DLRMDCNv2",
  "HistoryModel",
  "LogisticRegression",
  "WideDeep",
  "average_pooling",
  "din",
  "eta",
  "full_attention",
  "sim_hard",
]
