"""From a log of events to examples: does a user choose an item, given all that came before?

An event is an example of label 1; beside it stand others of label 0, items that the user did not
choose. The history of an example is what the same user did at *strictly earlier* moments: the lines
of one basket share a moment, and would leak the answer. A history is not copied for each example:
it is a span of the log, which lies on disk once, sorted by user and time.

What is known of an *item* (its category) is looked up for whichever item an example has. Were it
copied from the event, a negative would carry the attribute of the item that was chosen, and tell.

*Negatives* are drawn by popularity so far (the item of any earlier event), uniformly from all
items that there were so far, or uniformly from those of the same category, as ETA's are. What is
drawn is a function of the seed and of the event's place in the log, sorted by user and time: it
does not depend on who draws, and in what order.

Source: ETA (Chen et al. 2021, arXiv 2108.04468, section 4) for the task.
Read next: jaxrec/data/prepared/spans.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec import config as config_lib
from jaxrec.data.pipeline import counter_rng
from jaxrec.data.prepared import spans
from jaxrec.data.readers import reader
from jaxrec.inputs import batch_checks

KINDS = ("popularity", "uniform", "category")
EXCLUDED = ("moment", "user")
_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True)
class Negatives:
  """How items of label 0 are drawn.

  Attributes:
    kind: ``popularity``, ``uniform`` or ``category``.
    number: how many beside each event.
    excluding: an item is no negative if the user chose it at the same ``moment``, or ever
      (``user``). With ``user`` whatever is in the history is a positive, and so tells the label.
    category: column of the items' category, where ``kind`` is ``category``.
    name, seed: of the stream of random numbers.
  """

  kind: str = "popularity"
  number: int = 1
  excluding: str = "moment"
  category: str | None = None
  name: str = "events"
  seed: int = 0

  def __post_init__(self) -> None:
    for field, known in (("kind", KINDS), ("excluding", EXCLUDED)):
      value = getattr(self, field)
      config_lib.require(
        value in known, f"negatives.{field}: {value!r}; {config_lib.did_you_mean(value, known)}"
      )
    config_lib.require(self.number >= 1, f"negatives.number: must be >= 1, got {self.number}")
    config_lib.require(
      (self.kind == "category") == (self.category is not None),
      f"negatives: kind {self.kind!r} with category {self.category!r}; kind 'category' needs the "
      "column of the items' category, and no other kind does",
    )


@dataclasses.dataclass(frozen=True)
class Log:
  """Events in any order.

  Attributes:
    table: of them.
    user, item, time: its columns: who, what, when (a number or a moment).
    name: what to call it.
    files: that it was read from.
  """

  table: pa.Table
  user: str
  item: str
  time: str
  name: str = "the log"
  files: tuple[str, ...] = ()

  def require(self, columns: Sequence[str]) -> None:
    """Raises ConfigError unless all of them exist."""
    for column in (self.user, self.item, self.time, *columns):
      known = self.table.column_names
      config_lib.require(
        column in known,
        f"{self.name}: no column {column!r}; {config_lib.did_you_mean(column, known)}",
      )

  def in_order(self) -> pa.Table:
    """The events by user, and each user's by time."""
    by = [(self.user, "ascending"), (self.time, "ascending")]
    return self.table.take(pc.sort_indices(self.table, by)).combine_chunks()


def examples(
  log: Log,
  *,
  label: str,
  histories: Mapping[str, str],
  context: Sequence[str] = (),
  item_columns: Sequence[str] = (),
  min_history: int = 1,
  negatives: Negatives = Negatives(),
) -> reader.ArrowTable:
  """Events and their negatives, in order of time, a negative right after its event.

  Args:
    log: the events.
    label: what to call the column of 1 and 0.
    histories: by name of a column of the result, the column of the log whose earlier values it
      holds, the oldest first: ``{"history": "item"}``.
    context: further columns that both an event and its negatives have.
    item_columns: columns of the item, of which each example has its own item's value. An item has
      one value, or none: in the rows where it is missing, it is that of the others.
    min_history: events with fewer earlier ones are no examples.
    negatives: how they are drawn. Where none is found in 100 draws, an event has fewer.

  Raises:
    ConfigError: a column that does not exist.
    BadExampleError: an item of two values, or no event that has a history of ``min_history``.
  """
  category = negatives.category
  named = [*histories.values(), *context, *item_columns]
  log.require([*named, *([] if category is None else [category])])
  table = log.in_order()
  users, moments = _codes(table[log.user]), _codes(table[log.time])
  numbers = np.arange(table.num_rows)
  is_new_user = np.diff(users, prepend=-1) != 0
  begins = np.maximum.accumulate(np.where(is_new_user, numbers, 0))
  is_new_moment = is_new_user | (np.diff(moments, prepend=-1) != 0)
  ends = np.maximum.accumulate(np.where(is_new_moment, numbers, 0))
  rows = np.flatnonzero(ends - begins >= min_history)
  _check_histories(log, len(rows), int((ends - begins).max(initial=0)), min_history)
  items = table[log.item].combine_chunks().dictionary_encode()
  codes = items.indices.to_numpy()
  of_items = {column: _of_items(log, column, table[column], items) for column in item_columns}
  categories = None
  if category is not None:  # what is missing is a category too
    encoded = table[category].combine_chunks().dictionary_encode("encode")
    categories = encoded.indices.to_numpy()
  kept_out = begins if negatives.excluding == "user" else ends
  drawn = _drawn(rows, codes, kept_out, moments, categories, negatives)
  of_event = np.concatenate([rows, np.repeat(rows, negatives.number)])
  chosen = np.concatenate([codes[rows], drawn.reshape(-1)])
  rank = np.concatenate(
    [np.zeros(len(rows), int), np.tile(1 + np.arange(negatives.number), len(rows))]
  )
  labels = np.concatenate([np.ones(len(rows), np.int8), np.zeros(drawn.size, np.int8)])
  order = np.lexsort([rank, of_event, moments[of_event]])
  order = order[chosen[order] >= 0]
  of_event = of_event[order]
  past = spans.column(begins[of_event], ends[of_event])
  columns = {
    log.user: table[log.user].take(pa.array(of_event)),
    log.item: items.dictionary.take(pa.array(chosen[order])),
    **{column: found.take(pa.array(chosen[order])) for column, found in of_items.items()},
    **{column: table[column].take(pa.array(of_event)) for column in context},
    **dict.fromkeys(histories, past),
    log.time: table[log.time].take(pa.array(of_event)),
    label: pa.array(labels[order]),
  }
  logs = {column: table[source].combine_chunks() for column, source in histories.items()}
  return reader.ArrowTable(pa.table(columns), log.name, log.files, logs)


def _check_histories(log: Log, num_examples: int, longest: int, min_history: int) -> None:
  if not num_examples:
    raise batch_checks.BadExampleError(
      f"{log.name}: no event has a history of min_history={min_history} or more earlier events of "
      f"its {log.user}; the longest of {log.table.num_rows} events is {longest}; lower "
      "min_history, or bring more events"
    )


def _of_items(
  log: Log, column: str, values: pa.ChunkedArray, items: pa.DictionaryArray
) -> pa.Array:
  """[V]: the one value of each item in ``items.dictionary``; null of one that has none."""
  codes, encoded = items.indices.to_numpy(), values.combine_chunks().dictionary_encode()
  found = encoded.indices.fill_null(-1).to_numpy()
  known = np.flatnonzero(found >= 0)
  of_item = np.full(len(items.dictionary), -1, np.int64)
  of_item[codes[known][::-1]] = found[known][::-1]  # of several, the first stays
  differing = known[found[known] != of_item[codes[known]]]
  if len(differing):
    row = differing[0]
    one, other = (encoded.dictionary[int(k)].as_py() for k in (of_item[codes[row]], found[row]))
    raise batch_checks.BadExampleError(
      f"{log.name}: column {column!r}: {log.item} {items[int(row)].as_py()!r} has {one!r} and "
      f"{other!r}, but what is of the item is one value for all its events; make them one, or, if "
      "it is of the event, name the column as context"
    )
  return encoded.dictionary.take(pa.array(of_item, mask=of_item < 0))


def _codes(values: pa.ChunkedArray) -> np.ndarray:
  """i64[N]: each value's rank among the different ones."""
  return np.unique(values.to_numpy(), return_inverse=True)[1]


def _drawn(
  rows: np.ndarray,
  items: np.ndarray,
  groups: np.ndarray,
  times: np.ndarray,
  categories: np.ndarray | None,
  how: Negatives,
) -> np.ndarray:
  """i64[len(rows), number]: items for each event; -1 where none was found.

  An item is kept out that an event of the same one of ``groups: i64[N]`` has.
  """
  num_items = int(items.max(initial=0)) + 1
  taken = np.unique(groups * num_items + items)
  draw = _Pool(rows, items, times, categories, how.kind)
  found = np.full((len(rows), how.number), -1, np.int64)
  for k in range(how.number):
    streams: list[int | str] = [how.name, "negatives", how.seed, *([k] if k else [])]
    key = counter_rng.stream_key(*streams)
    for attempt in range(_ATTEMPTS):
      left = np.flatnonzero(found[:, k] < 0)
      if not len(left):
        break
      draws = counter_rng.uniform(key, rows[left] * _ATTEMPTS + attempt)
      drawn = draw(left, draws)
      keys = groups[rows[left]] * num_items + drawn
      place = np.minimum(np.searchsorted(taken, keys), len(taken) - 1)
      is_free = (drawn >= 0) & (taken[place] != keys)
      found[left[is_free], k] = drawn[is_free]
  return found


class _Pool:
  """What negatives of each event are drawn from: of earlier moments all events, or each item once;
  of a category its own.
  """

  def __init__(
    self,
    rows: np.ndarray,
    items: np.ndarray,
    times: np.ndarray,
    categories: np.ndarray | None,
    kind: str,
  ):
    groups = np.zeros_like(times) if categories is None else categories.astype(np.int64)
    num_moments = int(times.max(initial=0)) + 1
    keys = groups * num_moments + times
    order = np.argsort(keys, kind="stable")
    if kind != "popularity":  # an item that nobody has chosen yet is not there to be drawn
      pairs = groups * (int(items.max(initial=0)) + 1) + items
      firsts = np.unique(pairs[order], return_index=True)[1]
      order = order[np.sort(firsts)]
    self._items = items[order]
    self._first = np.searchsorted(keys[order], groups[rows] * num_moments)
    self._size = np.searchsorted(keys[order], keys[rows]) - self._first

  def __call__(self, which: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """An item for each of the events ``which``, of numbers in [0, 1); -1 of an empty pool."""
    size = self._size[which]
    places = self._first[which] + (draws * size).astype(np.int64)
    return np.where(size > 0, self._items[np.minimum(places, len(self._items) - 1)], -1)
