"""A column's values in one form, whatever they were read from.

The same value is ``7`` in Parquet, ``"7"`` in a line of text, ``7.0`` in a frame where its
neighbour is missing. What a model learns for one of these it must find again under the others, so
every column has a *kind*, that of the values in training, by which all of them are spelt: ids as
text, numbers as float64, lists as lists of text, and what is missing as null. Training and serving
both begin here.

Read next: jaxrec/features/transforms.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec.features import schema as schema_lib
from jaxrec.features import vocabulary
from jaxrec.inputs import batch_checks

# Of the values of a column: numbers, of 64 or 32 bits; true and false; moments; or none of these.
KINDS = ("number", "float32", "truth", "time", "text")
MISSING_TEXTS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")
_MISSING = pa.array(MISSING_TEXTS)
WHOLE = r"^[-+]?[0-9]+$"
NUMBER = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
_EXACT = 2.0**53  # below it, a float64 is a whole number exactly
# To what Arrow reads: 2024/1/31 to 2024-01-31, and no more digits than microseconds have.
_MOMENT_FORMS = (
  (r"^(\d{4})[-/](\d\d?)[-/](\d\d?)", r"\1-\2-\3"),
  (r"^(\d{4})-(\d)-", r"\1-0\2-"),
  (r"^(\d{4}-\d\d)-(\d)($|[ T])", r"\1-0\2\3"),
  (r"(\.\d{6})\d+", r"\1"),
)
_MOMENT = "a moment such as 2024-01-31 or 2024-01-31 23:59:59"


class BadRowsError(batch_checks.BadExampleError):
  """Rows of a chunk that cannot be used.

  Attributes:
    template: what is wrong with them and what to do, with ``{got}`` where a row's value stands.
    is_bad: bool[N].
    got: [N]: the values.
  """

  def __init__(self, template: str, is_bad: np.ndarray, got: Sequence[Any] = ()):
    self.template, self.is_bad, self.got = template, is_bad, got
    super().__init__(f"row {self.row}: {self.reason(self.row)}")

  @property
  def row(self) -> int:
    """Number of the first in the chunk."""
    return int(np.argmax(self.is_bad))

  def reason(self, row: int) -> str:
    """What is wrong with a row of the chunk."""
    if not len(self.got):
      return self.template
    got = self.got[row]
    plain = got.as_py() if isinstance(got, pa.Scalar) else np.asarray(got).item()
    return self.template.replace("{got}", repr(plain))


def of_good_rows(
  rows: pa.RecordBatch, function: Callable[[pa.RecordBatch, np.ndarray], Any]
) -> tuple[Any, dict[int, str]]:
  """What ``function`` makes of the rows that it does not refuse, given with their places; and by
  place, why it refuses the others.
  """
  places, refused = np.arange(rows.num_rows), dict[int, str]()
  while True:
    try:
      return function(rows, places), refused
    except BadRowsError as error:
      bad = np.flatnonzero(error.is_bad)
      refused |= {int(places[row]): error.reason(row) for row in bad.tolist()}
      places, rows = places[~error.is_bad], rows.filter(pa.array(~error.is_bad))


def kind_of(stored: pa.DataType) -> str:
  """The kind of a column that is stored as ``stored``; of a list, that of its values.

  >>> kind_of(pa.int32()), kind_of(pa.list_(pa.string())), kind_of(pa.date32())
  ('number', 'text', 'time')
  """
  if pa.types.is_dictionary(stored) or is_list(stored):
    return kind_of(stored.value_type)
  if pa.types.is_float16(stored) or pa.types.is_float32(stored):
    return "float32"
  if pa.types.is_integer(stored) or pa.types.is_floating(stored) or pa.types.is_decimal(stored):
    return "number"
  if pa.types.is_boolean(stored):
    return "truth"
  return "time" if pa.types.is_temporal(stored) else "text"


def features(
  table: pa.Table | pa.RecordBatch,
  schema: schema_lib.Schema,
  kinds: Mapping[str, str],
  max_lengths: Mapping[str, int | None],
) -> dict[str, pa.Array]:
  """The columns that are learned from: numbers f64, ids and lists of ids as text, null or an empty
  list where there is none. Other columns are ignored.

  Args:
    table: the rows.
    schema: what becomes of each column.
    kinds: of its columns.
    max_lengths: of its lists and sequences, and of crosses of such: ids of an example, at most;
      for a cross not named there, its ``max_length``.

  Raises:
    BadRowsError: rows that hold what cannot be converted, a list that is too long, or lists of too
      many combinations.
    BadExampleError: a column is missing, or of a type that cannot be converted.
  """
  found: dict[str, pa.Array] = {}
  for name, column in schema.columns.items():
    values, what = column_of(table, name), f"column {name!r}"
    if column.is_numeric:
      found[name] = pa.array(to_numbers(values, kinds[name], what), from_pandas=True)
    elif column.is_bag:
      lists = to_lists(values, kinds[name], what, column.separator)
      found[name] = _no_longer(lists, max_lengths.get(name), column.kind, what)
    else:
      found[name] = to_texts(values, kinds[name], what)
  for name, cross in schema.crosses.items():
    most = max_lengths.get(name, cross.max_length)
    if most is not None:
      bags = [found[column] for column in cross.columns if schema.columns[column].is_bag]
      _check_combinations(name, bags, most)
  return found


def column_of(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
  """The column in one piece; BadExampleError if there is none."""
  if name not in table.schema.names:
    raise batch_checks.BadExampleError(
      f"column {name!r} is missing, and the model learns from it; columns there: "
      f"{', '.join(table.schema.names)}"
    )
  values = table.column(name)
  if isinstance(values, pa.ChunkedArray):
    values = values.combine_chunks()
  # A chunk in which every value is missing has no type of its own.
  return values.cast(pa.string()) if pa.types.is_null(values.type) else values


def to_texts(values: pa.Array, kind: str, what: str) -> pa.DictionaryArray:
  """Ids as text: of numbers, 7, 7.0 and "007" are one value; of text, they are three.

  Args:
    values: of any type that can be text.
    kind: of the column.
    what: the column, for messages.
  """
  try:
    encoded = vocabulary.encode(values)
  except pa.ArrowNotImplementedError as error:
    raise _unreadable("text or whole numbers", values, what) from error
  try:
    texts = _spelt(encoded.dictionary, kind, what)
  except BadRowsError as error:
    places = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    raise BadRowsError(error.template, np.append(error.is_bad, False)[places], values) from error
  if not texts.null_count:
    return pa.DictionaryArray.from_arrays(encoded.indices, texts)
  is_there = pc.is_valid(texts.take(encoded.indices))
  indices = pc.if_else(is_there, encoded.indices, pa.scalar(None, encoded.indices.type))
  return pa.DictionaryArray.from_arrays(indices, pc.fill_null(texts, ""))


def to_numbers(values: pa.Array, kind: str, what: str) -> np.ndarray:
  """f64[N]: numbers, as exact as those of training; moments in microseconds; NaN where there is
  none. Infinite ones are refused.
  """
  values = _decoded(values)
  if kind == "time":
    values = _moments(values, what)
  elif pa.types.is_temporal(values.type):
    raise _unreadable("numbers", values, what)
  elif _is_text(values.type):
    values = _number_texts(_present(values))
  expected = "a moment" if kind == "time" else "a number"
  numbers = _cast(values, pa.float64(), expected, what).to_numpy(zero_copy_only=False) + 0.0
  if kind == "float32":
    numbers = numbers.astype(np.float32).astype(np.float64)
  if np.isinf(numbers).any():
    is_bad = np.isinf(numbers)
    raise BadRowsError(f"{what}: expected a finite number, got {{got}}", is_bad, numbers)
  return numbers


def to_lists(values: pa.Array, kind: str, what: str, separator: str) -> pa.Array:
  """Lists of text, nothing missing among them; text is split at ``separator``; null is empty."""
  values = _decoded(values)
  if _is_text(values.type):
    values = pc.split_pattern(pc.fill_null(values, ""), separator)
  if not is_list(values.type):
    raise _unreadable(f"lists, or text separated by {separator!r}", values, what)
  owners = np.repeat(np.arange(len(values)), list_lengths(values))
  try:
    texts = to_texts(pc.list_flatten(values), kind, what).cast(pa.string())
  except BadRowsError as error:
    is_bad = np.zeros(len(values), bool)
    is_bad[owners[error.is_bad]] = True
    raise BadRowsError(error.template, is_bad, values) from error
  is_there = pc.is_valid(texts)
  owners = owners[is_there.to_numpy(zero_copy_only=False).astype(bool)]
  return _lists(texts.filter(is_there), np.bincount(owners, minlength=len(values)))


def list_lengths(lists: pa.Array) -> np.ndarray:
  """i32[N]."""
  return (
    pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int32)
  )


def is_list(stored: pa.DataType) -> bool:
  """Whether values of this type are lists, of whatever form."""
  tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
  return any(test(stored) for test in tests)


def _spelt(values: pa.Array, kind: str, what: str) -> pa.Array:
  """Distinct values as text; null is missing."""
  if kind == "time":
    return _moments(values, what).cast(pa.timestamp("us")).cast(pa.string())
  if kind == "number" and pa.types.is_integer(values.type):
    return values.cast(pa.string())
  texts = _present(_float_texts(values) if pa.types.is_floating(values.type) else values, what)
  if kind == "truth":
    texts = pc.utf8_lower(texts)
    texts = pc.if_else(pc.equal(texts, "1"), "true", texts)
    return pc.if_else(pc.equal(texts, "0"), "false", texts)
  if kind in ("number", "float32"):
    texts = _whole_texts(_number_texts(texts))
    is_rounded = pc.match_substring_regex(texts, NUMBER)
    if kind == "number":  # whole ones are exact as they are, of any length
      is_rounded = pc.and_(is_rounded, pc.invert(pc.match_substring_regex(texts, WHOLE)))
    if pc.any(is_rounded).as_py():
      precision = pa.float32() if kind == "float32" else pa.float64()
      numbers = pc.if_else(is_rounded, texts, pa.scalar(None, pa.string())).cast(precision)
      texts = pc.if_else(is_rounded, _float_texts(numbers), texts)
  return texts


def _present(values: pa.Array, what: str = "") -> pa.Array:
  """Text without blanks around it; null where it says that there is nothing."""
  texts = pc.utf8_trim_whitespace(_cast(values, pa.string(), "text or a whole number", what))
  return pc.if_else(pc.is_in(texts, _MISSING), pa.scalar(None, pa.string()), texts)


def _number_texts(texts: pa.Array) -> pa.Array:
  """Texts of numbers as a parser takes them; true and false are 1 and 0."""
  texts = pc.replace_substring_regex(texts, r"^\+", "")
  lower = pc.utf8_lower(texts)
  texts = pc.if_else(pc.equal(lower, "true"), "1", texts)
  return pc.if_else(pc.equal(lower, "false"), "0", texts)


def _whole_texts(texts: pa.Array) -> pa.Array:
  """Whole numbers of any length without leading zeros; other texts as they are."""
  short = pc.replace_substring_regex(texts, r"^(-?)0+([0-9])", r"\1\2")
  short = pc.if_else(pc.equal(short, "-0"), "0", short)
  return pc.if_else(pc.match_substring_regex(texts, WHOLE), short, texts)


def _float_texts(values: pa.Array) -> pa.Array:
  """Whole numbers without a point; NaN is null."""
  is_whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), _EXACT))
  nothing = pa.scalar(None, values.type)
  whole = pc.if_else(is_whole, values, nothing).cast(pa.int64()).cast(pa.string())
  texts = pc.coalesce(whole, values.cast(pa.string()))
  return pc.if_else(pc.is_nan(values), pa.scalar(None, pa.string()), texts)


def _moments(values: pa.Array, what: str) -> pa.Array:
  """i64[N]: microseconds, since 1970 or midnight as the type has it; null is missing."""
  stored = values.type
  if _is_text(stored):
    texts = _present(values)
    for pattern, by in _MOMENT_FORMS:
      texts = pc.replace_substring_regex(texts, pattern, by)
    try:
      values = texts.cast(pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid:
      values = _cast(texts, pa.timestamp("us"), _MOMENT, what)
    return values.cast(pa.int64())
  if not pa.types.is_temporal(stored):
    raise _unreadable(_MOMENT, values, what)
  if pa.types.is_time(stored):
    return values.cast(pa.time64("us"), safe=False).cast(pa.int64())
  if pa.types.is_duration(stored):
    return values.cast(pa.duration("us"), safe=False).cast(pa.int64())
  return values.cast(pa.timestamp("us"), safe=False).cast(pa.int64())


def _cast(values: pa.Array, wanted: pa.DataType, expected: str, what: str) -> pa.Array:
  """``values`` as ``wanted``, or an error that names the first one that is not ``expected``."""
  try:
    # The largest whole numbers are rounded to the next float64.
    return values.cast(wanted, safe=not pa.types.is_integer(values.type))
  except pa.ArrowNotImplementedError as error:
    raise _unreadable(expected, values, what) from error
  except pa.ArrowInvalid as error:
    castable = functools.partial(_castable, wanted=wanted)
    is_bad = np.array([not castable(value) for value in values])
    raise BadRowsError(
      f"{what}: expected {expected}, got {{got}}; mend the value, or change the column's kind in "
      "the schema",
      is_bad,
      values,
    ) from error


def _castable(value: pa.Scalar, wanted: pa.DataType) -> bool:
  try:
    value.cast(wanted)
  except pa.ArrowInvalid:
    return False
  return True


def _unreadable(expected: str, values: pa.Array, what: str) -> batch_checks.BadExampleError:
  return batch_checks.BadExampleError(
    f"{what}: expected {expected}, got values of type {values.type}; convert it, change its kind "
    "in the schema, or take it out of there"
  )


def _no_longer(lists: pa.Array, most: int | None, kind: str, what: str) -> pa.Array:
  """Lists of ``most`` values at the most: a sequence keeps its latest, a list is refused."""
  lengths = list_lengths(lists)
  if most is None or lengths.max(initial=0) <= most:
    return lists
  is_long = lengths > most
  if kind != "sequence":
    raise BadRowsError(
      f"{what}: a list of {{got}} values, but max_length is {most}; raise it in the schema and "
      "train anew (no value is ever dropped), or make the column a 'sequence', which keeps its "
      "latest",
      is_long,
      lengths.tolist(),
    )
  ends = np.cumsum(lengths, dtype=np.int64)
  kept = np.minimum(lengths, most).astype(np.int64)
  first = np.cumsum(kept) - kept
  places = np.arange(int(kept.sum())) + np.repeat(ends - kept - first, kept)
  return _lists(pc.list_flatten(lists).take(pa.array(places)), kept)


def _check_combinations(name: str, bags: Sequence[pa.Array], most: int) -> None:
  numbers = np.prod([list_lengths(lists).astype(np.int64) for lists in bags], axis=0)
  if numbers.max(initial=0) > most:
    raise BadRowsError(
      f"cross {name!r}: lists of {{got}} combinations, but max_length is {most}; raise it in the "
      "schema and train anew (none is ever dropped), or make a list a 'sequence' with a "
      "max_length, which keeps its latest",
      numbers > most,
      numbers.tolist(),
    )


def _lists(flat: pa.Array, lengths: np.ndarray) -> pa.Array:
  offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
  return pa.LargeListArray.from_arrays(pa.array(offsets), flat)


def _decoded(values: pa.Array) -> pa.Array:
  return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _is_text(stored: pa.DataType) -> bool:
  return pa.types.is_string(stored) or pa.types.is_large_string(stored)
