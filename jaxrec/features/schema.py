"""Which columns a table has, and what becomes of each: a small file that people edit.

A ``Schema`` names the labels and, for every other column that is to be learned from, a ``Column``:
its kind and how its values become numbers. It is inferred from the data
(data/prepared/infer_schema.py), printed, saved as JSON, and read again with whatever was changed in
it. What the data decides (vocabularies, quantiles) is fitted later and kept apart (transforms.py),
so the file stays short.

Source: TensorFlow Data Validation's schema and NVTabular's workflows, as one plain value.
Read next: jaxrec/features/transforms.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jaxrec import config

KINDS = ("categorical", "numeric", "list", "sequence")
ENCODINGS = ("vocabulary", "hash")
DENSE_STEPS = ("log", "standardise", "cdf")


@dataclasses.dataclass(frozen=True)
class Column:
  """What becomes of one column.

  Attributes:
    kind: ``categorical``: one id an example; ``numeric``: a number; ``list``: a bag of ids, pooled;
      ``sequence``: ids in order, the oldest first.
    encoding: of ids: ``vocabulary``, or ``hash`` into ``num_hash_buckets`` rows.
    min_count: vocabulary: values seen less often in training are out of it.
    max_size: vocabulary: at most so many values, the most frequent.
    oov_buckets: vocabulary: rows shared by the values outside it, chosen by hash.
    num_hash_buckets: rows of a hashed column.
    dense: numeric: steps from the number to the dense input, in order: ``log`` (sign(x) log(1 +
      |x|)), ``standardise`` (mean 0, deviation 1), ``cdf`` (quantile normalisation). Empty: the
      column is no dense input.
    buckets: numeric: quantile buckets, each with an embedding; 0: none.
    max_length: list and sequence: the most ids of an example; None: those of the longest. A longer
      one is refused in a ``list`` and cut to its latest ids in a ``sequence``.
    combiner: list and sequence: ``mean``, ``sum``, ``sqrtn``; sequence also ``none``.
    separator: list and sequence: in text, what stands between the values.
    table: name of the table; columns of one table share its vocabulary. Default: the column's name.
    embedding_dim: width of the table; None: the model's.
  """

  kind: str
  encoding: str = "vocabulary"
  min_count: int = 1
  max_size: int | None = None
  oov_buckets: int = 1
  num_hash_buckets: int = 100_000
  dense: tuple[str, ...] = ("cdf",)
  buckets: int = 128
  max_length: int | None = None
  combiner: str = "mean"
  separator: str = "|"
  table: str | None = None
  embedding_dim: int | None = None

  @property
  def is_numeric(self) -> bool:
    return self.kind == "numeric"

  @property
  def is_bag(self) -> bool:
    return self.kind in ("list", "sequence")

  @property
  def is_embedded(self) -> bool:
    return not self.is_numeric or self.buckets > 0


@dataclasses.dataclass(frozen=True)
class Cross:
  """A crossed feature: an id for each combination of ids of several columns.

  Attributes:
    columns: two or more that have ids: a numeric one enters by its buckets.
    encoding: ``vocabulary``, or ``hash`` into ``num_hash_buckets`` rows.
    min_count: vocabulary: combinations seen less often in training are out of it.
    max_size: vocabulary: at most so many, the most frequent.
    oov_buckets: vocabulary: rows shared by the combinations outside it, chosen by hash.
    num_hash_buckets: rows of a hashed cross.
    max_length: of lists and sequences: the most combinations of an example, which is refused with
      more; None: those of the example that has the most.
    embedding_dim: width of its table; None: the model's.
  """

  columns: tuple[str, ...]
  encoding: str = "vocabulary"
  min_count: int = 1
  max_size: int | None = None
  oov_buckets: int = 1
  num_hash_buckets: int = 100_000
  max_length: int | None = None
  embedding_dim: int | None = None


@dataclasses.dataclass(frozen=True)
class Schema:
  """All columns that matter, by role.

  Attributes:
    labels: what is learned, by column: the value that counts as 1, or None for a column of 0 and 1.
    columns: what is learned from, by column, in order.
    weight: column of example weights, or None.
    groups: columns whose values group examples, for GAUC and slices.
    time: column that orders examples, or None.
    crosses: crossed features by name, learned from too.
  """

  labels: Mapping[str, Any]
  columns: Mapping[str, Column]
  weight: str | None = None
  groups: tuple[str, ...] = ()
  time: str | None = None
  crosses: Mapping[str, Cross] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    config.require(bool(self.labels), "schema: name at least one label column (--label=click)")
    config.require(
      bool(self.columns), "schema: no column is left to learn from; declare at least one feature"
    )
    tables: dict[str, tuple[str, Column]] = {}
    for name, column in self.columns.items():
      config.require(
        name not in self.labels and name != self.weight,
        f"schema: column {name!r} is a label or the weight, and a feature too: the answer would be "
        "among the questions; take it out of 'features'",
      )
      check_column(name, column)
      if column.is_numeric:
        continue
      other, first = tables.setdefault(column.table or name, (name, column))
      config.require(
        _coding(first) == _coding(column),
        f"schema: columns {other!r} and {name!r} share table {column.table or name!r} but not "
        "encoding, min_count, max_size, oov_buckets, num_hash_buckets and embedding_dim; make "
        "these equal, or give each a table of its own",
      )

    for name, cross in self.crosses.items():
      check_cross(name, cross, self.columns)

  @property
  def used(self) -> tuple[str, ...]:
    """Every column that must be read, once each: labels first."""
    extra = [name for name in (self.weight, *self.groups, self.time) if name is not None]
    return tuple(dict.fromkeys([*self.labels, *extra, *self.columns]))

  def tables(self) -> dict[str, list[str]]:
    """Names of the columns of ids that share each table."""
    found: dict[str, list[str]] = {}
    for name, column in self.columns.items():
      if not column.is_numeric:
        found.setdefault(column.table or name, []).append(name)
    return found

  def describe(self) -> str:
    """One line a column, for people."""
    width = max(len(name) for name in self.used)
    lines = [f"  {name:<{width}}  label" + _positive(value) for name, value in self.labels.items()]
    roles = {"weight": (self.weight,), "group": self.groups, "time": (self.time,)}
    for role, names in roles.items():
      lines += [f"  {name:<{width}}  {role}" for name in names if name is not None]
    lines += [f"  {name:<{width}}  {summary(column)}" for name, column in self.columns.items()]
    lines += [f"  {n}  cross: {_coded(c)}{_at_most(c)}" for n, c in self.crosses.items()]
    return "\n".join(lines)


def summary(column: Column) -> str:
  """What a column is, in a few words.

  >>> summary(Column("numeric", buckets=0))
  'numeric: dense (cdf)'
  """
  if column.is_numeric:
    parts = [f"dense ({', '.join(column.dense)})"] if column.dense else []
    parts += [f"{column.buckets} quantile buckets"] if column.buckets else []
    return f"numeric: {', '.join(parts)}"
  bag = f"{_at_most(column)}, {column.combiner}" if column.is_bag else ""
  return f"{column.kind}: {_coded(column)}{bag}" + (
    f", table {column.table}" if column.table else ""
  )


def _coded(ids: Column | Cross) -> str:
  if ids.encoding == "hash":
    return f"hashed into {ids.num_hash_buckets} rows"
  return "vocabulary" + (f", min count {ids.min_count}" if ids.min_count > 1 else "")


def _at_most(part: Column | Cross) -> str:
  return f", at most {part.max_length}" if part.max_length else ""


def to_json(schema: Schema) -> str:
  """The file people edit; ``from_json`` reads it. Fields at their defaults are left out."""
  features = {
    name: {"kind": column.kind, **_changed(column)} for name, column in schema.columns.items()
  }
  found: dict[str, Any] = {
    "labels": dict(schema.labels),
    "weight": schema.weight,
    "groups": schema.groups,
    "time": schema.time,
    "features": features,
  }
  if schema.crosses:
    found["crosses"] = {
      name: {"columns": list(cross.columns), **_differing(cross, ("columns",))}
      for name, cross in schema.crosses.items()
    }
  return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def from_json(text: str, *, where: str = "schema.json") -> Schema:
  """A Schema from ``to_json``'s form, edited or not.

  Raises:
    ConfigError: not JSON, an unknown key or a bad value; the message names ``where`` and the key.
  """
  try:
    found = json.loads(text)
  except ValueError as error:
    raise config.ConfigError(f"{where}: is not JSON: {error}") from error
  config.require(isinstance(found, dict), f"{where}: expected a JSON object")
  known = ("labels", "weight", "groups", "time", "features", "crosses")
  for key in found:
    config.require(key in known, f"{where}: key {key!r}; {config.did_you_mean(key, known)}")
  config.require(
    isinstance(found.get("crosses") or {}, dict), f"{where}: 'crosses' must be an object with names"
  )
  for key in ("labels", "features"):
    config.require(
      isinstance(found.get(key), dict), f"{where}: {key!r} must be an object with a key a column"
    )
  return Schema(
    labels=found["labels"],
    columns={n: _part(Column, "kind", n, f, where) for n, f in found["features"].items()},
    weight=found.get("weight"),
    groups=tuple(found.get("groups") or ()),
    time=found.get("time"),
    crosses={
      n: _part(Cross, "columns", n, f, where) for n, f in (found.get("crosses") or {}).items()
    },
  )


def check_column(name: str, column: Column) -> None:
  """Raises ConfigError unless every field of the column makes sense."""
  where = f"schema: column {name!r}"
  for field, value, known in (
    ("kind", column.kind, KINDS),
    ("encoding", column.encoding, ENCODINGS),
    *(("dense", step, DENSE_STEPS) for step in column.dense),
  ):
    config.require(
      value in known, f"{where}: {field} {value!r}; {config.did_you_mean(str(value), known)}"
    )
  _check_numbers(column, where)
  config.require(
    isinstance(column.separator, str) and column.separator != "",
    f"{where}: separator must be a text that stands between the values, got {column.separator!r}",
  )
  combiners = config.COMBINERS if column.kind == "sequence" else config.COMBINERS[:3]
  config.require(column.combiner in combiners, f"{where}: combiner must be one of {combiners}")
  config.require(
    not column.is_numeric or bool(column.dense) or column.buckets > 0,
    f"{where}: has neither dense steps nor buckets, so nothing would be learned from it; take it "
    "out of 'features' instead",
  )


def check_cross(name: str, cross: Cross, columns: Mapping[str, Column]) -> None:
  """Raises ConfigError unless every field of the cross makes sense with these ``columns``."""
  where = f"schema: cross {name!r}"
  config.require(
    isinstance(cross.columns, tuple) and len(set(cross.columns)) == len(cross.columns) >= 2,
    f"{where}: needs a list of two or more different columns, got {_shown(cross.columns)}",
  )
  config.require(name not in columns, f"{where}: is a column's name too; rename it")
  for column in cross.columns:
    config.require(
      column in columns, f"{where}: column {column!r}; {config.did_you_mean(column, columns)}"
    )
    config.require(
      columns[column].is_embedded,
      f"{where}: column {column!r} has numbers and no buckets, so no ids to combine; give it some",
    )
  config.require(
    cross.encoding in ENCODINGS,
    f"{where}: encoding {cross.encoding!r}; {config.did_you_mean(cross.encoding, ENCODINGS)}",
  )
  config.require(
    cross.max_length is None or any(columns[column].is_bag for column in cross.columns),
    f"{where}: max_length is of crosses of lists and sequences, and its columns have one id each; "
    "leave it out",
  )
  _check_numbers(cross, where)


def _shown(columns: Any) -> str:
  return (", ".join(columns) or "none") if isinstance(columns, tuple) else repr(columns)


_LEAST = {
  "min_count": 1,
  "max_size": 0,
  "oov_buckets": 1,
  "num_hash_buckets": 1,
  "buckets": 0,
  "max_length": 1,
  "embedding_dim": 1,
}


def _check_numbers(part: Column | Cross, where: str) -> None:
  for field in dataclasses.fields(part):
    if field.name not in _LEAST:
      continue
    value, low = getattr(part, field.name), _LEAST[field.name]
    config.require(
      value is None and field.default is None or isinstance(value, int) and value >= low,
      f"{where}: {field.name} must be a whole number >= {low}, got {value!r}",
    )


def _changed(column: Column) -> dict[str, Any]:
  """Fields whose value is not the default, and those that a kind is chiefly described by."""
  usual = {
    "categorical": ("encoding", "min_count"),
    "numeric": ("dense", "buckets"),
    "list": ("encoding", "max_length", "combiner"),
    "sequence": ("encoding", "max_length", "combiner"),
  }[column.kind]
  return _differing(column, ("kind",), usual)


def _differing(
  part: Column | Cross, without: tuple[str, ...], usual: tuple[str, ...] = ()
) -> dict[str, Any]:
  """Fields that differ from their defaults, and the ``usual`` ones."""
  return {
    field.name: getattr(part, field.name)
    for field in dataclasses.fields(part)
    if field.name not in without
    and (field.name in usual or getattr(part, field.name) != field.default)
  }


def _part(kind: Any, needed: str, name: str, found: Any, where: str) -> Any:
  """A Column or Cross of its fields in JSON."""
  config.require(
    isinstance(found, dict) and needed in found, f"{where}: feature {name!r} needs {needed!r}"
  )
  known = [field.name for field in dataclasses.fields(kind)]
  for key in found:
    config.require(
      key in known, f"{where}: feature {name!r}, key {key!r}; {config.did_you_mean(key, known)}"
    )
  return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})


def _coding(column: Column) -> tuple[Any, ...]:
  return (
    column.encoding,
    column.min_count,
    column.max_size,
    column.oov_buckets,
    column.num_hash_buckets if column.encoding == "hash" else None,
    column.embedding_dim,
  )


def _positive(value: Any) -> str:
  return "" if value is None else f": 1 where it is {value!r}"
