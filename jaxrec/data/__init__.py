"""Data sets and the input path: from examples by number to batches on the device."""

from jaxrec.data.event_log import from_events
from jaxrec.data.pipeline import InputOptions, Source, batches
from jaxrec.data.prefetch import Prefetcher, PrefetchStats, prefetch
from jaxrec.data.registry import load
from jaxrec.data.stored import StoredTable
from jaxrec.data.synthetic import SyntheticClicks, default_features, synthetic
from jaxrec.data.table import from_arrow, from_iterator, from_pandas

__all__ = [
  "InputOptions",
  "PrefetchStats",
  "Prefetcher",
  "Source",
  "StoredTable",
  "SyntheticClicks",
  "batches",
  "default_features",
  "from_arrow",
  "from_events",
  "from_iterator",
  "from_pandas",
  "load",
  "prefetch",
  "synthetic",
]
