"""One run of train.py, as a frozen value.

Data, model, optimizers and how long: compared, printed, overridden with ``--set key=value``
(overrides.py), stored in the run's folder. Checked when it is made, so a bad value is named where
it was written, not where it is used.

Read next: jaxrec/config.py, the tables and features underneath.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from jaxrec import config, plain

MULTI_HOT_KINDS = ("none", "uniform", "pareto")


@dataclasses.dataclass(frozen=True)
class CriteoConfig:
  """How ``--dataset=criteo`` prepares the raw files (``jaxrec/data/criteo/``).

  Attributes:
    recipe: ``dlrm`` (facebookresearch/dlrm) or ``mlperf`` (torchrec and MLPerf).
    frequency_threshold: mlperf: ids seen less often than this in all days share row 1; 0 keeps all.
    sub_sample_rate: dlrm: share of the negatives that is dropped, in every split.
    multi_hot: ``none``, or ``uniform`` or ``pareto``: MLPerf's synthetic bags, as long as
      ``data.ids_per_bag`` says.
    prepared_dir: the folder that prepared data goes into; None: $JAXREC_CACHE or ~/.cache/jaxrec.
    prepare_workers: processes that prepare; they change how long it takes, and nothing else.
    chunk_bytes: raw text read at a time; changes nothing but memory and speed either.
  """

  recipe: str = "dlrm"
  frequency_threshold: int = 3
  sub_sample_rate: float = 0.0
  multi_hot: str = "none"
  prepared_dir: str | None = None
  prepare_workers: int = 1
  chunk_bytes: int = 2**20

  def __post_init__(self) -> None:
    for name, known in (("recipe", ("dlrm", "mlperf")), ("multi_hot", MULTI_HOT_KINDS)):
      value = getattr(self, name)
      config.require(
        value in known, f"data.criteo.{name}: {value!r}; {config.did_you_mean(value, known)}"
      )
    for name, least in (("frequency_threshold", 0), ("prepare_workers", 1), ("chunk_bytes", 1)):
      value = getattr(self, name)
      config.require(
        least <= value < 2**31, f"data.criteo.{name}: must lie in [{least}, 2^31), got {value}"
      )
    config.require(
      0 <= self.sub_sample_rate < 1,
      f"data.criteo.sub_sample_rate: must lie in [0, 1), got {self.sub_sample_rate}",
    )
    config.require(
      self.recipe == "dlrm" or not self.sub_sample_rate,
      "data.criteo.sub_sample_rate: only the recipe dlrm drops negatives; mlperf keeps all",
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where examples come from.

  Attributes:
    dataset: a name in the registry (``jaxrec/data/registry.py``).
    data_dir: where the data set's files lie, if it has any.
    vocab_sizes: rows of each table; empty: the data set's own.
    ids_per_bag: most ids per example of each feature; empty: the data set's own.
    combiner: how every feature pools its bag, ``none`` (of None, which ``--set`` writes ``null``)
      keeping the sequence; None: the data set's own.
    max_rows_per_table: cap on every table's rows.
    seed: of a generated data set: another seed, another click log and teacher. Of a data set of
      files: which rows a random split takes.
    labels: columns to learn, each 0 or 1 (or ``income=rich``: 1 where it says ``rich``), the first
      the one that runs are judged by; empty: the data set's own.
    weight: column of example weights.
    group: column whose values group examples: GAUC, the average of each group's AUC.
    time: column that orders examples; the latest are ``val`` and ``test``. None: a random split.
    schema: an edited ``schema.json`` to use instead of an inferred one.
    test_dir: files of the test split, where it has files of its own.
    val_fraction: share of the training examples, the latest of them where time exists, that chooses
      hyperparameters and the best checkpoint.
    test_fraction: share of all examples that is held out, where there is no ``test_dir``.
    min_count: values seen less often in training share the out-of-vocabulary rows.
    num_buckets: quantile buckets of a numeric column.
    crosses: crossed features, by columns: ``education*occupation``; tables of rows only.
    cross_min_count: combinations seen less often in training share the out-of-vocabulary rows.
    cross_hash_buckets: rows of each cross, by hash; 0: a vocabulary.
    on_bad_row: ``error``: a row that cannot be read or must not be learned ends the run;
      ``skip``: it is left out, counted and reported with its file and line.
    negative_keep_rate: share r of the training negatives (all labels 0) that is kept, chosen by a
      hash of the row; the loss corrects for it (by log r), so predictions stay calibrated.
    num_workers: worker processes that read and hash; 0: threads of the trainer.
    prefetch_depth: batches on the device, or on their way there, ahead of the step.
    criteo: how Criteo's raw files are prepared.
  """

  dataset: str = "synthetic"
  data_dir: str | None = None
  vocab_sizes: tuple[int, ...] = ()
  ids_per_bag: tuple[int, ...] = ()
  combiner: Literal["sum", "mean", "sqrtn", "none"] | None = None
  max_rows_per_table: int | None = None
  seed: int = 0
  labels: tuple[str, ...] = ()
  weight: str | None = None
  group: str | None = None
  time: str | None = None
  schema: str | None = None
  test_dir: str | None = None
  val_fraction: float = 0.1
  test_fraction: float = 0.1
  min_count: int = 1
  num_buckets: int = 128
  crosses: tuple[str, ...] = ()
  cross_min_count: int = 1
  cross_hash_buckets: int = 0
  on_bad_row: str = "error"
  negative_keep_rate: float = 1.0
  num_workers: int = 0
  prefetch_depth: int = 2
  criteo: CriteoConfig = CriteoConfig()

  def __post_init__(self) -> None:
    for name in ("val_fraction", "test_fraction"):
      value = getattr(self, name)
      config.require(0 <= value < 1, f"data.{name}: must lie in [0, 1), got {value}")
    config.require(
      0 < self.negative_keep_rate <= 1,
      f"data.negative_keep_rate: must lie in (0, 1], got {self.negative_keep_rate}",
    )
    config.require(
      self.on_bad_row in ("error", "skip"),
      f"data.on_bad_row: expected error or skip, got {self.on_bad_row!r}",
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Which model, and how wide.

  Attributes:
    name: ``dlrm``, ``dlrm_dcnv2``, ``logistic_regression`` or ``wide_deep``; ``wide`` and ``deep``
      are the two parts of the last by themselves.
    embedding_dim: width D of every table.
    bottom_mlp: layers over dense features; the last must be ``embedding_dim`` wide.
    top_mlp: layers over the interactions, of Wide & Deep over the dense inputs and embeddings; the
      last must be 1 and is the number of labels.
    self_interaction: DLRM: whether a vector also meets itself.
    cross_layers: DCN-v2: number of cross layers.
    cross_rank: DCN-v2: their rank.
    dropout: share of hidden units set to zero in training.
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
  return plain.to_plain(config)


def from_dict(values: Any) -> ExperimentConfig:
  """The config that ``to_dict`` made plain, also after a trip through JSON.

  A field that is missing has its default: it is younger than the text.

  Raises:
    ConfigError: an unknown field, or a value of the wrong kind; the message names it.

  >>> from_dict({"model": {"top_mlp": [8, 1]}, "steps": 5}).model.top_mlp
  (8, 1)
  """
  return plain.from_plain(ExperimentConfig, values)
