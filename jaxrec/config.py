"""Everything a run is made of, as frozen values.

Tables, features and experiments are plain frozen dataclasses: compared, hashed, printed, overridden
with ``--set key=value`` and stored beside a checkpoint. They are validated when they are made, so a
bad value is named where it was written, not where it is used. Standard library only.

Read next: jaxrec/features/batch.py, what a batch of these features looks like.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

COMBINERS = ("sum", "mean", "sqrtn", "none")
TABLE_DTYPES = ("float32", "bfloat16", "float16")
MAX_ROWS_PER_STACK = 2**31 - 2**27  # int32 row numbers, with room for padding slots past the end


class ConfigError(ValueError):
  """A configuration value that cannot be used; the message names it and says what would do."""


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise ConfigError(message)


def did_you_mean(word: str, known: Iterable[str]) -> str:
  """A hint naming what is known, the nearest spelling first.

  >>> did_you_mean("syntetic", ["criteo", "synthetic"])
  "did you mean 'synthetic'? Known: criteo, synthetic"
  """
  known = list(known)
  close = difflib.get_close_matches(word, known, n=1)
  hint = f"did you mean '{close[0]}'? " if close else ""
  return f"{hint}Known: {', '.join(sorted(known))}"


@dataclasses.dataclass(frozen=True)
class Initializer:
  """How a row's first value is drawn.

  Attributes:
    kind: ``uniform`` (in ±scale), ``normal`` (standard deviation scale) or ``constant`` (= scale).
    scale: None means sqrt(1 / vocab_size), DLRM's choice for uniform tables.
  """

  kind: str = "uniform"
  scale: float | None = None

  def __post_init__(self) -> None:
    kinds = ("uniform", "normal", "constant")
    _require(self.kind in kinds, f"Initializer.kind: expected one of {kinds}, got {self.kind!r}")


@dataclasses.dataclass(frozen=True)
class TableConfig:
  """One embedding table: a row of ``embedding_dim`` numbers for each of ``vocab_size`` ids.

  Attributes:
    name: unique among the tables of a model; initial rows depend on it.
    vocab_size: number of rows V; ids lie in [0, V).
    embedding_dim: width D of a row.
    dtype: ``float32``, ``bfloat16`` or ``float16``.
    initializer: how rows begin.
    optimizer: key into ``Optimizers(rows={...})`` when tables do not all share one row optimizer.
  """

  name: str
  vocab_size: int
  embedding_dim: int
  dtype: str = "float32"
  initializer: Initializer = Initializer()
  optimizer: str | None = None

  def __post_init__(self) -> None:
    where = f"table {self.name!r}"
    _require(bool(self.name), "a table needs a name")
    _require(
      0 < self.vocab_size <= MAX_ROWS_PER_STACK,
      f"{where}: vocab_size must lie in [1, {MAX_ROWS_PER_STACK}], got {self.vocab_size}",
    )
    _require(
      self.embedding_dim > 0, f"{where}: embedding_dim must be >= 1, got {self.embedding_dim}"
    )
    _require(
      self.dtype in TABLE_DTYPES,
      f"{where}: dtype must be one of {TABLE_DTYPES}, got {self.dtype!r}",
    )

  @property
  def num_bytes(self) -> int:
    """Bytes of the rows alone, without optimizer moments."""
    return self.vocab_size * self.embedding_dim * (4 if self.dtype == "float32" else 2)


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
  """One categorical input and the table it looks up. Features may share a table.

  Attributes:
    name: the key in ``Batch.ids`` and in the embeddings that a model receives.
    table: the table looked up.
    combiner: how a bag of rows becomes one vector: ``sum``, ``mean``, ``sqrtn``; ``none`` keeps the
      sequence, f32[B, ids_per_bag, D] with a mask.
    ids_per_bag: the most ids one example may hold. 1 takes the single-valued fast path.
    weighted: whether each id carries a weight.
  """

  name: str
  table: TableConfig
  combiner: str = "sum"
  ids_per_bag: int = 1
  weighted: bool = False

  def __post_init__(self) -> None:
    where = f"feature {self.name!r}"
    _require(bool(self.name), "a feature needs a name")
    _require(
      self.combiner in COMBINERS,
      f"{where}: combiner must be one of {COMBINERS}, got {self.combiner!r}",
    )
    _require(self.ids_per_bag > 0, f"{where}: ids_per_bag must be >= 1, got {self.ids_per_bag}")
    _require(
      not (self.weighted and self.combiner == "none"),
      f"{where}: a weighted feature needs a combiner of sum, mean or sqrtn, got 'none'",
    )

  @property
  def is_single_valued(self) -> bool:
    return self.ids_per_bag == 1 and not self.weighted and self.combiner != "none"


def check_features(features: Sequence[FeatureConfig]) -> None:
  """Raises ConfigError unless names are unique and features agree on the tables they share."""
  tables: dict[str, TableConfig] = {}
  names: set[str] = set()
  for feature in features:
    _require(feature.name not in names, f"feature {feature.name!r} is declared twice")
    names.add(feature.name)
    known = tables.setdefault(feature.table.name, feature.table)
    _require(
      known == feature.table,
      f"feature {feature.name!r}: table {feature.table.name!r} is declared twice, differently: "
      f"{known} and {feature.table}",
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where examples come from.

  Attributes:
    dataset: a name in the registry (``jaxrec/data/registry.py``).
    data_dir: where the data set's files lie, if it has any.
    vocab_sizes: rows of each table; empty: the data set's own.
    ids_per_bag: most ids per example of each feature; empty: the data set's own.
    combiner: how every feature pools its bag; None: the data set's own.
    max_rows_per_table: cap on every table's rows.
    seed: of a generated data set: another seed, another click log and teacher.
    num_workers: worker processes that read and hash; 0: threads of the trainer.
    prefetch_depth: batches on the device, or on their way there, ahead of the step.
  """

  dataset: str = "synthetic"
  data_dir: str | None = None
  vocab_sizes: tuple[int, ...] = ()
  ids_per_bag: tuple[int, ...] = ()
  combiner: str | None = None
  max_rows_per_table: int | None = None
  seed: int = 0
  num_workers: int = 0
  prefetch_depth: int = 2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Which model, and how wide.

  Attributes:
    name: ``dlrm``, ``dlrm_dcnv2`` or ``logistic_regression``.
    embedding_dim: width D of every table.
    bottom_mlp: layers over dense features; the last must be ``embedding_dim`` wide.
    top_mlp: layers over the interactions; the last must be 1.
    self_interaction: DLRM: whether a vector also meets itself.
    cross_layers: DCN-v2: number of cross layers.
    cross_rank: DCN-v2: their rank.
    precision: ``f32``, or ``bf16`` to compute in bfloat16 with float32 parameters.
  """

  name: str = "dlrm"
  embedding_dim: int = 16
  bottom_mlp: tuple[int, ...] = (64, 16)
  top_mlp: tuple[int, ...] = (128, 64, 1)
  self_interaction: bool = False
  cross_layers: int = 3
  cross_rank: int = 512
  precision: str = "f32"

  def __post_init__(self) -> None:
    _require(
      self.precision in ("f32", "bf16"),
      f"model.precision: expected f32 or bf16, got {self.precision!r}",
    )


@dataclasses.dataclass(frozen=True)
class CompressionConfig:
  """How tables are made smaller than their vocabularies (``layers/compression.py``).

  Attributes:
    kind: ``none``, ``quotient_remainder`` or ``mixed_dims``.
    threshold: tables of at most so many rows are left alone.
    num_collisions: quotient-remainder: ids that share a quotient row.
    operation: quotient-remainder: how the two vectors are joined: ``mult``, ``add``, ``concat``.
    alpha: mixed dimensions: 0 leaves all tables as wide as they are.
  """

  kind: str = "none"
  threshold: int = 200
  num_collisions: int = 4
  operation: str = "mult"
  alpha: float = 0.3

  def __post_init__(self) -> None:
    kinds = ("none", "quotient_remainder", "mixed_dims")
    _require(
      self.kind in kinds, f"compression.kind: {self.kind!r}; {did_you_mean(self.kind, kinds)}"
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """What moves the parameters.

  Attributes:
    dense: ``sgd``, ``adagrad``, ``rmsprop`` or ``adam``, for the layers.
    table: the same or ``rowwise_adagrad``, for the rows.
    learning_rate: peak rate of ``dense``.
    table_learning_rate: peak rate of ``table``; None: ``learning_rate``.
    eps: Adagrad's epsilon.
    warmup_steps: linear warm-up.
    decay_start: first step of the quadratic decay; 0 with decay_steps 0: no decay.
    decay_steps: length of the decay.
    clip_norm: clips the tables' gradient by its global norm.
  """

  dense: str = "adam"
  table: str = "rowwise_adagrad"
  learning_rate: float = 1e-3
  table_learning_rate: float | None = 0.05
  eps: float = 1e-10
  warmup_steps: int = 0
  decay_start: int = 0
  decay_steps: int = 0
  clip_norm: float | None = None

  def __post_init__(self) -> None:
    for field in ("learning_rate", "table_learning_rate", "eps", "clip_norm"):
      value = getattr(self, field)
      _require(
        value is None or 0 <= value < math.inf,
        f"optimizer.{field}: must be a finite number >= 0, got {value}",
      )


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """One run of train.py.

  Attributes:
    steps: updates to make.
    batch_size: examples an update.
    accumulate_steps: micro-batches an update is computed in.
    seed: of the parameters, the tables, and the order of the data.
    log_every: steps between lines of training metrics.
    eval_every: steps between evaluations on ``val``; each saves a checkpoint.
    checkpoint_every: steps between checkpoints; 0: at evaluations only.
    eval_examples: examples of an evaluation; 0: the whole split.
    test_examples: examples of the final test; 0: the whole split.
    baseline_steps: updates of the logistic regression fitted for comparison; 0: none.
  """

  data: DataConfig = DataConfig()
  model: ModelConfig = ModelConfig()
  compression: CompressionConfig = CompressionConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  steps: int = 1500
  batch_size: int = 2048
  accumulate_steps: int = 1
  seed: int = 0
  log_every: int = 50
  eval_every: int = 500
  checkpoint_every: int = 0
  eval_examples: int = 65_536
  test_examples: int = 262_144
  baseline_steps: int = 1500

  def __post_init__(self) -> None:
    for name in ("steps", "batch_size", "accumulate_steps", "log_every", "eval_every"):
      _require(getattr(self, name) > 0, f"{name}: must be at least 1, got {getattr(self, name)}")
    for name, most in (("steps", 2**31 - 1), ("batch_size", 2**26)):
      _require(
        getattr(self, name) <= most, f"{name}: must be at most {most}, got {getattr(self, name)}"
      )
    _require(
      self.batch_size % self.accumulate_steps == 0,
      f"accumulate_steps: {self.accumulate_steps} does not divide batch_size {self.batch_size}",
    )


def to_dict(config: Any) -> dict[str, Any]:
  """A config as nested plain values, ready for JSON."""
  return {
    field.name: to_dict(value) if dataclasses.is_dataclass(value) else value
    for field in dataclasses.fields(config)
    for value in [getattr(config, field.name)]
  }


def with_overrides(config: Any, overrides: Iterable[str]) -> Any:
  """``config`` with ``key=value`` texts applied; nested keys are dotted.

  >>> with_overrides(ExperimentConfig(), ["model.top_mlp=512,256,1", "steps=10"]).model.top_mlp
  (512, 256, 1)

  Raises:
    ConfigError: unknown key, or a value of the wrong kind; the message names both.
  """
  for override in overrides:
    key, equals, text = override.partition("=")
    _require(bool(equals), f"--set {override}: expected key=value")
    config = _with_value(config, key.strip().split("."), text.strip(), key)
  return config


def _with_value(config: Any, path: list[str], text: str, key: str) -> Any:
  fields = {field.name: field for field in dataclasses.fields(config)}
  _require(path[0] in fields, f"--set {key}: no such field; {did_you_mean(path[0], fields)}")
  value = getattr(config, path[0])
  if dataclasses.is_dataclass(value):
    known = [f"{path[0]}.{f.name}" for f in dataclasses.fields(value)]
    _require(len(path) > 1, f"--set {key}: is a group; set one of {', '.join(known)}")
    return dataclasses.replace(config, **{path[0]: _with_value(value, path[1:], text, key)})
  _require(len(path) == 1, f"--set {key}: {path[0]} is a single value, not a group")
  kind = typing.get_type_hints(type(config))[path[0]]
  return dataclasses.replace(config, **{path[0]: _parse(kind, text, key)})


def _parse(kind: Any, text: str, key: str) -> Any:
  if isinstance(kind, types.UnionType):
    if text.lower() in ("none", "null"):
      return None
    kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
  if typing.get_origin(kind) is tuple:
    inner = typing.get_args(kind)[0]
    return tuple(_parse(inner, part, key) for part in text.strip("()[]").split(",") if part.strip())
  if kind is bool:
    _require(
      text.lower() in ("true", "false", "1", "0"),
      f"--set {key}: expected true or false, got {text!r}",
    )
    return text.lower() in ("true", "1")
  try:
    return kind(text)
  except ValueError:
    raise ConfigError(f"--set {key}: expected {kind.__name__}, got {text!r}") from None
