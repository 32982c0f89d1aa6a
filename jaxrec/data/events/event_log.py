"""Your own log of events, who did what when, as a data set of long histories.

An event is an example of label 1, items that were not chosen are examples of label 0, and each sees
what its user did at strictly earlier moments (examples.py). Whatever the log calls them, the
features are ``user``, ``item`` and ``history``; further columns keep their names.

Text is spelt as everywhere (column_values.py), and what an event cannot do without is asked of it
here: a user, an item, a moment, and a value wherever histories are kept, since one that is missing
would move the steps after it away from those of the other histories.

Read next: jaxrec/data/events/examples.py.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec import config as config_lib
from jaxrec.config import experiment
from jaxrec.data.events import examples as examples_lib
from jaxrec.data.prepared import column_roles, from_table, infer_schema, prepared_table
from jaxrec.data.readers import frames
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features import column_values
from jaxrec.features.schema import Column, Schema
from jaxrec.inputs import batch_checks

USER, ITEM, HISTORY, LABEL = "user", "item", "history", "chosen"
COLUMNS = ("user", "item", "context", "item_columns", "histories", "category")  # of EventsConfig
_ENOUGH_EVENTS = 5  # of an item, to say what it always has
_LEFT_TO_KNOW = 0.1  # of a context's uncertainty, once the item is known
_SKIP = "or leave such rows out (--on_bad_row=skip, on_bad_row='skip')"


def from_events(
  log: Any,
  *,
  user: str,
  item: str,
  time: str,
  label: str = LABEL,
  embedding_dim: int = 16,
  schema: Schema | None = None,
  **fields: Any,
) -> prepared_table.StoredTable:
  """A data set of a log of events, each with its user's history and with items not chosen.

  Its features are ``user``, ``item``, the ``item_columns`` and the ``context``; and the sequences
  ``history``, of the item's table, and ``category_history`` for a ``category`` in ``histories``. An
  item column that has a history too shares its table and is a sequence of one step, as
  ``models.SIMHard`` asks for.

  Args:
    log: a pandas frame or an Arrow table, a row an event, in any order.
    user: its column of who.
    item: its column of what was chosen.
    time: its column of when: moments, or numbers that grow with time.
    label: what to call the label: 1 of an event, 0 of what was not chosen.
    embedding_dim: width of the embeddings.
    schema: what becomes of each column of the examples; None: inferred.
    **fields: of ``EventsConfig``: ``context``, ``item_columns``, ``histories``, ``history_length``,
      ``min_history``, ``negatives``, ``num_negatives``, ``excluding``, ``category``; of
      ``DataConfig``: ``weight`` (a column of the log), ``group`` (``user``), ``combiner``
      (``none``), ``val_fraction``, ``test_fraction``, ``seed``, ``min_count``, ``on_bad_row``.

  Raises:
    BadExampleError: a row without user, item or moment; an item of two values in an item column; a
      context that gives the item away; too few events.
    ConfigError: options that do not exist or do not fit.

  >>> log = pa.table({"who": [k % 9 for k in range(90)], "what": [k % 7 for k in range(90)],
  ...                 "when": list(range(90))})
  >>> visits = from_events(log, user="who", item="what", time="when", min_history=2)
  >>> visits.spec.labels, [feature.name for feature in visits.spec.features]
  (('chosen',), ['user', 'item', 'history'])
  """
  if not isinstance(log, pa.Table):
    log = frames.of_frame(log, "the log", "a pandas frame or an Arrow table")
  frames.require_once(log.schema.names, "the log")
  for name in ("dataset", "data_dir", "test_dir", "labels"):
    config_lib.require(
      name not in fields, f"from_events: option {name!r} is of files; leave it out"
    )
  from_table.require_options(fields, experiment.EventsConfig, experiment.DataConfig)
  own = {field.name for field in dataclasses.fields(experiment.EventsConfig)}
  how = {name: _names(fields.pop(name), name) for name in own & set(fields)}
  options = {"combiner": "none", **fields}
  config = experiment.DataConfig(
    "events",
    labels=(label,),
    time=time,
    events=experiment.EventsConfig(user=user, item=item, **how),
    **options,
  )
  reader = reader_lib.ArrowTable(log, "the log")
  return make(
    reader, config, embedding_dim, schema=schema, folder=from_table.temporary_folder() / "log"
  )


def load(config: experiment.DataConfig, embedding_dim: int) -> prepared_table.StoredTable:
  """``--dataset=events``: the log in the files at ``config.data_dir``.

  Raises:
    ConfigError: what is needed is not named, or options do not fit.
    BadExampleError: as ``from_events``.
  """
  config_lib.require(
    bool(config.data_dir),
    "dataset events: --data_dir names the file or folder of the log: --data_dir=log.parquet (a run "
    "on a log given in Python is evaluated on examples in files: --new_data_dir)",
  )
  reader = reader_lib.open_files(config.data_dir or "", skip_bad_rows=config.on_bad_row == "skip")
  return make(reader, config, embedding_dim)


def make(
  reader: reader_lib.Reader,
  config: experiment.DataConfig,
  embedding_dim: int,
  *,
  schema: Schema | None = None,
  folder: pathlib.Path | None = None,
) -> prepared_table.StoredTable:
  """The data set of the log that ``reader`` reads, as ``config`` describes it.

  Args:
    reader: the log.
    config: its columns, its examples, their split.
    embedding_dim: width of the embeddings.
    schema: of the examples; None: that of ``config.schema``, or inferred.
    folder: where it is prepared; None: in the cache.
  """
  found = examples(reader, config)
  config = dataclasses.replace(config, labels=(_label(config),))
  if schema is not None:
    labels = column_roles.labels_of(config.labels, found.schema.names)
    guess = infer_schema.Guess(column_roles.merged(schema, config, labels, "the schema"), {})
  elif config.schema is not None:
    guess = from_table.schema_of(found, config)
  else:
    guess = _guess(found, config)
  made = from_table.make(
    found, guess.schema, config, embedding_dim, left_out=guess.left_out, folder=folder
  )
  return dataclasses.replace(made, is_inferred=schema is None and config.schema is None)


def examples(reader: reader_lib.Reader, config: experiment.DataConfig) -> reader_lib.ArrowTable:
  """The examples of a log, in order of time; columns as ``from_events`` says, and the time."""
  how, label = config.events, _label(config)
  user, item, time = _roles(reader, config)
  log, bad_rows = _events(reader, config, user, item, time)
  _check_context(log, how.context, reader.name)
  weight = () if config.weight is None else (config.weight,)
  past = {HISTORY: ITEM, **{history_of(column): column for column in how.histories}}
  named = [USER, ITEM, *how.item_columns, *how.context, *weight, *past, time, label]
  frames.require_once(named, f"the examples of {reader.name}")
  found = examples_lib.examples(
    examples_lib.Log(log, USER, ITEM, time, reader.name),
    label=label,
    histories=past,
    context=(*how.context, *weight),
    item_columns=how.item_columns,
    min_history=how.min_history,
    negatives=examples_lib.Negatives(
      kind=how.negatives,
      number=how.num_negatives,
      excluding=how.excluding,
      category=how.category,
      name=config.dataset,
      seed=config.seed,
    ),
  )
  if pc.min(found.table[label]).as_py() == 1:
    raise batch_checks.BadExampleError(
      f"{reader.name}: no event has an item that could be a negative (data.events.negatives="
      f"{how.negatives}, excluding={how.excluding}), so there is nothing to learn; bring events of "
      "more items"
    )
  source = {USER: user, ITEM: item, HISTORY: item}
  source |= {name: name for name in (*how.item_columns, *how.context, *weight)}
  source |= {history_of(name): name for name in how.histories}
  made = [config.dataset, config.seed, config.on_bad_row, *dataclasses.astuple(how)]
  return dataclasses.replace(
    found,
    table=_with_lists(found.table, set(how.item_columns) & set(how.histories)),
    name=f"the examples of {reader.name}",
    recipe=(*reader.identity(), *made),
    kinds_of={name: reader.kinds[column] for name, column in source.items()},
    bad_rows=bad_rows,
  )


def history_of(column: str) -> str:
  """What the history of a column is called, beside ``history``, that of the items."""
  return f"{column}_history"


def _guess(found: reader_lib.ArrowTable, config: experiment.DataConfig) -> infer_schema.Guess:
  """The schema of examples: candidate and history share their table, the context is inferred."""
  how = config.events
  guess = infer_schema.infer(found, dataclasses.replace(config, group=config.group or USER))
  coding: dict[str, Any] = {"min_count": config.min_count, "max_size": config.max_rows_per_table}
  pooled = {**coding, "combiner": config.combiner or "mean"}
  past = {**pooled, "max_length": how.history_length}
  inferred = dict(guess.schema.columns)
  columns = {
    USER: Column("categorical", **coding),
    ITEM: Column("categorical", table="items", **coding),
  }
  for name in how.item_columns:
    if name in how.histories:
      columns[name] = Column("sequence", table=name, **pooled, max_length=1)
    elif name in inferred:
      columns[name] = inferred[name]
  columns |= {name: inferred[name] for name in how.context if name in inferred}
  columns[HISTORY] = Column("sequence", table="items", **past)
  for name in how.histories:
    shared = name if name in how.item_columns else None
    columns[history_of(name)] = Column("sequence", table=shared, **past)
  left_out = {name: why for name, why in guess.left_out.items() if name not in columns}
  return infer_schema.Guess(dataclasses.replace(guess.schema, columns=columns), left_out)


def _events(
  reader: reader_lib.Reader, config: experiment.DataConfig, user: str, item: str, time: str
) -> tuple[pa.Table, tuple[str, ...]]:
  """The events with their time as a number; and where rows were left out, and why."""
  how, kinds = config.events, reader.kinds
  kept = [*how.item_columns, *how.context, *how.histories]
  kept += [name for name in (how.category, config.weight) if name is not None]
  columns = list(dict.fromkeys([user, item, time, *kept]))

  def good(rows: pa.RecordBatch, places: np.ndarray) -> pa.RecordBatch:
    of_items = {*how.item_columns, how.category}
    found = {
      USER: _values(rows, user, kinds, f"user {user!r}"),
      ITEM: _values(rows, item, kinds, f"item {item!r}"),
      **{name: rows.column(name) for name in kept},
      **{name: _values(rows, name, kinds) for name in kept if name in of_items},
      **{n: _values(rows, n, kinds, f"column {n!r} of a history") for n in how.histories},
      time: pa.array(_times(rows.column(time), kinds[time], time)),
    }
    return pa.RecordBatch.from_pydict(found)

  first, chunks, refused = 0, list[pa.RecordBatch](), dict[int, str]()
  for rows in reader.batches(columns):
    chunk, bad = column_values.of_good_rows(rows, good)
    refused |= {first + place: why for place, why in bad.items()}
    if refused and config.on_bad_row != "skip":
      (place,) = reader.places([min(refused)])
      raise batch_checks.BadExampleError(f"{place}: {refused[min(refused)]}")
    chunks.append(chunk)
    first += rows.num_rows
  if first == len(refused):
    why = f"all {first} rows are bad, the first: {refused[0]}" if first else "it is empty"
    raise batch_checks.BadExampleError(f"{reader.name}: holds no events; {why}")
  rows_left_out = sorted(refused)
  bad_rows = list(getattr(reader, "bad_rows", []))
  for place, row in zip(reader.places(rows_left_out), rows_left_out, strict=True):
    bad_rows.append(f"{place}: {refused[row]}")
  return pa.Table.from_batches(chunks), tuple(bad_rows)


def _values(
  rows: pa.RecordBatch, name: str, kinds: Mapping[str, str], needed: str | None = None
) -> pa.Array:
  """A column of ids as text, so that files of every form are sorted alike.

  ``needed`` is what to call a column of which no value may be missing.
  """
  what = f"column {name!r}" if needed is None else needed
  texts = column_values.to_texts(column_values.column_of(rows, name), kinds[name], what)
  if needed is not None and texts.null_count:
    is_missing = pc.is_null(texts).to_numpy(zero_copy_only=False)
    raise column_values.BadRowsError(f"{what}: is missing; fill it in, {_SKIP}", is_missing)
  return texts.cast(pa.string())


def _times(values: pa.Array, kind: str, name: str) -> np.ndarray:
  """f64[N]: moments in microseconds, or the numbers themselves."""
  what = f"time {name!r}"  # text of no kind of its own: dates in a form that was not recognised
  times = column_values.to_numbers(values, "time" if kind == "text" else kind, what)
  if np.isnan(times).any():
    raise column_values.BadRowsError(f"{what}: is missing; fill it in, {_SKIP}", np.isnan(times))
  return times


def _with_lists(found: pa.Table, columns: Iterable[str]) -> pa.Table:
  """``found`` with each value of these columns as a list of it: a sequence of one step."""
  for name in columns:
    values = found[name].combine_chunks()
    offsets = pa.array(np.arange(len(values) + 1), pa.int64())
    lists = pa.LargeListArray.from_arrays(offsets, values)
    found = found.set_column(found.schema.get_field_index(name), name, lists)
  return found


def _roles(reader: reader_lib.Reader, config: experiment.DataConfig) -> tuple[str, str, str]:
  """The columns of user, item and time, once all that are named exist and have one role."""
  how = config.events
  asked = {"data.events.user": how.user, "data.events.item": how.item, "time": config.time}
  found = [column for column in asked.values() if column is not None]
  missing = [name for name, column in asked.items() if column is None]
  config_lib.require(
    not missing,
    f"dataset {config.dataset}: {', '.join(missing)} not given; name the columns of who, what and "
    "when: --set=data.events.user=customer --set=data.events.item=product --time=ts",
  )
  optional = [name for name in (how.category, config.weight) if name is not None]
  reader_lib.require_columns(
    reader, [*found, *how.context, *how.item_columns, *how.histories, *optional]
  )
  config_lib.require(
    len(set(found)) == 3,
    f"dataset {config.dataset}: user, item and time are three columns, got "
    f"{', '.join(map(repr, found))}",
  )
  for role in ("context", "item_columns", "histories"):
    for column in getattr(how, role):
      config_lib.require(
        column not in found,
        f"data.events.{role}: column {column!r} is the user, the item or the time, which examples "
        "have anyway; leave it out",
      )
  return found[0], found[1], found[2]


def _check_context(log: pa.Table, columns: Iterable[str], where: str) -> None:
  """Raises BadExampleError if a context gives the item away: a value that the item nearly always
  has tells the item that was chosen from its negatives.
  """
  for name in columns:
    if column_values.is_list(log[name].type):
      continue
    known = log.select([ITEM, name]).filter(pc.is_valid(log[name]))
    pairs = known.group_by([ITEM, name]).aggregate([([], "count_all")])
    items = pairs.group_by(ITEM).aggregate([("count_all", "sum"), ("count_all", "max")])
    often = items.filter(pc.greater_equal(items["count_all_sum"], _ENOUGH_EVENTS))
    if not len(often):
      continue  # too few events an item to know
    num_events = pc.sum(often["count_all_sum"]).as_py()
    unlike_its_item = 1 - pc.sum(often["count_all_max"]).as_py() / num_events
    values = known.group_by(name).aggregate([([], "count_all")])["count_all"]
    unlike_most = 1 - pc.max(values).as_py() / len(known)
    if unlike_its_item < _LEFT_TO_KNOW * unlike_most:
      raise batch_checks.BadExampleError(
        f"{where}: context {name!r} is what its item has in {1 - unlike_its_item:.1%} of the "
        "events, so it would tell which item was chosen; a context is what was known before. Name "
        "it among item_columns, and each example has its own item's"
      )


def _label(config: experiment.DataConfig) -> str:
  """What the label is called."""
  label, *more = config.labels or (LABEL,)
  config_lib.require(
    not more and "=" not in label,
    f"dataset {config.dataset}: --label names the column of 1 and 0 that is made: expected "
    f"one name, got {', '.join(config.labels)}",
  )
  return label


def _names(value: Any, name: str) -> Any:
  """An option as its config has it: names in a tuple."""
  if name not in ("context", "item_columns", "histories"):
    return value
  return (value,) if isinstance(value, str) else tuple(value)
