"""Tables and features, as frozen values.

Plain frozen dataclasses: compared, hashed, printed. They are validated when they are made, so a bad
value is named where it was written, not where it is used. Standard library only.

Read next: jaxrec/config/experiment.py, a whole run as a value; jaxrec/inputs/batch.py, what a batch
of these features looks like.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Sequence

COMBINERS = ("sum", "mean", "sqrtn", "none")
TABLE_DTYPES = ("float32", "bfloat16", "float16")
WIRE_DTYPES = (None, "bfloat16")  # not float16, whose range gradients leave
MAX_ROWS_PER_STACK = 2**31 - 2**27  # int32 row numbers, with room for padding slots past the end


class ConfigError(ValueError):
  """A configuration value that cannot be used; the message names it and says what would do."""


def require(condition: bool, message: str) -> None:
  """Raises ConfigError with ``message`` unless ``condition``."""
  if not condition:
    raise ConfigError(message)


def _require_ints(where: str, **values: int) -> None:
  """Raises ConfigError unless each value is a whole number of Python's or NumPy's."""
  for name, value in values.items():
    is_int = isinstance(value, numbers.Integral)
    require(is_int, f"{where}: {name} must be an int, got {value!r}")


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
    require(self.kind in kinds, f"Initializer.kind: expected one of {kinds}, got {self.kind!r}")
    require(
      self.scale is None or math.isfinite(self.scale),
      f"Initializer.scale: expected a finite number or None, got {self.scale}",
    )


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
    require(bool(self.name), "a table needs a name")
    _require_ints(where, vocab_size=self.vocab_size, embedding_dim=self.embedding_dim)
    require(
      0 < self.vocab_size <= MAX_ROWS_PER_STACK,
      f"{where}: vocab_size must lie in [1, {MAX_ROWS_PER_STACK}], got {self.vocab_size}",
    )
    require(
      self.embedding_dim > 0, f"{where}: embedding_dim must be >= 1, got {self.embedding_dim}"
    )
    require(
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
      sequence, a ``layers.RowSequence``.
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
    require(bool(self.name), "a feature needs a name")
    require(
      self.combiner in COMBINERS,
      f"{where}: combiner must be one of {COMBINERS}, got {self.combiner!r}",
    )
    _require_ints(where, ids_per_bag=self.ids_per_bag)
    require(self.ids_per_bag > 0, f"{where}: ids_per_bag must be >= 1, got {self.ids_per_bag}")
    require(
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
    require(feature.name not in names, f"feature {feature.name!r} is declared twice")
    names.add(feature.name)
    known = tables.setdefault(feature.table.name, feature.table)
    require(
      known == feature.table,
      f"feature {feature.name!r}: table {feature.table.name!r} is declared twice, differently: "
      f"{known} and {feature.table}",
    )
