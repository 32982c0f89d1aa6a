"""Published recipes on Criteo.

They give tables, widths, rates and batches. The length is the data's: set ``--steps`` (or
``--set epochs=1``). By default they run on the synthetic log in Criteo's shape; with Criteo's raw
files,

    python train.py --config=kaggle --dataset=criteo --data_dir=FOLDER --workdir=runs/kaggle

prepares them, once, with the recipe of the run. Tables then have the rows that the files have, at
most the ones given here; on one small machine the larger ones need
``--set data.max_rows_per_table=...``. None was trained to its target here.

Source: papers note on DLRM, section 3 (facebookresearch/dlrm, torchrec, mlcommons/training).
Read next: jaxrec/config/experiment.py.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

from jaxrec.config.experiment import (
  CriteoConfig,
  DataConfig,
  ExperimentConfig,
  ModelConfig,
  OptimizerConfig,
)

# Distinct values of C1..C26 in Criteo Kaggle (7 days), as facebookresearch/dlrm counts them.
_KAGGLE_ROWS = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992,
    5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip

# Criteo Terabyte, 24 days, capped at 40M rows a table: MLPerf's counts.
_MLPERF_ROWS = (
    40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10, 2209,
    11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36,
)  # fmt: skip

_MLPERF_IDS_PER_BAG = (
    3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1,
)  # fmt: skip


def _criteo(vocab_sizes: tuple[int, ...], **fields: Any) -> DataConfig:
  """Criteo's shape: 26 features, summed bags, single-valued unless said otherwise."""
  return DataConfig(
    **{"vocab_sizes": vocab_sizes, "ids_per_bag": (1,) * 26, "combiner": "sum", **fields}
  )


def _sgd(learning_rate: float) -> OptimizerConfig:
  return OptimizerConfig(
    dense="sgd", table="sgd", learning_rate=learning_rate, table_learning_rate=None
  )


def _kaggle() -> ExperimentConfig:
  """DLRM on Criteo Kaggle: target accuracy .789.

  ``--config=kaggle --dataset=criteo --data_dir=FOLDER``, where FOLDER holds ``train.txt``.
  """
  return ExperimentConfig(
    data=_criteo(_KAGGLE_ROWS),
    model=ModelConfig(embedding_dim=16, bottom_mlp=(512, 256, 64, 16), top_mlp=(512, 256, 1)),
    optimizer=_sgd(0.1),
    batch_size=128,
  )


def _terabyte() -> ExperimentConfig:
  """DLRM on Criteo Terabyte, at most 10M rows a table: target accuracy .8107, on sub-sampled days.

  ``--config=terabyte --dataset=criteo --data_dir=FOLDER``, where FOLDER holds ``day_0`` to
  ``day_23``. Of the negatives .875 are dropped, in all splits.
  """
  return ExperimentConfig(
    data=_criteo(
      _MLPERF_ROWS, max_rows_per_table=10_000_000, criteo=CriteoConfig(sub_sample_rate=0.875)
    ),
    model=ModelConfig(embedding_dim=64, bottom_mlp=(512, 256, 64), top_mlp=(512, 512, 256, 1)),
    optimizer=_sgd(0.1),
    batch_size=2048,
  )


def _mlperf_v1() -> ExperimentConfig:
  """MLPerf v1's DLRM: 40M rows at most, no sub-sampling, target AUC .8025.

  ``--config=mlperf_v1 --dataset=criteo --data_dir=FOLDER``, where FOLDER holds ``day_0`` to
  ``day_23``.
  """
  return ExperimentConfig(
    data=_criteo(_MLPERF_ROWS, max_rows_per_table=40_000_000),
    model=ModelConfig(
      embedding_dim=128, bottom_mlp=(512, 256, 128), top_mlp=(1024, 1024, 512, 256, 1)
    ),
    optimizer=_sgd(1.0),
    batch_size=2048,
  )


def _mlperf_dcnv2() -> ExperimentConfig:
  """MLPerf's DLRM-DCNv2: multi-hot; target AUC .80275 in one epoch of 4,195,197,692 rows.

  ``--config=mlperf_dcnv2 --dataset=criteo --data_dir=FOLDER``, where FOLDER holds ``day_0`` to
  ``day_23``; the bags are MLPerf's synthetic ones.
  """
  return ExperimentConfig(
    data=_criteo(
      _MLPERF_ROWS,
      ids_per_bag=_MLPERF_IDS_PER_BAG,
      criteo=CriteoConfig(recipe="mlperf", frequency_threshold=0, multi_hot="uniform"),
    ),
    model=ModelConfig(
      name="dlrm_dcnv2",
      embedding_dim=128,
      bottom_mlp=(512, 256, 128),
      top_mlp=(1024, 1024, 512, 256, 1),
      cross_layers=3,
      cross_rank=512,
    ),
    optimizer=OptimizerConfig(
      dense="adagrad",
      table="adagrad",
      learning_rate=0.005,
      table_learning_rate=None,
      eps=1e-8,
    ),
    batch_size=65_536,
    steps=64_013,
    eval_every=3_200,
  )


MAKERS: Mapping[str, Callable[[], ExperimentConfig]] = types.MappingProxyType(
  {
    "kaggle": _kaggle,
    "terabyte": _terabyte,
    "mlperf_v1": _mlperf_v1,
    "mlperf_dcnv2": _mlperf_dcnv2,
  }
)
