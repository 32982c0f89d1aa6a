"""From a config to the parts of a run: data, model, optimizers, step.

Read next: jaxrec/runs/loop.py.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

from jaxrec import config as config_lib
from jaxrec import sharding
from jaxrec.config import experiment as experiment_lib
from jaxrec.data import pipeline, registry
from jaxrec.data.views import wide_features
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import table_plan
from jaxrec.models import registry as model_registry
from jaxrec.runs import terminal as terminal_lib
from jaxrec.runs import test_inputs
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.process import collectives, host
from jaxrec.runs.setup import compressed_tables, optimizers
from jaxrec.runs.setup import num_steps as num_steps_lib
from jaxrec.runs.setup import placement as placement_lib
from jaxrec.training import evaluation, losses, metrics, slices, state, step

Tested = tuple[dict[str, float], dict[str, list[slices.Slice]]]  # of all, and by column and value


@dataclasses.dataclass(frozen=True)
class Run:
  """What stays fixed while a run trains."""

  config: experiment_lib.ExperimentConfig
  workdir: workdir_lib.Workdir
  terminal: terminal_lib.Terminal
  dataset: pipeline.Source
  model: nn.Module
  tx: state.Optimizers
  ceiling: float | None
  tested_with: dict[str, Any] = dataclasses.field(default_factory=dict)  # before data was read
  placement: sharding.Sharded | None = None  # of the tables; None: on one device

  @property
  def spec(self) -> batch_lib.BatchSpec:
    return self.dataset.spec

  def initial_state(self) -> state.TrainState:
    key = jax.random.key(self.config.seed)
    first = state.init_state(key, self.model, self.spec, tx=self.tx, placement=self.placement)
    if self.config.model.history.has_fingerprints:
      return state.with_fingerprints(first, self.model)
    return first

  def state_shapes(self) -> state.TrainState:
    """Shapes and dtypes, and on a mesh how each array is spread."""
    shapes = jax.eval_shape(self.initial_state)
    return shapes if self.placement is None else sharding.placed(shapes, self.placement)

  def step_fn(self) -> step.StepFn:
    """The step of this run, to be jitted."""
    return step.make_step(
      self.model,
      self.tx,
      label=self.spec.labels,
      loss=self.loss(),
      accumulate_steps=self.config.accumulate_steps,
      row_transform=optimizers.row_transform(self.config.optimizer),
    )

  def loss(self) -> losses.ClickLoss:
    """What is minimised; its logits are those of unsampled data."""
    rate, is_one_label = self.config.data.negative_keep_rate, len(self.spec.labels) == 1
    return losses.ClickLoss(
      label_weights=self.config.label_weights,
      positive_weight=self.config.positive_weight,
      logit_offset=-math.log(rate) if is_one_label else 0.0,
      any_positive_weight=1.0 if is_one_label else rate,
    )

  def empty_window(self) -> metrics.WindowMetrics:
    zeros = metrics.WindowMetrics.zeros(len(self.spec.labels))
    return zeros if self.placement is None else self.placement.replicate(zeros)

  @property
  def batch_sharding(self) -> jax.sharding.NamedSharding | None:
    """How a batch lies on the devices; None: on one."""
    return None if self.placement is None else self.placement.batches

  def _input(self, num_workers: int = 0) -> dict[str, Any]:
    """What ``pipeline.batches`` must know of the devices."""
    where, options = self.placement, pipeline.InputOptions(num_workers=num_workers)
    if where is None:
      return {"options": options}
    return {"plan": where.plan, "options": where.input_options(options)}

  def train_batches(self, start: int, num_steps: int) -> Iterator[batch_lib.Batch]:
    """Host batches from example ``start`` on; stacked micro-batches when gradients accumulate."""
    parts = self.config.accumulate_steps
    found = pipeline.batches(
      self.dataset,
      self.config.batch_size // parts,
      num_steps=num_steps * parts,
      start=start,
      seed=self.config.seed,
      **self._input(self.config.data.num_workers),
    )
    return found if parts == 1 else _stacked(found, parts)

  def eval_batches(
    self, split: str, num_examples: int, plan: table_plan.TablePlan | None = None
  ) -> Iterator[batch_lib.Batch]:
    """Host batches of ``val`` or ``test``, in order; 0 examples: the whole split.

    ``plan``: of other tables, on one device.
    """
    size = self.config.batch_size
    return pipeline.batches(
      self.dataset,
      size,
      num_steps=-(-num_examples // size) if num_examples else None,
      split=split,
      **(self._input() if plan is None else {"plan": plan}),
    )

  @property
  def gauc_group(self) -> str | None:
    """The column of GAUC: the one asked for, or the first that the data set has."""
    asked = self.config.data.group
    return asked if asked in self.spec.groups else next(iter(self.spec.groups), None)

  def evaluate(self, current: state.TrainState, split: str, num_examples: int) -> dict[str, float]:
    """Exact metrics of ``current`` on a split."""
    return evaluation.evaluate(
      self.model,
      current,
      self.eval_batches(split, num_examples),
      label=self.spec.labels,
      group=self.gauc_group,
    )

  def test(self, current: state.TrainState) -> Tested:
    """Exact metrics on ``test``: of all its examples, and by value of the columns to slice by."""
    figures, found = slices.evaluate(
      self.model,
      current,
      self.eval_batches("test", self.config.test_examples),
      labels=self.spec.labels,
      group=self.gauc_group,
      columns=self.config.slices,
    )
    names = getattr(self.dataset, "group_names", lambda column: None)  # a data set may know them
    return figures, {name: slices.with_names(rows, names(name)) for name, rows in found.items()}


def _stacked(found: Iterator[batch_lib.Batch], parts: int) -> Iterator[batch_lib.Batch]:
  while micro_batches := list(itertools.islice(found, parts)):
    yield batch_lib.stack_batches(micro_batches)


def prepare(
  config: experiment_lib.ExperimentConfig,
  workdir: workdir_lib.Workdir,
  terminal: terminal_lib.Terminal,
  dataset: pipeline.Source | None = None,
) -> Run:
  """Builds the parts and says what they are; arguments and errors as ``build``."""
  run = build(config, workdir, terminal, dataset)
  dataset, ceiling = run.dataset, None
  if hasattr(dataset, "ceiling") and collectives.is_first():  # of one with a known teacher
    ceiling = dataset.ceiling(config.test_examples or dataset.num_examples("test"))
  terminal.line(f"[2/3] {describe(dataset, config)}" + _ceiling_text(ceiling))
  return dataclasses.replace(run, ceiling=ceiling)


def build(
  config: experiment_lib.ExperimentConfig,
  workdir: workdir_lib.Workdir,
  terminal: terminal_lib.Terminal,
  dataset: pipeline.Source | None = None,
) -> Run:
  """The parts of a run, without its ceiling; ``dataset`` instead of the one that its config names.

  Raises:
    ConfigError: a name that does not exist, parts that do not fit each other, or tables that do not
      fit the device.
  """
  _check_numbers(config)
  try:
    model_registry.build(config.model)  # a wrong name is found before data is read
    has_wide, has_deep = model_registry.parts(config.model.name) or (False, False)
    tx = optimizers.build(config.optimizer, has_wide=has_wide)
    tested_with = test_inputs.tested_with(config)
    dataset = _load(config) if dataset is None else dataset
    config = num_steps_lib.with_length(config, dataset)
    _check_labels_and_groups(config, dataset.spec)
    _check_history(config.model, dataset.spec)
    wide: tuple[str, ...] = ()
    if has_wide or has_deep:
      dataset, wide = wide_features.widened(dataset, has_wide=has_wide, has_deep=has_deep)
    model = model_registry.build(config.model, num_logits=len(dataset.spec.labels), wide=wide)
    dataset, model = compressed_tables.compressed(dataset, model, config.compression)
    where = placement_lib.placement(config, dataset, tx, terminal.line if terminal else None)
    run = Run(config, workdir, terminal, dataset, model, tx, None, tested_with, where)
    _check_fits(run.state_shapes())
  except ValueError as error:  # layers that do not fit each other, a schedule that ends too soon
    raise config_lib.ConfigError(str(error)) from error
  return run


def _load(config: experiment_lib.ExperimentConfig) -> pipeline.Source:
  """The data set; for logistic regression with one number a row and label."""
  if config.model.name != "logistic_regression":
    return registry.load(config.data, embedding_dim=config.model.embedding_dim)
  num_labels = max(1, len(config.data.labels))
  dataset = registry.load(config.data, embedding_dim=num_labels)
  if len(dataset.spec.labels) == num_labels:
    return dataset
  return registry.load(config.data, embedding_dim=len(dataset.spec.labels))


def _check_labels_and_groups(
  config: experiment_lib.ExperimentConfig, spec: batch_lib.BatchSpec
) -> None:
  if config.label_weights and len(config.label_weights) != len(spec.labels):
    raise config_lib.ConfigError(
      f"label_weights: expected one for each label ({', '.join(spec.labels)}), got "
      f"{config.label_weights}"
    )
  for name in config.slices:
    if name not in spec.groups:
      raise config_lib.ConfigError(
        f"slices: no group column {name!r}; {config_lib.did_you_mean(name, spec.groups)}"
      )


def _check_history(config: experiment_lib.ModelConfig, spec: batch_lib.BatchSpec) -> None:
  """Raises ConfigError where features are compared whose ids are of different tables."""
  if config.name not in model_registry.OF_HISTORIES:
    return
  tables = {feature.name: feature.table.name for feature in spec.features}
  how = config.history
  pairs = {"target and sequence": (how.target, how.sequence)}
  if config.name == "sim_hard" and len(how.category) == 2:
    pairs["category"] = (how.category[0], how.category[1])
  for field, (one, other) in pairs.items():
    if one in tables and other in tables and tables[one] != tables[other]:
      raise config_lib.ConfigError(
        f"model.history.{field}: {one!r} is of table {tables[one]!r} and {other!r} of "
        f"{tables[other]!r}, but they are compared; name two features of one table"
      )


def describe(dataset: pipeline.Source, config: experiment_lib.ExperimentConfig) -> str:
  """The data set in one line; it may describe itself."""
  text = f"{config.data.dataset}: {len(dataset.spec.features)} features, seed {config.seed}"
  if hasattr(dataset, "describe"):
    text = dataset.describe()
  kind = config.compression.kind
  return (
    text
    if kind == "none"
    else f"{text}; {kind}: {compressed_tables.memory_ratio(dataset):.1f}x smaller"
  )


def _ceiling_text(ceiling: float | None) -> str:
  return "" if ceiling is None else f"; best reachable AUC {ceiling:.3f}"


def compile_step(run: Run, current: state.TrainState, batch: batch_lib.Batch) -> step.StepFn:
  """The step compiled for the one batch shape of this run; another shape would be an error."""
  started = time.perf_counter()
  compiled = jax.jit(run.step_fn(), donate_argnums=0).lower(current, batch).compile()
  run.terminal.line(model_line(run, current, time.perf_counter() - started))
  return compiled


def model_line(run: Run, current: state.TrainState, compile_seconds: float) -> str:
  """What is trained, how large, and where."""
  tables = sum(leaf.nbytes for leaf in jax.tree.leaves(current.tables))
  moments = sum(leaf.nbytes for leaf in jax.tree.leaves(current.row_state.rows))
  dense = sum(leaf.size for leaf in jax.tree.leaves(current.params))
  mesh = None if run.placement is None else dict(run.placement.plan.mesh)
  where = f"{jax.default_backend()} mesh {mesh}" if mesh else f"1 {jax.default_backend()}"
  return (
    f"[3/3] {run.config.model.name}: tables {terminal_lib.mebibytes(tables)} + "
    f"{moments / 2**20:.1f} moments, dense {terminal_lib.counted(dense)}; {where}; compiled in "
    f"{compile_seconds:.0f} s"
  )


def _check_numbers(config: experiment_lib.ExperimentConfig) -> None:
  """Refuses numbers that some part would trip over, or take in silence, later."""
  least = {
    "seed": 0,
    "checkpoint_every": 0,
    "eval_examples": 0,
    "test_examples": 0,
    "baseline_steps": 0,
    "data.num_workers": 0,
    "data.prefetch_depth": 2,
    "data.max_rows_per_table": 1,
    "model.bottom_mlp": 1,
    "model.top_mlp": 1,
    "model.cross_layers": 1,
    "model.cross_rank": 1,
    "optimizer.clip_norm": 1e-12,
    "label_weights": 0,
    "compression.threshold": 0,
    "compression.alpha": 0,
  }
  for name, low in least.items():
    value: Any = functools.reduce(getattr, name.split("."), config)
    numbers = value if isinstance(value, tuple) else () if value is None else (value,)
    if not all(number >= low for number in numbers):  # so that NaN is refused
      raise config_lib.ConfigError(f"{name}: must be at least {low}, got {value}")
  if config.seed >= 2**32:
    raise config_lib.ConfigError(f"seed: must be below 2^32, a JAX key's bits, got {config.seed}")
  if config.model.top_mlp[-1:] != (1,):
    raise config_lib.ConfigError(
      f"model.top_mlp: must end in 1, the logit of a click, got {config.model.top_mlp} (for "
      "several labels it ends in 1 too, and is made as wide as they are many)"
    )


def _check_fits(shapes: state.TrainState) -> None:
  tables, moments = (
    sum(_bytes_here(leaf) for leaf in jax.tree.leaves(part))
    for part in (shapes.tables, shapes.row_state.rows)
  )
  free = device_bytes()
  if free is not None and tables + moments > free:
    raise config_lib.ConfigError(
      f"the tables need {terminal_lib.mebibytes(tables)} and their moments "
      f"{terminal_lib.mebibytes(moments)}, and this device has {terminal_lib.mebibytes(free)}: cap "
      "them with --set data.max_rows_per_table=100000, narrow them with --set model.embedding_dim, "
      "or use --table_optimizer=rowwise_adagrad, one number a row"
    )


def _bytes_here(leaf: Any) -> int:
  """Of an array, what one device holds."""
  sharded = getattr(leaf, "sharding", None)
  shape = leaf.shape if sharded is None else sharded.shard_shape(leaf.shape)
  return math.prod(shape) * leaf.dtype.itemsize


def device_bytes() -> int | None:
  """Memory of the first device (the host's on CPU), or None when it does not say."""
  device = jax.local_devices()[0]
  if device.platform == "cpu":
    return host.memory_bytes()
  stats = device.memory_stats()
  return stats.get("bytes_limit") if stats else None
