"""Criteo's click logs, Kaggle and Terabyte, from raw files to batches."""

from jaxrec.data.criteo.preparation import in_process, in_processes, prepare
from jaxrec.data.criteo.source import Criteo, load

__all__ = ["Criteo", "in_process", "in_processes", "load", "prepare"]
