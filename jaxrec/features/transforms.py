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
from jaxrec.features import id_bags, numeric, quantiles, validate, vocabulary
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
    rows: of each table of ids, value to row.
    steps: of each dense column, its fitted steps.
    quantiles: of each bucketised column, its buckets.
    max_lengths: ids of an example, at most, of each list and sequence.
    groups: of each group column, value to number.
  """

  schema: schema_lib.Schema
  rows: Mapping[str, vocabulary.Vocabulary | vocabulary.HashedRows]
  steps: Mapping[str, tuple[numeric.Step, ...]]
  quantiles: Mapping[str, quantiles.Quantiles]
  max_lengths: Mapping[str, int]
  groups: Mapping[str, vocabulary.Vocabulary]

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

  def encode(self, table: pa.Table | pa.RecordBatch, *, where: str = "the table") -> Encoded:
    """The rows of ``table`` as numbers; columns that are not in the schema are ignored.

    Raises:
      BadExampleError: a column is missing, or of a kind that cannot be converted; or a list is
        longer than any seen in training.
    """
    ids, dense = [], []
    bags: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, column in self.schema.columns.items():
      values = _column_of(table, name, where)
      if column.is_numeric:
        numbers = to_numbers(values, name, where)
        if column.dense:
          dense.append(numeric.to_dense(self.steps[name], numbers))
        if column.buckets:
          ids.append(self.quantiles[name].buckets(numbers))
      elif column.is_bag:
        bags[name] = self._bags(name, column, values, where)
      else:
        ids.append(self._rows_of(name, column).rows(to_texts(values, name, where)))
    num_rows = table.num_rows
    numbers_of = _side_by_side(dense, num_rows, np.float32)
    return Encoded(_side_by_side(ids, num_rows, np.int32), numbers_of, bags)

  def batch(self, table: pa.Table | pa.RecordBatch) -> batch_lib.Batch:
    """The rows of ``table`` as a host batch to predict from: no labels, weights 1."""
    num_rows = table.num_rows
    return to_batch(
      self, self.encode(table), labels={}, weights=np.ones(num_rows, np.float32), groups={}
    )

  def _rows_of(
    self, name: str, column: schema_lib.Column
  ) -> vocabulary.Vocabulary | vocabulary.HashedRows:
    return self.rows[column.table or name]

  def _bags(
    self, name: str, column: schema_lib.Column, values: pa.Array, where: str
  ) -> tuple[np.ndarray, np.ndarray]:
    lists = to_lists(values, column, name, where)
    most = self.max_lengths[name]
    lengths = list_lengths(lists)
    if column.kind == "sequence" and lengths.max(initial=0) > most:
      lists = _latest(lists, lengths, most)
      lengths = np.minimum(lengths, most)
    if lengths.max(initial=0) > most:
      raise validate.BadExampleError(
        f"column {name!r} of {where}: a list of {lengths.max()} values, but max_length is {most}; "
        "raise it in schema.json (no value is ever dropped), or make the column a 'sequence', "
        "which keeps its latest"
      )
    flat = pc.list_flatten(lists)
    return self._rows_of(name, column).rows(to_texts(flat, name, where)), lengths


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


def to_texts(values: pa.Array, name: str, where: str) -> pa.DictionaryArray:
  """Ids as text, of which vocabularies are made: 7, 7.0 and "7" are one value, as are true and
  "true".
  """
  try:
    encoded = vocabulary.encode(values)
  except pa.ArrowNotImplementedError as error:
    raise validate.BadExampleError(
      f"column {name!r} of {where}: expected text or whole numbers, got {values.type}; convert it, "
      "or take it out of schema.json"
    ) from error
  found, indices = encoded.dictionary, encoded.indices
  if pa.types.is_floating(found.type):
    is_whole = pc.and_(pc.equal(pc.floor(found), found), pc.less(pc.abs(found), 2.0**53))
    whole = pc.if_else(is_whole, found, None).cast(pa.int64()).cast(pa.string())
    texts = pc.if_else(pc.is_nan(found), None, pc.coalesce(whole, found.cast(pa.string())))
    indices = pc.if_else(pc.is_valid(texts.take(indices)), indices, None)  # NaN is missing
    return pa.DictionaryArray.from_arrays(indices, pc.fill_null(texts, ""))
  texts = cast(found, pa.string(), name, where)
  return pa.DictionaryArray.from_arrays(indices, texts)


def to_numbers(values: pa.Array, name: str, where: str) -> np.ndarray:
  """f64[N]: numbers, NaN where there is none. Infinite ones are refused."""
  if pa.types.is_dictionary(values.type):
    values = values.cast(values.type.value_type)
  if pa.types.is_temporal(values.type):
    values = values.cast(pa.timestamp("us")).cast(pa.int64())
  numbers = cast(values, pa.float64(), name, where).to_numpy(zero_copy_only=False) + 0.0  # no -0
  if np.isinf(numbers).any():
    row = int(np.argmax(np.isinf(numbers)))
    raise validate.BadExampleError(
      f"column {name!r} of {where}: {numbers[row]} in row {row} of the chunk; numbers must be "
      "finite"
    )
  return numbers


def to_lists(values: pa.Array, column: schema_lib.Column, name: str, where: str) -> pa.Array:
  """Lists without nulls in them; text is split at the column's separator; null is empty."""
  if pa.types.is_dictionary(values.type):
    values = values.cast(values.type.value_type)
  if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
    filled = pc.fill_null(values, "")
    values = pc.split_pattern(filled, column.separator)
  if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
    raise validate.BadExampleError(
      f"column {name!r} of {where}: expected lists or text separated by {column.separator!r}, got "
      f"{values.type}; change its kind in schema.json"
    )
  return _without_nulls(values)


def cast(values: pa.Array, kind: pa.DataType, name: str, where: str) -> pa.Array:
  """``values`` as ``kind``, or a BadExampleError that names the first one that is not."""
  try:
    return values.cast(kind)
  except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
    expected = "numbers" if pa.types.is_floating(kind) else "whole numbers"
    expected = "text" if pa.types.is_string(kind) else expected
    raise validate.BadExampleError(
      f"column {name!r} of {where}: expected {expected}, got {values.type} ({error}); mend the "
      "value, or change the column's kind in schema.json"
    ) from error


def list_lengths(lists: pa.Array) -> np.ndarray:
  """i32[N]."""
  return (
    pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int32)
  )


def _column_of(table: pa.Table | pa.RecordBatch, name: str, where: str) -> pa.Array:
  if name not in table.schema.names:
    raise validate.BadExampleError(
      f"column {name!r} is missing from {where}, and the model learns from it; columns there: "
      f"{', '.join(table.schema.names)}"
    )
  values = table.column(name)
  if isinstance(values, pa.ChunkedArray):
    values = values.combine_chunks()
  # A chunk in which every value is missing has no type of its own.
  return values.cast(pa.string()) if pa.types.is_null(values.type) else values


def _without_nulls(lists: pa.Array) -> pa.Array:
  """Lists of the values that are there: no nulls, no empty text."""
  flat = pc.list_flatten(lists)
  is_value = pc.is_valid(flat)
  if pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type):
    is_value = pc.and_(is_value, pc.not_equal(pc.fill_null(flat, ""), ""))
  owners = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
  keep = is_value.to_numpy(zero_copy_only=False).astype(bool)
  lengths = np.bincount(owners[keep], minlength=len(lists)).astype(np.int64)
  offsets = np.concatenate([[0], np.cumsum(lengths)])
  return pa.LargeListArray.from_arrays(pa.array(offsets), flat.filter(pa.array(keep)))


def _latest(lists: pa.Array, lengths: np.ndarray, most: int) -> pa.Array:
  """The last ``most`` values of each list."""
  flat = pc.list_flatten(lists)
  ends = np.cumsum(lengths, dtype=np.int64)
  kept = np.minimum(lengths, most).astype(np.int64)
  offsets = np.concatenate([[0], np.cumsum(kept)])
  places = np.arange(offsets[-1]) + np.repeat(ends - kept - offsets[:-1], kept)
  return pa.LargeListArray.from_arrays(pa.array(offsets), flat.take(pa.array(places)))


def _side_by_side(columns: list[np.ndarray], num_rows: int, dtype: type) -> np.ndarray:
  return np.stack(columns, axis=1) if columns else np.zeros((num_rows, 0), dtype)
