"""A run that is already there, rebuilt from its folder alone.

The config beside the checkpoints says what data, model and optimizers they belong to, so a folder
is all that a program needs to look into a run. Nothing in it is changed: the run may still be
training.

Read next: jaxrec/runs/checkpoints/checkpoint.py, jaxrec/runs/setup/run.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

from jaxrec import config as config_lib
from jaxrec import features
from jaxrec.config import experiment as experiment_lib
from jaxrec.data import pipeline
from jaxrec.data.prepared import from_table
from jaxrec.data.views import view
from jaxrec.features import transforms
from jaxrec.runs import saved_transforms
from jaxrec.runs import terminal as terminal_lib
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.checkpoints import checkpoint
from jaxrec.runs.setup import run as run_lib
from jaxrec.training import state

# What may be wrong with a folder or with what was asked of it; each message says what to do.
ERRORS = (
  config_lib.ConfigError,
  workdir_lib.WorkdirError,
  checkpoint.CheckpointError,
  features.BadExampleError,
)


@dataclasses.dataclass(frozen=True)
class Reopened:
  """A run and one of its checkpoints."""

  run: run_lib.Run
  state: state.TrainState
  progress: checkpoint.Progress


def config_of(path: str | os.PathLike[str]) -> experiment_lib.ExperimentConfig:
  """The config of the run in the folder ``path``.

  Raises:
    WorkdirError: there is no such folder, or it holds no run.
  """
  workdir = workdir_lib.Workdir(path)
  if not workdir.path.is_dir():
    raise workdir_lib.WorkdirError(f"{path}: no such folder; give the --workdir of a run")
  if not workdir.config_path.is_file():
    raise workdir_lib.WorkdirError(
      f"{path} is not a run of jaxrec: it has no config.json; give the --workdir of a run"
    )
  try:
    return experiment_lib.from_dict(workdir_lib.read_json(workdir.config_path))
  except config_lib.ConfigError as error:
    raise workdir_lib.WorkdirError(
      f"{workdir.config_path} is not the config of a run of this version: {error}"
    ) from error


def reopen(
  path: str | os.PathLike[str],
  *,
  step: int | None = None,
  is_best: bool = False,
  dataset: pipeline.Source | None = None,
) -> Reopened:
  """The run in the folder ``path`` as its checkpoint of ``step`` left it, on one device.

  Args:
    path: the run's folder.
    step: of the checkpoint; None: the latest.
    is_best: takes the checkpoint of the best evaluation instead.
    dataset: instead of the run's own; it must have the features that the run was trained with.

  Raises:
    WorkdirError: no such folder, no run, or no such checkpoint.
    CheckpointError: the checkpoint is damaged.
    ConfigError: the run's data set or model cannot be built any more.
  """
  with opened(path, step=step, is_best=is_best, dataset=dataset) as (run, checkpoints, step):
    current, _, reached = checkpoints.restore(
      step, run.state_shapes(), num_labels=len(run.spec.labels)
    )
  return Reopened(run, current, reached)


@contextlib.contextmanager
def opened(
  path: str | os.PathLike[str],
  *,
  step: int | None = None,
  is_best: bool = False,
  dataset: pipeline.Source | None = None,
) -> Iterator[tuple[run_lib.Run, checkpoint.Checkpoints, int]]:
  """The run, its checkpoints, and the step of the one that is meant; nothing of it is read yet.

  Arguments and errors as ``reopen``.
  """
  config = dataclasses.replace(config_of(path), sharding=experiment_lib.ShardingConfig("none"))
  run = run_lib.build(config, workdir_lib.Workdir(path), terminal_lib.silent(), dataset)
  saved_transforms.check(view.original(run.dataset), path)
  folder = run.workdir.checkpoints_path
  if not folder.is_dir():
    raise workdir_lib.WorkdirError(_none_yet(path))
  with contextlib.closing(checkpoint.Checkpoints(folder, read_only=True)) as checkpoints:
    yield run, checkpoints, _chosen(checkpoints, path, step, is_best=is_best)


def embedding_dim(config: experiment_lib.ExperimentConfig, made_by: transforms.Transforms) -> int:
  """Width of the tables of a run whose transforms are ``made_by``."""
  is_linear = config.model.name == "logistic_regression"  # a number for each label
  return len(made_by.schema.labels) if is_linear else config.model.embedding_dim


def with_files(path: str | os.PathLike[str], data_dir: str) -> pipeline.Source:
  """The table at ``data_dir``, all of it the test split, as the run in ``path`` would read it.

  Raises:
    ConfigError: the run has no transforms of its own, as it did not train on a table.
    BadExampleError: a column that the model learned from is gone, or holds something else.
  """
  config, made_by = config_of(path), saved_transforms.load(path)
  fields = dataclasses.replace(config.data, dataset="table", data_dir=data_dir, test_dir=None)
  return from_table.load(fields, embedding_dim(config, made_by), fitted=made_by)


def _chosen(
  checkpoints: checkpoint.Checkpoints,
  path: str | os.PathLike[str],
  step: int | None,
  *,
  is_best: bool,
) -> int:
  steps = checkpoints.steps()
  if not steps:
    raise workdir_lib.WorkdirError(_none_yet(path))
  shown = ", ".join(map(str, steps))
  if is_best:
    step = checkpoints.progress(max(steps)).best_step
    if step is None:
      raise workdir_lib.WorkdirError(
        f"{path} has not been evaluated yet, so no checkpoint is the best; it has {shown}"
      )
  step = max(steps) if step is None else step
  if step not in steps:
    raise workdir_lib.WorkdirError(f"{path} has no checkpoint of step {step}; it has {shown}")
  return step


def _none_yet(path: str | os.PathLike[str]) -> str:
  return f"{path} has no checkpoint yet; the run saves its first at an evaluation or when stopped"
