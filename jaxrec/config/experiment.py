"""One run of train.py, as a frozen value.

Data, model, optimizers and how long: compared, printed, overridden with ``--set key=value``
(overrides.py), stored in the run's folder. Checked when it is made, so a bad value is named where
it was written, not where it is used.

Read next: jaxrec/config/data.py, its data; jaxrec/config/tables.py, the tables and features.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxrec import config
from jaxrec.config import serialization
from jaxrec.config.data import MULTI_HOT_KINDS, CriteoConfig, DataConfig, EventsConfig

__all__ = [
  "MULTI_HOT_KINDS",
  "CompressionConfig",
  "CriteoConfig",
  "DataConfig",
  "EventsConfig",
  "ExperimentConfig",
  "FtrlConfig",
  "HistoryConfig",
  "ModelConfig",
  "OptimizerConfig",
  "ShardingConfig",
  "from_dict",
  "to_dict",
]


MAX_BITS = 8192  # of a fingerprint; twice the width of an embedding is the default
VARIANTS = ("inner_product", "paper_alg1")


@dataclasses.dataclass(frozen=True)
class HistoryConfig:
  """Models that ask a user's history about a candidate (``models/history.py``).

  Attributes:
    target: the feature of the candidate.
    sequence: the feature of the history, of the candidate's table, with combiner ``none``.
    short_length: the latest steps, which short-term attention reads; 0: there is none.
    num_heads: of attention.
    k: ETA and SIM: how many steps are found.
    category: SIM: features of the candidate's category and of the history's, both sequences.
    num_bits: ETA: of a fingerprint; None: twice the embeddings' width.
    variant: ETA: ``inner_product`` or ``paper_alg1``.
    has_fingerprints: ETA: whether fingerprints lie beside the table, so that serving hashes the
      candidate alone; training renews those of the rows that it writes.
    has_product: whether what attention answers also meets the candidate, as a product.
    kernels: sharpness of the counts of steps that are like the candidate, at first; empty: no such
      counts. ``has_product=false`` and no kernels is how the papers print these models.
  """

  target: str = "item"
  sequence: str = "history"
  short_length: int = 16
  num_heads: int = 2
  k: int = 48
  category: tuple[str, ...] = ()
  num_bits: int | None = None
  variant: str = "inner_product"
  has_fingerprints: bool = False
  has_product: bool = True
  kernels: tuple[float, ...] = (4.0, 16.0, 64.0)

  def __post_init__(self) -> None:
    for name, low in (("short_length", 0), ("num_heads", 1), ("k", 1), ("num_bits", 1)):
      value = getattr(self, name)
      config.require(
        value is None or value >= low, f"model.history.{name}: must be at least {low}, got {value}"
      )
    config.require(
      self.num_bits is None or self.num_bits <= MAX_BITS,
      f"model.history.num_bits: must be at most {MAX_BITS}, got {self.num_bits}",
    )
    config.require(
      self.variant in VARIANTS,
      f"model.history.variant: {self.variant!r}; {config.did_you_mean(self.variant, VARIANTS)}",
    )
    config.require(
      all(0 < value < math.inf for value in self.kernels),
      f"model.history.kernels: must be numbers above 0, got {self.kernels}",
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Which model, and how wide.

  Attributes:
    name: ``dlrm``, ``dlrm_dcnv2``, ``logistic_regression`` or ``wide_deep``; ``wide`` and ``deep``
      are the two parts of the last by themselves. Of histories: ``eta``, ``full_attention``,
      ``din``, ``average_pooling``, ``sim_hard``.
    embedding_dim: width D of every table.
    bottom_mlp: layers over dense features; the last must be ``embedding_dim`` wide.
    top_mlp: layers over the interactions, of Wide & Deep over the dense inputs and embeddings; the
      last must be 1 and is the number of labels.
    self_interaction: DLRM: whether a vector also meets itself.
    cross_layers: DCN-v2: number of cross layers.
    cross_rank: DCN-v2: their rank.
    dropout: share of hidden units set to zero in training.
    history: settings of the models of histories.
    precision: ``f32``, or ``bf16`` to compute in bfloat16 with float32 parameters.
  """

  name: str = "dlrm"
  embedding_dim: int = 16
  bottom_mlp: tuple[int, ...] = (64, 16)
  top_mlp: tuple[int, ...] = (128, 64, 1)
  self_interaction: bool = False
  cross_layers: int = 3
  cross_rank: int = 512
  dropout: float = 0.0
  history: HistoryConfig = HistoryConfig()
  precision: str = "f32"

  def __post_init__(self) -> None:
    config.require(
      self.precision in ("f32", "bf16"),
      f"model.precision: expected f32 or bf16, got {self.precision!r}",
    )
    config.require(0 <= self.dropout < 1, f"model.dropout: must lie in [0, 1), got {self.dropout}")


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
    config.require(
      self.kind in kinds,
      f"compression.kind: {self.kind!r}; {config.did_you_mean(self.kind, kinds)}",
    )
    operations = ("mult", "add", "concat")
    config.require(
      self.operation in operations,
      f"compression.operation: {self.operation!r}; "
      f"{config.did_you_mean(self.operation, operations)}",
    )


@dataclasses.dataclass(frozen=True)
class FtrlConfig:
  """FTRL-proximal (``tables.ftrl``), of the wide part and wherever ``ftrl`` is named.

  A loss here is the mean over a batch, where the paper and TensorFlow sum: their l1 is this one
  times the batch size, their accumulator this one times its square.

  Attributes:
    learning_rate: alpha.
    l1: threshold below which a weight is exactly zero.
    l2: penalty l2 w^2.
    l2_shrinkage: the same on the gradient alone.
    power: of the accumulated squares, -1/2 as in Adagrad.
    initial_accumulator: these squares at first.
  """

  learning_rate: float = 0.1
  l1: float = 0.0
  l2: float = 0.0
  l2_shrinkage: float = 0.0
  power: float = -0.5
  initial_accumulator: float = 1e-6

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value, is_power = getattr(self, field.name), field.name == "power"
      low, high = (-1, 0) if is_power else (0, math.inf)
      config.require(
        field.name != "learning_rate" or value > 0,
        f"optimizer.ftrl.learning_rate: must be above 0, got {value}",
      )
      config.require(
        low <= value <= high and math.isfinite(value),
        f"optimizer.ftrl.{field.name}: must be a finite number of [{low}, {high}], got {value}",
      )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """What moves the parameters.

  Attributes:
    dense: ``sgd``, ``adagrad``, ``rmsprop``, ``adam`` or ``ftrl``, for the layers.
    table: the same or ``rowwise_adagrad``, for the rows; those of a wide part have ``ftrl``.
    learning_rate: peak rate of ``dense``.
    table_learning_rate: peak rate of ``table``; None: ``learning_rate``.
    eps: Adagrad's epsilon.
    warmup_steps: linear warm-up.
    decay_start: first step of the quadratic decay; 0 with decay_steps 0: no decay.
    decay_steps: length of the decay.
    clip_norm: clips the tables' gradient by its global norm.
    l2_rows: L2 penalty on the rows that a batch touches: l2_rows / 2 times the sum of squares; not
      on a wide part's.
    l2_dense: the same on the layers' kernels, not on their biases.
    ftrl: settings of FTRL, which has a learning rate of its own.
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
  l2_rows: float = 0.0
  l2_dense: float = 0.0
  ftrl: FtrlConfig = FtrlConfig()

  def __post_init__(self) -> None:
    for field in (
      "learning_rate",
      "table_learning_rate",
      "eps",
      "clip_norm",
      "l2_rows",
      "l2_dense",
    ):
      value = getattr(self, field)
      config.require(
        value is None or 0 <= value < math.inf,
        f"optimizer.{field}: must be a finite number >= 0, got {value}",
      )


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
  """How tables lie on several devices.

  Attributes:
    mesh: axes and sizes, ``data:2,model:4``; ``auto``: all accelerators of all processes along one
      axis ``data``, and one device where there is one; ``none``: one device.
    rules: ``pattern=layout`` in order, for tables whose whole name the pattern matches: ``user.*=
      row_wise``; layouts are those of ``jaxrec.sharding``, with mesh axes: ``row_wise(model)``.
      ``auto``: the planner's, by the first batches and the devices' published numbers.
    capacity: rows that a device can ask of another in one exchange; None: by the first batches.
    wire_dtype: ``bfloat16``: float32 rows and row gradients are rounded to it where devices
      exchange them, which halves the bytes; None: all bits travel.
  """

  mesh: str = "auto"
  rules: tuple[str, ...] = (".*=row_wise",)
  capacity: int | None = None
  wire_dtype: str | None = None

  def __post_init__(self) -> None:
    config.require(
      self.capacity is None or self.capacity >= 1,
      f"sharding.capacity: must be at least 1, got {self.capacity}",
    )
    config.require(
      self.wire_dtype in config.WIRE_DTYPES,
      f"sharding.wire_dtype: must be one of {config.WIRE_DTYPES}, got {self.wire_dtype!r}",
    )
    for rule in () if self.is_planned else self.rules:
      config.require(
        "=" in rule, f"sharding.rules: {rule!r}: expected pattern=layout, or auto and nothing else"
      )

  @property
  def is_planned(self) -> bool:
    """Whether the planner chooses layouts."""
    return self.rules == ("auto",)


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """One run of train.py.

  Attributes:
    steps: updates to make, unless ``epochs`` says so.
    epochs: passes over a finite data set; 0: ``steps`` decides.
    batch_size: examples an update.
    accumulate_steps: micro-batches an update is computed in.
    seed: of the parameters, the tables, and the order of the data.
    log_every: steps between lines of training metrics.
    eval_every: steps between evaluations on ``val``; each saves a checkpoint. 0: an epoch's.
    early_stop_patience: evaluations without a better AUC after which training ends; 0: it goes on.
    checkpoint_every: steps between checkpoints; 0: at evaluations only.
    eval_examples: examples of an evaluation; 0: the whole split.
    test_examples: examples of the final test; 0: the whole split.
    refit: when the best step is known, train anew on ``train`` and ``val`` together for as many
      passes, in the folder ``refit``, and test that model.
    positive_weight: weight of a positive example's loss, relative to a negative's.
    label_weights: weight of each label's loss; empty: all 1.
    slices: group columns by whose values the final test is broken down.
    baseline_steps: updates of the logistic regression fitted for comparison; 0: none.
    warm_start: folder of an earlier run, on the same columns, whose model this one goes on from.
  """

  data: DataConfig = DataConfig()
  model: ModelConfig = ModelConfig()
  compression: CompressionConfig = CompressionConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  sharding: ShardingConfig = ShardingConfig()
  steps: int = 1500
  epochs: float = 0.0
  batch_size: int = 2048
  accumulate_steps: int = 1
  seed: int = 0
  log_every: int = 50
  eval_every: int = 500
  early_stop_patience: int = 0
  checkpoint_every: int = 0
  eval_examples: int = 65_536
  test_examples: int = 262_144
  refit: bool = False
  positive_weight: float = 1.0
  label_weights: tuple[float, ...] = ()
  slices: tuple[str, ...] = ()
  baseline_steps: int = 1500
  warm_start: str | None = None

  def __post_init__(self) -> None:
    for name in ("steps", "batch_size", "accumulate_steps", "log_every"):
      config.require(
        getattr(self, name) > 0, f"{name}: must be at least 1, got {getattr(self, name)}"
      )
    for name in ("epochs", "eval_every", "early_stop_patience"):
      config.require(
        0 <= getattr(self, name) < math.inf,
        f"{name}: must be a finite number >= 0, got {getattr(self, name)}",
      )
    config.require(
      0 < self.positive_weight < math.inf,
      f"positive_weight: must be a finite number above 0, got {self.positive_weight}",
    )
    for name, most in (("steps", 2**31 - 1), ("batch_size", 2**26)):
      config.require(
        getattr(self, name) <= most, f"{name}: must be at most {most}, got {getattr(self, name)}"
      )
    config.require(
      self.warm_start != "",
      "warm_start: expected the folder of an earlier run, or null for none, got an empty name",
    )
    config.require(
      self.batch_size % self.accumulate_steps == 0,
      f"accumulate_steps: {self.accumulate_steps} does not divide batch_size {self.batch_size}",
    )


def to_dict(config: Any) -> dict[str, Any]:
  """A config as nested plain values, ready for JSON."""
  return serialization.to_plain(config)


def from_dict(values: Any) -> ExperimentConfig:
  """The config that ``to_dict`` made plain, also after a trip through JSON.

  A field that is missing has its default: it is younger than the text.

  Raises:
    ConfigError: an unknown field, or a value of the wrong kind; the message names it.

  >>> from_dict({"model": {"top_mlp": [8, 1]}, "steps": 5}).model.top_mlp
  (8, 1)
  """
  return serialization.from_plain(ExperimentConfig, values)
