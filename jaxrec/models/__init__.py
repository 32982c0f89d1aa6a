"""Ranking models: ``(dense, embeddings) -> logits``. They never see a table."""

from jaxrec.models.dcn import DLRMDCNv2
from jaxrec.models.dlrm import DLRM
from jaxrec.models.history import (
  DIN,
  ETA,
  AveragePooling,
  FullAttention,
  HistoryModel,
  SIMHard,
)
from jaxrec.models.linear import LogisticRegression
from jaxrec.models.wide_deep import WideDeep

__all__ = [
  "DIN",
  "DLRM",
  "ETA",
  "AveragePooling",
  "DLRMDCNv2",
  "FullAttention",
  "HistoryModel",
  "LogisticRegression",
  "SIMHard",
  "WideDeep",
]
