"""Data sets and the input path: from examples by number to batches on the device."""

from jaxrec.data.datasets.synthetic import SyntheticClicks, default_features, synthetic
from jaxrec.data.events.event_log import from_events
from jaxrec.data.pipeline import InputOptions, Source, batches
from jaxrec.data.pipeline.prefetch import Prefetcher, PrefetchStats, prefetch
from jaxrec.data.prepared.from_table import from_arrow, from_iterator, from_pandas
from jaxrec.data.prepared.prepared_table import StoredTable
from jaxrec.data.registry import load

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
