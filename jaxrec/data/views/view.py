"""A data set seen otherwise: other features made of the same batches.

Compression splits the ids of a feature, a wide part reads them once more; neither should be any
business of the data set. A ``View`` is a source around a source with a spec of its own and a
function from batch to batch, and views may lie around each other.

Read next: jaxrec/runs/setup/compressed_tables.py, jaxrec/data/views/wide_features.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxrec.data import pipeline
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import batch_checks

_DELEGATED = ("ceiling", "describe", "group_names")  # what a source may offer beside its examples


@dataclasses.dataclass(frozen=True)
class View:
  """``source`` with other features. Where the source describes itself or knows its ceiling, so does
  this.

  Attributes:
    source: the data set as it is.
    spec: of this one's batches.
    function: from a host batch of the source's to one of this; ValueError for one that it cannot.
  """

  source: pipeline.Source
  spec: batch_lib.BatchSpec
  function: Callable[[batch_lib.Batch], batch_lib.Batch]

  def num_examples(self, split: str) -> int | None:
    return self.source.num_examples(split)

  def read(self, indices: np.ndarray, split: str = "train") -> batch_lib.Batch:
    """The source's examples as this one's.

    Raises:
      BadExampleError: a batch that ``function`` refuses.
    """
    batch = self.source.read(indices, split)
    try:
      return self.function(batch)
    except ValueError as error:
      raise batch_checks.BadExampleError(f"{error} (split {split!r})") from error

  def batches(self, batch_size: int, **options: Any) -> Iterator[batch_lib.Batch]:
    """Host batches of these features, as ``pipeline.batches`` makes them."""
    return pipeline.batches(self, batch_size, **options)

  def __getattr__(self, name: str) -> Any:
    if name not in _DELEGATED:  # nothing else: what it read would not be of these features
      raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
    return getattr(self.source, name)


def original(source: pipeline.Source) -> pipeline.Source:
  """The data set behind all views."""
  return original(source.source) if isinstance(source, View) else source


def around(view: pipeline.Source, source: pipeline.Source) -> pipeline.Source:
  """``source`` seen as ``view`` sees its own."""
  if not isinstance(view, View):
    return source
  return dataclasses.replace(view, source=around(view.source, source))


def convert(view: pipeline.Source, batch: batch_lib.Batch) -> batch_lib.Batch:
  """A host batch of the data set behind ``view`` as one of ``view``."""
  return view.function(convert(view.source, batch)) if isinstance(view, View) else batch
