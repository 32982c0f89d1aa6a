"""Trains a recommendation model: ``python train.py --dataset=synthetic --model=dlrm``.

Progress goes to standard error; the last line of standard output is one JSON object, the result.
The same command resumes a run that was stopped, and reprints the result of one that is done.

Read next: jaxrec/runs/loop.py.
"""

from __future__ import annotations

import json
import shlex
import sys

from absl import app, flags

from jaxrec.config import experiment as experiment_lib
from jaxrec.config import overrides, presets
from jaxrec.data import registry as datasets
from jaxrec.models import registry as models
from jaxrec.runs import loop, step_trace, workdir
from jaxrec.runs import terminal as terminal_lib
from jaxrec.runs.process import collectives, host, interrupt, supervisor

_CONFIG = flags.DEFINE_string(
  "config", None, f"Config to start from: {presets.names()}; or a file of yours, my.py[:preset]."
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/first", "Folder: metrics, checkpoints, result.")
_FRESH = flags.DEFINE_bool("fresh", False, "Start anew beside --workdir; deletes nothing.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0; auto: SLURM, TPU.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes that train the run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_PROFILE_DIR = flags.DEFINE_string("profile_dir", None, "Folder for a trace of some steps.")
_PROFILE_STEPS = flags.DEFINE_string("profile_steps", step_trace.DEFAULT_STEPS, "After a, to b.")
_SET = flags.DEFINE_multi_string("set", [], "key=value for any field: model.top_mlp=512,256,1.")

# Flags that are short for a field; --set reaches all the others.
_FIELDS = {
  "dataset": ("data.dataset", f"Data set: {', '.join(datasets.LOADERS)}."),
  "data_dir": ("data.data_dir", "Where the data set's files lie."),
  "label": ("data.labels", "Column to learn, 0 or 1, or income=rich; several: click,like."),
  "weight": ("data.weight", "Column of example weights."),
  "group": ("data.group", "Column whose values group examples, for GAUC."),
  "time": ("data.time", "Column that orders examples: the latest are val and test."),
  "schema": ("data.schema", "An edited schema.json to use instead of an inferred one."),
  "on_bad_row": ("data.on_bad_row", "error, or skip: count, report and leave out."),
  "negative_keep_rate": ("data.negative_keep_rate", "Share of training negatives to keep."),
  "num_workers": ("data.num_workers", "Worker processes that read data; 0: threads."),
  "model": ("model.name", f"Model: {', '.join(models.NAMES)}."),
  "precision": ("model.precision", "f32, or bf16 to compute in bfloat16."),
  "table_optimizer": ("optimizer.table", "rowwise_adagrad, sgd, adagrad, rmsprop, adam, ftrl."),
  "steps": ("steps", "Updates to make."),
  "epochs": ("epochs", "Passes over the data, in place of --steps."),
  "early_stop_patience": ("early_stop_patience", "Evaluations without a better AUC; 0: go on."),
  "positive_weight": ("positive_weight", "Weight of a positive's loss relative to a negative's."),
  "batch_size": ("batch_size", "Examples an update."),
  "accumulate_steps": ("accumulate_steps", "Micro-batches that an update is computed in."),
  "seed": ("seed", "Of parameters, tables and the order of the data."),
}
for _name, (_field, _help) in _FIELDS.items():
  flags.DEFINE_string(_name, None, _help)


def experiment() -> experiment_lib.ExperimentConfig:
  """The config of the flags: a shipped one (the data set's, if it has one), short flags, set."""
  dataset, model = (flags.FLAGS[name].value for name in ("dataset", "model"))
  config = presets.get(_CONFIG.value) if _CONFIG.value else presets.for_dataset(dataset, model)
  short = [
    f"{field}={flags.FLAGS[name].value}"
    for name, (field, _) in _FIELDS.items()
    if flags.FLAGS[name].value is not None
  ]
  asked = [*short, *_SET.value]
  if any(one.startswith("steps=") for one in asked):  # of a config that counts epochs
    asked = ["epochs=0", *asked]
  return overrides.with_overrides(config, asked)


def command(path: str) -> str:
  """What to type to resume this run in the folder ``path``."""
  names = ("config", *_FIELDS, "set", "profile_dir", "profile_steps")
  given = (flags.FLAGS[name].serialize() for name in names if flags.FLAGS[name].present)
  words = [word for lines in given for word in lines.split("\n")]
  return shlex.join([host.python(), sys.argv[0], *words, f"--workdir={path}"])


def main(argv: list[str]) -> int:
  """Runs the command line; the exit code."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}; expected --flags and --set key=value")
  host.prepare()
  path = workdir.fresh_path(_WORKDIR.value) if _FRESH.value else _WORKDIR.value
  try:
    group = supervisor.group(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    trace = step_trace.parse_window(_PROFILE_DIR.value, _PROFILE_STEPS.value)
    if group.coordinator and not supervisor.is_supervised():
      return supervisor.supervise(sys.argv, path, command(path), is_fresh=_FRESH.value)
    config = experiment()
    with supervisor.leaving_on_error(loop.ERRORS):
      supervisor.join(config, *group)
      terminal = terminal_lib.Terminal() if collectives.is_first() else terminal_lib.silent()
      result = loop.run(config, path, terminal=terminal, trace=trace)
  except loop.ERRORS as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except interrupt.Interrupted as stopped:
    print(f"\n{stopped}; saved. To go on:\n  {command(path)}", file=sys.stderr)
    return 128 + stopped.signal_number
  except KeyboardInterrupt:
    print(f"\nstopped; saved checkpoints stay. To go on:\n  {command(path)}", file=sys.stderr)
    return 130
  if collectives.is_first():
    print(json.dumps(result), flush=True)
  return 0


if __name__ == "__main__":
  app.run(main)
