"""From a config to the parts of a run: data, model, optimizers, step.

Read next: jaxrec/training/loop.py.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator

import flax.linen as nn
import jax

from jaxrec import config as config_lib
from jaxrec import tables as tables_lib
from jaxrec.data import pipeline, registry
from jaxrec.features import batch as batch_lib
from jaxrec.models import registry as model_registry
from jaxrec.training import optimizers, progress, state, step
from jaxrec.training import workdir as workdir_lib


@dataclasses.dataclass(frozen=True)
class Run:
  """What stays fixed while a run trains."""

  config: config_lib.ExperimentConfig
  workdir: workdir_lib.Workdir
  terminal: progress.Terminal
  dataset: pipeline.Source
  model: nn.Module
  tx: state.Optimizers
  ceiling: float | None

  @property
  def spec(self) -> batch_lib.BatchSpec:
    return self.dataset.spec

  def initial_state(self) -> state.TrainState:
    return state.init_state(jax.random.key(self.config.seed), self.model, self.spec, tx=self.tx)

  def step_fn(self) -> step.StepFn:
    """The step of this run, to be jitted."""
    clip = self.config.optimizer.clip_norm
    extra = {}
    if clip is not None:
      extra["row_transform"] = functools.partial(tables_lib.clip_by_global_norm, max_norm=clip)
    return step.make_step(
        self.model,
        self.tx,
        label=self.spec.labels[0],
        accumulate_steps=self.config.accumulate_steps,
        **extra,
    )

  def train_batches(self, start: int, num_steps: int) -> Iterator[batch_lib.Batch]:
    """Host batches from example ``start`` on; stacked micro-batches when gradients accumulate."""
    parts = self.config.accumulate_steps
    found = pipeline.batches(
        self.dataset,
        self.config.batch_size // parts,
        num_steps=num_steps * parts,
        start=start,
        seed=self.config.seed,
        options=pipeline.InputOptions(num_workers=self.config.data.num_workers),
    )
    if parts == 1:
      return found
    return (
        batch_lib.stack_batches([next(found) for _ in range(parts)]) for _ in range(num_steps)
    )

  def eval_batches(
      self, split: str, num_examples: int, features: tuple[config_lib.FeatureConfig, ...] | None = None
  ) -> Iterator[batch_lib.Batch]:
    """Host batches of ``val`` or ``test``, in order; 0 examples: the whole split."""
    size = self.config.batch_size
    return pipeline.batches(
        self.dataset,
        size,
        num_steps=-(-num_examples // size) if num_examples else None,
        split=split,
        features=features,
    )


def prepare(
    config: config_lib.ExperimentConfig,
    workdir: workdir_lib.Workdir,
    terminal: progress.Terminal,
) -> Run:
  """Builds the parts and says what they are.

  Raises:
    ConfigError: a name that does not exist, or tables that do not fit the device.
  """
  model = model_registry.build(config.model)
  tx = optimizers.build(config.optimizer)
  dim = 1 if config.model.name == "logistic_regression" else config.model.embedding_dim
  dataset = registry.load(config.data, embedding_dim=dim, seed=config.seed)
  _check_fits(dataset.spec)
  ceiling = None
  if hasattr(dataset, "ceiling"):  # only a data set with a known teacher has one
    ceiling = dataset.ceiling(config.test_examples)
  terminal.line(f"[2/3] {describe(dataset, config)}" + _ceiling_text(ceiling))
  return Run(config, workdir, terminal, dataset, model, tx, ceiling)


def describe(dataset: pipeline.Source, config: config_lib.ExperimentConfig) -> str:
  """The data set in one line; it may describe itself."""
  if hasattr(dataset, "describe"):
    return dataset.describe()
  return f"{config.data.dataset}: {len(dataset.spec.features)} features, seed {config.seed}"


def _ceiling_text(ceiling: float | None) -> str:
  return "" if ceiling is None else f"; best reachable AUC {ceiling:.3f}"


def model_line(run: Run, current: state.TrainState, compile_seconds: float) -> str:
  """What is trained, how large, and where."""
  tables = sum(leaf.nbytes for leaf in jax.tree.leaves(current.tables.values))
  moments = sum(leaf.nbytes for leaf in jax.tree.leaves(current.row_state.rows))
  dense = sum(leaf.size for leaf in jax.tree.leaves(current.params))
  devices = f"{jax.local_device_count()} {jax.default_backend()}"
  return (
      f"[3/3] {run.config.model.name}: tables {progress.mebibytes(tables)} + "
      f"{moments / 2**20:.1f} moments, dense {progress.counted(dense)}; {devices}; compiled in "
      f"{compile_seconds:.0f} s"
  )


def _check_fits(spec: batch_lib.BatchSpec) -> None:
  needed = sum({f.table.name: f.table.num_bytes for f in spec.features}.values())
  free = device_bytes()
  if free is not None and needed > free:
    raise config_lib.ConfigError(
        f"the tables need {progress.mebibytes(needed)} before any moments, and this device has "
        f"{progress.mebibytes(free)}: cap them with --set data.max_rows_per_table=100000, or narrow "
        "them with --set model.embedding_dim"
    )


def device_bytes() -> int | None:
  """Memory of the first device (host memory on CPU), or None when it does not say."""
  device = jax.local_devices()[0]
  if device.platform == "cpu":
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  stats = device.memory_stats()
  return stats.get("bytes_limit") if stats else None
