"""Criteo's click logs, Kaggle and Terabyte, from raw files to batches."""

from jaxrec.data.criteo.preparation import in_processes, prepare
from jaxrec.data.criteo.source import Criteo, load

__all__ = ["Criteo", "in_processes", "load", "prepare"]
