"""A wide part's features: every id and cross of a data set once more, with one weight each.

A wide part is linear over ids, so its weights are tables of one number a row and label, which start
at zero: they stack, shard and are cached like any others, and have a row optimizer of their own.
The data set need not know: a view reads its features twice, deep and wide. Its crosses are wide
alone, as memorising them is what the wide part is for.

Source: Cheng et al., "Wide & deep learning for recommender systems" (DLRS 2016).
Read next: jaxrec/models/wide_deep.py.
"""

from __future__ import annotations

import dataclasses

from jaxrec import config as config_lib
from jaxrec.data import pipeline
from jaxrec.data.views import view as view_lib
from jaxrec.inputs import batch as batch_lib

OPTIMIZER = "wide"  # TableConfig.optimizer of the weights
_PREFIX = "wide/"  # of their names; no code goes by it


@dataclasses.dataclass(frozen=True)
class ReadTwice:
  """From a data set's batches to those with wide features beside the deep ones.

  Attributes:
    deep: names of the features that are kept.
    wide: by name of a wide feature, the feature whose ids it has.
  """

  deep: tuple[str, ...]
  wide: tuple[tuple[str, str], ...]

  def __call__(self, batch: batch_lib.Batch) -> batch_lib.Batch:
    ids = {name: batch.ids[name] for name in self.deep}
    ids |= {name: batch.ids[source] for name, source in self.wide}
    return dataclasses.replace(batch, ids=ids)


def widened(
  source: pipeline.Source, *, has_wide: bool, has_deep: bool
) -> tuple[pipeline.Source, tuple[str, ...]]:
  """The data set as a wide part and a deep part read it, and the names of the wide features."""
  spec = source.spec
  deep = tuple(f for f in spec.features if has_deep and f.name not in spec.crosses)
  read = tuple(f for f in spec.features if has_wide)
  wide = tuple(_as_weights(feature, len(spec.labels)) for feature in read)
  names = tuple(feature.name for feature in wide)
  function = ReadTwice(
    tuple(feature.name for feature in deep),
    tuple(zip(names, (feature.name for feature in read), strict=True)),
  )
  seen = dataclasses.replace(spec, features=(*deep, *wide), crosses=())
  return view_lib.View(source, seen, function), names


def weights_of(table: config_lib.TableConfig, num_labels: int) -> config_lib.TableConfig:
  """``table`` with one number a row and label, which starts at zero."""
  zeros = config_lib.Initializer("constant", 0.0)
  return dataclasses.replace(table, embedding_dim=num_labels, initializer=zeros)


def _as_weights(feature: config_lib.FeatureConfig, num_labels: int) -> config_lib.FeatureConfig:
  """``feature`` on a table of one number a row and label; a bag's weights add up."""
  table = dataclasses.replace(
    weights_of(feature.table, num_labels),
    name=_PREFIX + feature.table.name,
    optimizer=OPTIMIZER,
  )
  return dataclasses.replace(feature, name=_PREFIX + feature.name, table=table, combiner="sum")


def sources(view: pipeline.Source) -> dict[str, str]:
  """By table of a wide feature in ``view``, the table whose ids it reads."""
  while isinstance(view, view_lib.View) and not isinstance(view.function, ReadTwice):
    view = view.source
  if not isinstance(view, view_lib.View) or not isinstance(view.function, ReadTwice):
    return {}
  table_of = {f.name: f.table.name for f in (*view.spec.features, *view.source.spec.features)}
  return {table_of[name]: table_of[source] for name, source in view.function.wide}
