"""Data sets and the input path: from examples by number to batches on the device."""

from jaxrec.data.pipeline import InputOptions, Source, batches
from jaxrec.data.prefetch import Prefetcher, PrefetchStats, prefetch
from jaxrec.data.registry import load
from jaxrec.data.synthetic import SyntheticClicks, default_features, synthetic

__all__ = [
  "InputOptions",
  "PrefetchStats",
  "Prefetcher",
  "Source",
  "SyntheticClicks",
  "batches",
  "default_features",
  "load",
  "prefetch",
  "synthetic",
]
