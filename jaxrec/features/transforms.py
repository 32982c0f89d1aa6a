"""From the columns of a table to the features of a batch: the fitted transforms.

``Transforms`` is a schema with all that the data decided: vocabularies, quantiles, means.
``encode`` is a pure function of it and of any rows of the table; training, evaluation and serving
all call it, on chunks of any size, and get the same bits. It is fitted by streaming
(data/fitting.py) and saved beside the checkpoints.

Source: design; the idea of tf.Transform (one function for training and serving) without its graph.
Read next: jaxrec/data/fitting.py, where it is fitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec import config
from jaxrec.features import batch as batch_lib
from jaxrec.features import canonical, id_bags, numeric, quantiles, vocabulary
from jaxrec.features import schema as schema_lib

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
    kinds: of each column, how its values were spelt in training (canonical.py).
    rows: of each table of ids, value to row.
    steps: of each dense column, its fitted steps.
    quantiles: of each bucketised column, its buckets.
    max_lengths: ids of an example, at most, of each list and sequence.
  """

  schema: schema_lib.Schema
  kinds: Mapping[str, str]
  rows: Mapping[str, vocabulary.Vocabulary | vocabulary.HashedRows]
  steps: Mapping[str, tuple[numeric.Step, ...]]
  quantiles: Mapping[str, quantiles.Quantiles]
  max_lengths: Mapping[str, int]

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
      if column.is_numeric:
        name, table, rows = name + BUCKETS, name + BUCKETS, self.quantiles[name].num_rows
      else:
        table = column.table or name
        rows = self.rows[table].num_rows
      width = column.embedding_dim or embedding_dim
      found.append(
        config.FeatureConfig(
          name,
          config.TableConfig(table, vocab_size=rows, embedding_dim=width),
          combiner=column.combiner if column.is_bag else "sum",
          ids_per_bag=self.max_lengths[name] if column.is_bag else 1,
        )
      )
    return tuple(found)

  def spec(self, embedding_dim: int) -> batch_lib.BatchSpec:
    """What batches of these transforms hold."""
    return batch_lib.BatchSpec(
      self.features(embedding_dim),
      num_dense=len(self.dense_names),
      labels=tuple(self.schema.labels),
      groups=self.schema.groups,
      dense_names=self.dense_names,
    )

  def encode(self, table: pa.Table | pa.RecordBatch) -> Encoded:
    """The rows of ``table`` as numbers; columns that are not in the schema are ignored.

    Raises:
      BadExampleError: a column is missing, or holds what cannot be converted; or a list is longer
        than any seen in training.
    """
    columns = canonical.features(table, self.schema, self.kinds, self.max_lengths)
    return self.encode_canonical(columns, table.num_rows)

  def encode_canonical(self, columns: Mapping[str, pa.Array], num_rows: int) -> Encoded:
    """``encode`` of columns that ``canonical.features`` has made."""
    ids, dense = [], []
    bags: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, column in self.schema.columns.items():
      values = columns[name]
      if column.is_numeric:
        numbers = values.to_numpy(zero_copy_only=False)
        if column.dense:
          dense.append(numeric.to_dense(self.steps[name], numbers))
        if column.buckets:
          ids.append(self.quantiles[name].buckets(numbers))
        continue
      rows = self.rows[column.table or name]
      if column.is_bag:
        bags[name] = rows.rows(pc.list_flatten(values)), canonical.list_lengths(values)
      else:
        ids.append(rows.rows(values))
    numbers_of = _side_by_side(dense, num_rows, np.float32)
    return Encoded(_side_by_side(ids, num_rows, np.int32), numbers_of, bags)

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
  for name, column in transforms.schema.columns.items():
    if column.is_bag:
      values, lengths = encoded.bags[name]
      ids[name] = id_bags.IdBags.from_lengths(
        values, lengths, capacity=len(lengths) * transforms.max_lengths[name]
      )
    elif column.is_embedded:
      feature = name + BUCKETS if column.is_numeric else name
      ids[feature] = id_bags.IdBags(values=np.ascontiguousarray(encoded.ids[:, place]))
      place += 1
  return batch_lib.Batch(
    dense=encoded.dense, ids=ids, labels=dict(labels), weights=weights, groups=dict(groups)
  )


def _side_by_side(columns: list[np.ndarray], num_rows: int, dtype: type) -> np.ndarray:
  return np.stack(columns, axis=1) if columns else np.zeros((num_rows, 0), dtype)
