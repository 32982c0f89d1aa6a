"""From the columns of a table to the features of a batch: the fitted transforms.

``Transforms`` is a schema with all that the data decided: vocabularies, quantiles, means.
``encode`` is a pure function of it and of any rows of the table; training, evaluation and serving
all call it, on chunks of any size, and get the same bits. It is fitted by streaming
(data/prepared/fit_transforms.py) and saved beside the checkpoints.

Source: design; the idea of tf.Transform (one function for training and serving) without its graph.
Read next: jaxrec/data/prepared/fit_transforms.py, where it is fitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec import config
from jaxrec.features import column_values, numeric, quantiles, vocabulary
from jaxrec.features import crosses as crosses_lib
from jaxrec.features import schema as schema_lib
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import id_bags

BUCKETS = "_buckets"  # of a numeric column: the feature is "<column>_buckets"


class Encoded(NamedTuple):
  """N rows of a table as numbers.

  Attributes:
    ids: i32[N, F]: one id for each single-valued feature, in order.
    dense: f32[N, I].
    bags: for each feature of several ids, (values i32[M], lengths i32[N]).
  """

  ids: np.ndarray
  dense: np.ndarray
  bags: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Transforms:
  """A schema, and what was fitted for it.

  Attributes:
    schema: the columns.
    kinds: of each column, how its values were spelt in training (column_values.py).
    rows: of each table of ids, value to row.
    steps: of each dense column, its fitted steps.
    quantiles: of each bucketised column, its buckets.
    max_lengths: ids of an example, at most, of each list, sequence and cross of such.
    crosses: of each cross, combination to row.
  """

  schema: schema_lib.Schema
  kinds: Mapping[str, str]
  rows: Mapping[str, vocabulary.Vocabulary | vocabulary.HashedRows]
  steps: Mapping[str, tuple[numeric.Step, ...]]
  quantiles: Mapping[str, quantiles.Quantiles]
  max_lengths: Mapping[str, int]
  crosses: Mapping[str, crosses_lib.CrossRows] = dataclasses.field(default_factory=dict)

  @property
  def dense_names(self) -> tuple[str, ...]:
    return tuple(n for n, c in self.schema.columns.items() if c.is_numeric and c.dense)

  def features(self, embedding_dim: int) -> tuple[config.FeatureConfig, ...]:
    """The categorical inputs, in column order; tables without a width of their own have this
    one.
    """
    found = []
    for name, column in self.schema.columns.items():
      if not column.is_embedded:
        continue
      rows, table = self.num_rows(name), column.table or name
      if column.is_numeric:
        name = table = name + BUCKETS
      width = column.embedding_dim or embedding_dim
      found.append(
        config.FeatureConfig(
          name,
          config.TableConfig(table, vocab_size=rows, embedding_dim=width),
          combiner=column.combiner if column.is_bag else "sum",
          ids_per_bag=self.max_lengths[name] if column.is_bag else 1,
        )
      )
    for name, cross in self.schema.crosses.items():
      width = cross.embedding_dim or embedding_dim
      crossed = config.TableConfig(name, self.crosses[name].num_rows, embedding_dim=width)
      longest = self.max_lengths.get(name, 1)
      found.append(config.FeatureConfig(name, crossed, ids_per_bag=longest))
    return tuple(found)

  def num_rows(self, column: str) -> int:
    """How many ids the column has."""
    if self.schema.columns[column].is_numeric:
      return self.quantiles[column].num_rows
    return self.rows[self.schema.columns[column].table or column].num_rows

  def spec(self, embedding_dim: int) -> batch_lib.BatchSpec:
    """What batches of these transforms hold."""
    return batch_lib.BatchSpec(
      self.features(embedding_dim),
      num_dense=len(self.dense_names),
      labels=tuple(self.schema.labels),
      groups=self.schema.groups,
      dense_names=self.dense_names,
      crosses=tuple(self.schema.crosses),
    )

  def encode(self, table: pa.Table | pa.RecordBatch) -> Encoded:
    """The rows of ``table`` as numbers; columns that are not in the schema are ignored.

    Raises:
      BadExampleError: a column is missing, or holds what cannot be converted; or a list is longer
        than any seen in training.
    """
    columns = column_values.features(table, self.schema, self.kinds, self.max_lengths)
    return self.encode_canonical(columns, table.num_rows)

  def encode_canonical(self, columns: Mapping[str, pa.Array], num_rows: int) -> Encoded:
    """``encode`` of columns that ``column_values.features`` has made."""
    dense = [
      numeric.to_dense(self.steps[name], columns[name].to_numpy(zero_copy_only=False))
      for name in self.dense_names
    ]
    found = self.ids(columns)
    for name in self.crosses:
      keys, lengths = self.cross_keys(name, found)
      found[name] = crosses_lib.Bags(self.crosses[name].rows(keys), lengths)
    ids = [bags.values for bags in found.values() if bags.lengths is None]
    return Encoded(
      _side_by_side(ids, num_rows, np.int32),
      _side_by_side(dense, num_rows, np.float32),
      {n: (bags.values, bags.lengths) for n, bags in found.items() if bags.lengths is not None},
    )

  def ids(self, columns: Mapping[str, pa.Array]) -> dict[str, crosses_lib.Bags]:
    """Ids of the columns that have any, in order, without the crosses."""
    found: dict[str, crosses_lib.Bags] = {}
    for name, column in self.schema.columns.items():
      values = columns[name]
      if column.is_numeric:
        if column.buckets:
          numbers = values.to_numpy(zero_copy_only=False)
          found[name] = crosses_lib.Bags(self.quantiles[name].buckets(numbers))
        continue
      rows = self.rows[column.table or name]
      if column.is_bag:
        flat, lengths = pc.list_flatten(values), column_values.list_lengths(values)
        found[name] = crosses_lib.Bags(rows.rows(flat), lengths)
      else:
        found[name] = crosses_lib.Bags(rows.rows(values))
    return found

  def cross_keys(self, name: str, ids: Mapping[str, crosses_lib.Bags]) -> crosses_lib.Bags:
    """Keys u64 of a cross's combinations in rows whose columns have ``ids``."""
    columns = self.schema.crosses[name].columns
    return crosses_lib.cross([ids[n] for n in columns], [self.num_rows(n) for n in columns])

  def batch(self, table: pa.Table | pa.RecordBatch) -> batch_lib.Batch:
    """The rows of ``table`` as a host batch to predict from: no labels, weights 1."""
    num_rows = table.num_rows
    return to_batch(
      self, self.encode(table), labels={}, weights=np.ones(num_rows, np.float32), groups={}
    )


def to_batch(
  transforms: Transforms,
  encoded: Encoded,
  *,
  labels: Mapping[str, np.ndarray],
  weights: np.ndarray,
  groups: Mapping[str, np.ndarray],
) -> batch_lib.Batch:
  """Encoded rows as a host batch, without a row plan."""
  ids, place = {}, 0
  for name in (*transforms.schema.columns, *transforms.schema.crosses):
    column = transforms.schema.columns.get(name)
    if name in encoded.bags:
      values, lengths = encoded.bags[name]
      ids[name] = id_bags.IdBags.from_lengths(
        values, lengths, capacity=len(lengths) * transforms.max_lengths[name]
      )
    elif column is None or column.is_embedded:
      feature = name + BUCKETS if column is not None and column.is_numeric else name
      ids[feature] = id_bags.IdBags(values=np.ascontiguousarray(encoded.ids[:, place]))
      place += 1
  return batch_lib.Batch(
    dense=encoded.dense, ids=ids, labels=dict(labels), weights=weights, groups=dict(groups)
  )


def _side_by_side(columns: list[np.ndarray], num_rows: int, dtype: type) -> np.ndarray:
  return np.stack(columns, axis=1) if columns else np.zeros((num_rows, 0), dtype)
