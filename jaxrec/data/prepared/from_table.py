"""Your own data: files, frames, Arrow tables and any iterable of records, as data sets.

All of them take the same path: a reader, a schema (inferred, or yours), a split, and one
preparation (prepare.py); what comes out trains, evaluates and serves like any data set here.

Read next: jaxrec/data/readers/reader.py.
"""

from __future__ import annotations

import atexit
import dataclasses
import pathlib
import shutil
import tempfile
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from jaxrec import config as config_lib
from jaxrec.config import experiment
from jaxrec.data.prepared import column_roles, infer_schema, prepare, prepared_table, splits
from jaxrec.data.readers import frames
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features import crosses, transforms
from jaxrec.features import schema as schema_lib

Labels = str | Sequence[str] | Mapping[str, Any]


def from_arrow(
  table: pa.Table,
  *,
  label: Labels,
  embedding_dim: int = 16,
  schema: schema_lib.Schema | None = None,
  **fields: Any,
) -> prepared_table.StoredTable:
  """A data set of an Arrow table.

  Args:
    table: the rows.
    label: column, or columns, of 0 and 1 to learn; or by column the value that counts as 1, as in
      ``{"income": "rich"}``.
    embedding_dim: width of the embeddings.
    schema: what becomes of each column; None: inferred. ``result.transforms.schema`` is it.
    **fields: of ``DataConfig``: ``weight``, ``group``, ``time``, ``val_fraction``,
      ``test_fraction``, ``seed``, ``min_count``, ``num_buckets``, ``negative_keep_rate``.

  Raises:
    BadExampleError: a value that cannot be learned from; the message names column and row.
    ConfigError: columns that do not exist or options that do not fit.

  >>> clicks = from_arrow(pa.table({"age": [20, 31] * 50, "click": [0, 1] * 50}), label="click")
  >>> clicks.spec.labels, [feature.name for feature in clicks.spec.features]
  (('click',), ['age'])
  """
  frames.require_once(table.schema.names, "the table")
  return _in_memory(reader_lib.ArrowTable(table), label, embedding_dim, schema, fields)


def from_pandas(
  frame: Any,
  *,
  label: Labels,
  embedding_dim: int = 16,
  schema: schema_lib.Schema | None = None,
  **fields: Any,
) -> prepared_table.StoredTable:
  """A data set of a pandas frame, its index left aside; arguments and errors as ``from_arrow``."""
  table = frames.of_frame(frame, "the frame")
  return from_arrow(table, label=label, embedding_dim=embedding_dim, schema=schema, **fields)


def from_iterator(
  records: Iterable[Mapping[str, Any]],
  *,
  label: Labels,
  embedding_dim: int = 16,
  schema: schema_lib.Schema | None = None,
  **fields: Any,
) -> prepared_table.StoredTable:
  """A data set of records, read once to their end and kept on disk: a queue, a feature store.

  Records are mappings from column to value with the columns of the first. Other arguments and
  errors as ``from_arrow``. (To train on a stream without keeping it, train on any iterator of
  ``Batch``, made with ``transforms.encode``.)
  """
  reader = frames.write_records(records, temporary_folder())
  return _in_memory(reader, label, embedding_dim, schema, fields)


def load(
  config: experiment.DataConfig,
  embedding_dim: int,
  *,
  fitted: transforms.Transforms | None = None,
) -> prepared_table.StoredTable:
  """``--dataset=table``: the files at ``config.data_dir``, and those of ``config.test_dir``.

  Args:
    config: where the files lie and what is learned from them.
    embedding_dim: width of the embeddings.
    fitted: transforms of an earlier run, to evaluate it: all rows are the test split; None: they
      are fitted.
  """
  config_lib.require(
    bool(config.data_dir),
    "dataset table: --data_dir names the file or folder to read: --data_dir=clicks.parquet (a run "
    "on a data set made in Python is evaluated on files: --new_data_dir)",
  )
  config_lib.require(
    bool(config.labels) or config.schema is not None or fitted is not None,
    "dataset table: name the column to learn: --label=click",
  )
  skip = config.on_bad_row == "skip"
  reader: reader_lib.Reader = reader_lib.open_files(config.data_dir or "", skip_bad_rows=skip)
  guess = schema_of(reader, config) if fitted is None else infer_schema.Guess(fitted.schema, {})
  schema = guess.schema if fitted else with_crosses(guess.schema, config, guess.left_out)
  all_test = dataclasses.replace(schema, time=None)  # such rows are not split, so need no time
  if fitted:
    plan = _plan(reader, all_test, splits.AllTest(), config)
  else:
    plan = _plan(reader, schema, _splitter(reader, config, schema), config)
  plan = dataclasses.replace(plan, fitted=fitted, left_out=guess.left_out)
  found = prepared_table.StoredTable(prepare.prepare(plan), embedding_dim, config.dataset)
  found = dataclasses.replace(found, is_inferred=config.schema is None and fitted is None)
  if config.test_dir is None:
    return found
  test = reader_lib.open_files(config.test_dir, skip_bad_rows=skip)
  held_out = dataclasses.replace(
    _plan(test, all_test, splits.AllTest(), config), fitted=found.transforms
  )
  return dataclasses.replace(found, test_folder=prepare.prepare(held_out))


def make(
  reader: reader_lib.Reader,
  schema: schema_lib.Schema,
  config: experiment.DataConfig,
  embedding_dim: int,
  *,
  splitter: splits.Splitter | None = None,
  left_out: Mapping[str, str] = types.MappingProxyType({}),
  folder: pathlib.Path | None = None,
) -> prepared_table.StoredTable:
  """The prepared data set of a reader: what the loader of a known data set ends with.

  Args:
    reader: the table.
    schema: of it; the crosses of ``config`` join it.
    config: how it is split and prepared.
    embedding_dim: width of the embeddings.
    splitter: its official split, if it has one; else the schema and ``config`` decide.
    left_out: columns that are not in the schema, and why.
    folder: where it is prepared; None: in the cache.
  """
  schema = with_crosses(schema, config, left_out)
  splitter = splitter or _splitter(reader, config, schema)
  plan = dataclasses.replace(_plan(reader, schema, splitter, config), left_out=left_out)
  return prepared_table.StoredTable(prepare.prepare(plan, folder), embedding_dim, config.dataset)


def with_crosses(
  schema: schema_lib.Schema,
  config: experiment.DataConfig,
  left_out: Mapping[str, str] = types.MappingProxyType({}),
) -> schema_lib.Schema:
  """``schema`` and the crosses that ``config`` names; one of the schema's own stays as it is.

  ``left_out`` says why columns are not in the schema.

  Raises:
    ConfigError: a column that does not exist or has no ids; flags that contradict the schema's
      crosses, or are of none.
  """
  _check_cross_flags(schema, config)
  found = {}
  for name in config.crosses:
    columns = tuple(part.strip() for part in name.split(crosses.SEPARATOR))
    for part in columns:
      why = "it is a label" if part in schema.labels else left_out.get(part)
      config_lib.require(why is None, f"data.crosses: {name}: column {part!r} is left out: {why}")
    is_hashed = config.cross_hash_buckets > 0
    found[crosses.SEPARATOR.join(columns)] = schema_lib.Cross(
      columns,
      encoding="hash" if is_hashed else "vocabulary",
      min_count=config.cross_min_count,
      num_hash_buckets=config.cross_hash_buckets or schema_lib.Cross.num_hash_buckets,
    )
  return dataclasses.replace(schema, crosses={**found, **schema.crosses})


def _check_cross_flags(schema: schema_lib.Schema, config: experiment.DataConfig) -> None:
  """Raises ConfigError where a setting would be ignored."""
  config_lib.require(
    bool(config.crosses or schema.crosses) or not config.cross_hash_buckets,
    "data.cross_hash_buckets: there are no crosses; name some, as data.crosses=a*b",
  )
  for name, cross in schema.crosses.items():
    for flag, value, own in (
      ("cross_hash_buckets", config.cross_hash_buckets, cross.num_hash_buckets),
      ("cross_min_count", config.cross_min_count, cross.min_count),
    ):
      is_hashed = cross.encoding == "hash"
      is_given = value != getattr(experiment.DataConfig, flag)
      agrees = own == value and is_hashed == (flag == "cross_hash_buckets")
      config_lib.require(
        not is_given or agrees,
        f"data.{flag}={value}: cross {name!r} is in the schema, whose own settings hold; leave the "
        "setting out, or change the schema",
      )


def _plan(
  reader: reader_lib.Reader,
  schema: schema_lib.Schema,
  splitter: splits.Splitter,
  config: experiment.DataConfig,
) -> prepare.Plan:
  return prepare.Plan(
    reader,
    schema,
    splitter,
    seed=config.seed,
    negative_keep_rate=config.negative_keep_rate,
    skip_bad_rows=config.on_bad_row == "skip",
  )


def _in_memory(
  reader: reader_lib.Reader,
  label: Labels,
  embedding_dim: int,
  schema: schema_lib.Schema | None,
  fields: dict[str, Any],
) -> prepared_table.StoredTable:
  labels = _labels(label, reader.schema.names)
  require_options(fields, experiment.DataConfig)
  config = experiment.DataConfig(**{"dataset": "table", "labels": tuple(labels), **fields})
  reader_lib.require_columns(reader, labels)
  if schema is None:
    guess = infer_schema.infer(reader, config)
    chosen = dataclasses.replace(guess.schema, labels=labels)
  else:
    guess = infer_schema.Guess(schema, {})
    chosen = column_roles.merged(schema, config, labels, "the schema")
  folder = temporary_folder() / "prepared"
  found = make(reader, chosen, config, embedding_dim, left_out=guess.left_out, folder=folder)
  return dataclasses.replace(found, is_inferred=schema is None)


def require_options(names: Iterable[str], *configs: type) -> None:
  """Raises ConfigError unless each name is a field of one of the ``configs``."""
  known = {field.name for one in configs for field in dataclasses.fields(one)}
  for name in names:
    config_lib.require(name in known, f"no option {name!r}; {config_lib.did_you_mean(name, known)}")


def _labels(label: Labels, names: Sequence[str]) -> dict[str, Any]:
  """By label column, the value that counts as 1, or None."""
  if not isinstance(label, Mapping):
    return column_roles.labels_of((label,) if isinstance(label, str) else label, names)
  plain = (str, int, float, type(None))  # what a schema's JSON can say
  return {name: one if isinstance(one, plain) else str(one) for name, one in label.items()}


def schema_of(reader: reader_lib.Reader, config: experiment.DataConfig) -> infer_schema.Guess:
  """The schema that ``config.schema`` names, or a guess."""
  if config.schema is None:
    return infer_schema.infer(reader, config)
  try:
    text = pathlib.Path(config.schema).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise config_lib.ConfigError(f"--schema={config.schema}: cannot be read: {error}") from error
  schema = schema_lib.from_json(text, where=config.schema)
  labels = column_roles.labels_of(config.labels, reader.schema.names)
  return infer_schema.Guess(column_roles.merged(schema, config, labels, config.schema), {})


def _splitter(
  reader: reader_lib.Reader, config: experiment.DataConfig, schema: schema_lib.Schema
) -> splits.Splitter:
  reader_lib.require_columns(reader, schema.used)
  return _by_schema(reader, config, schema, 0.0 if config.test_dir else config.test_fraction)


def _by_schema(
  reader: reader_lib.Reader,
  config: experiment.DataConfig,
  schema: schema_lib.Schema,
  test_fraction: float,
) -> splits.Splitter:
  """By time where the schema names one, else by chance."""
  if schema.time is None:
    return splits.ByChance(config.seed, config.val_fraction, test_fraction)
  return splits.by_time(
    reader,
    schema.time,
    val_fraction=config.val_fraction,
    test_fraction=test_fraction,
    skip_bad_rows=config.on_bad_row == "skip",
  )


def temporary_folder() -> pathlib.Path:
  """A folder that lasts as long as this process."""
  folder = tempfile.mkdtemp(prefix="jaxrec-table-")
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return pathlib.Path(folder)
