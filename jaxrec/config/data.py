"""Where a run's examples come from, as a frozen value: part of ``experiment.ExperimentConfig``.

Read next: jaxrec/data/registry.py.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxrec import config

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
class EventsConfig:
  """How examples are made of a log of events (``data/events/examples.py``).

  Attributes:
    user: column of who; it, ``item`` and ``data.time`` are columns of the log.
    item: column of what was chosen.
    context: columns of what was known at the event, the same for its negatives.
    item_columns: columns of what is known of the item, one value an item.
    histories: columns beside the item whose earlier values an example has too: of ``category`` it
      is ``category_history``.
    history_length: the most earlier events of a user that an example sees, the latest.
    min_history: events with fewer earlier ones are no examples.
    negatives: ``popularity``, ``uniform`` or ``category``: how items not chosen are drawn.
    num_negatives: how many beside each event.
    excluding: an item is no negative if the user chose it at the same ``moment``, or ever
      (``user``).
    category: column of the items' category, of which negatives are, where ``negatives`` is
      ``category``.
  """

  user: str | None = None
  item: str | None = None
  context: tuple[str, ...] = ()
  item_columns: tuple[str, ...] = ()
  histories: tuple[str, ...] = ()
  history_length: int = 50
  min_history: int = 5
  negatives: str = "popularity"
  num_negatives: int = 1
  excluding: str = "moment"
  category: str | None = None

  def __post_init__(self) -> None:
    for name, low in (("history_length", 1), ("min_history", 0), ("num_negatives", 1)):
      value = getattr(self, name)
      config.require(value >= low, f"data.events.{name}: must be at least {low}, got {value}")


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
    events: how examples are made of a log of events: of events and online_retail.
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
  events: EventsConfig = EventsConfig()

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
