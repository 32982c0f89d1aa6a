"""The command line: resuming, finishing, stopping, and bad input, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal

import pytest
from absl import flags

import train
from jaxrec.config import presets
from jaxrec.config.presets import registry as registry_of_presets
from jaxrec.data import registry
from jaxrec.models import registry as model_registry
from jaxrec.runs.setup import optimizers
from tests.data import tiny_clicks
from tests.runs import run_helpers
from tests.runs.run_helpers import run, tiny_args

KEYS = [
  "dataset", "model", "seed", "steps", "best_step", "auc", "val_auc", "auc_ceiling", "logloss",
  "ne", "calibration", "examples_per_s", "workdir",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("finished")
  outcome = run(tiny_args(folder / "run"), folder / "out", draws=True)
  assert outcome.code == 0, outcome.stderr
  return folder / "run", outcome


def files_of(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_ends_with_the_designs_json_line_and_its_files(finished):
  workdir, outcome = finished
  assert list(outcome.result) == KEYS
  assert len(outcome.stdout.splitlines()) == 1
  assert outcome.result["steps"] == run_helpers.STEPS and outcome.result["auc"] > 0.5
  assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
  assert list((workdir / "tensorboard").iterdir())
  splits = [
    json.loads(line)["split"] for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]
  assert splits.count("val") == 3 and splits.count("train") == 8
  assert "warning" not in outcome.stderr.lower() and "tensorflow" not in outcome.stderr.lower()


def test_a_finished_run_reprints_its_result_and_trains_nothing(finished, tmp_path):
  workdir, outcome = finished
  before = files_of(workdir)
  again = run(tiny_args(workdir), tmp_path)
  assert again.code == 0 and again.result == outcome.result
  assert "compiled" not in again.stderr
  assert files_of(workdir) == before


def test_short_flags_reach_their_fields(tmp_path):
  flags = {
    "label": ("data.labels", ["like", "click"]),
    "weight": ("data.weight", "w"),
    "group": ("data.group", "day"),
    "time": ("data.time", "t"),
    "schema": ("data.schema", "s.json"),
    "on_bad_row": ("data.on_bad_row", "skip"),
    "negative_keep_rate": ("data.negative_keep_rate", 0.5),
    "epochs": ("epochs", 0.5),
    "early_stop_patience": ("early_stop_patience", 3),
    "positive_weight": ("positive_weight", 2.0),
  }
  words = [
    f"--{flag}={','.join(value) if isinstance(value, list) else value}"
    for flag, (_, value) in flags.items()
  ]
  outcome = run(tiny_args(tmp_path / "run", *words), tmp_path / "out")
  assert outcome.code == 0, outcome.stderr
  assert list(outcome.result) == KEYS and outcome.result["steps"] == 8
  stored = json.loads((tmp_path / "run" / "config.json").read_text())
  for field, value in flags.values():
    found = stored
    for name in field.split("."):
      found = found[name]
    assert found == value, field


def ship_a_config_of_tiny():
  base = run_helpers.tiny_config("steps=7", "seed=5", "model.name=logistic_regression")
  registry_of_presets._makers = lambda: {
    "tiny": lambda: base,
    "other": lambda: run_helpers.tiny_config(),
    "counts": lambda: run_helpers.tiny_config("epochs=0.6"),
  }


@pytest.mark.parametrize(
  ("words", "steps", "seed"),
  [
    (["--dataset=tiny"], 7, 5),
    (["--dataset=tiny", "--steps=4", "--set=seed=6"], 4, 6),
    (["--config=other", "--dataset=tiny"], run_helpers.STEPS, 0),
    (["--config=counts", "--dataset=tiny"], 9, 0),
    (["--config=counts", "--dataset=tiny", "--steps=4"], 4, 0),
    (["--config=counts", "--dataset=tiny", "--steps=4", "--epochs=0.4"], 6, 0),
  ],
)
def test_a_data_set_starts_from_the_config_of_its_name(tmp_path, words, steps, seed):
  outcome = run(
    [*words, f"--workdir={tmp_path}/run"], tmp_path / "out", setup=ship_a_config_of_tiny
  )
  assert outcome.code == 0, outcome.stderr
  assert (outcome.result["steps"], outcome.result["seed"]) == (steps, seed)


def test_fresh_starts_beside_and_deletes_nothing(finished, tmp_path):
  workdir, outcome = finished
  before = files_of(workdir)
  fresh = run(tiny_args(workdir, "--fresh"), tmp_path)
  assert fresh.code == 0, fresh.stderr
  assert fresh.result["workdir"] == f"{workdir}-2"
  assert fresh.result["auc"] == outcome.result["auc"]
  assert files_of(workdir) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_saves_says_how_to_go_on_and_ends_with_the_same_bits(
  finished, tmp_path, number, code
):
  workdir = tmp_path / "run"
  more = ("--set=steps=4000", "--set=eval_every=4000", "--set=checkpoint_every=0")
  child = run_helpers.Child(tiny_args(workdir, *more), tmp_path / "first")
  child.wait_for("ex/s")  # the first line of training
  child.send(number)
  stopped = child.wait()
  assert stopped.code == code, stopped.stderr
  (step,) = run_helpers.committed(workdir)
  assert 0 < step < 4000
  assert f"stopped by {signal.Signals(number).name} at step {step}; saved" in stopped.stderr
  line = stopped.stderr.strip().splitlines()[-1]
  python, script, *args = shlex.split(line)
  assert os.access(python, os.X_OK) and script == "train.py"
  assert f"--workdir={workdir}" in args
  steps = step + 5
  short = [f"--set=steps={steps}" if "steps=4000" in arg else arg for arg in args]
  resumed = run(short, tmp_path / "second")
  assert resumed.code == 0, resumed.stderr
  assert resumed.resumed_from == step
  straight = tmp_path / "straight"
  changed = [arg for arg in short if not arg.startswith("--workdir")]
  assert run([*changed, f"--workdir={straight}"], tmp_path / "third").code == 0
  assert run_helpers.final_bits(workdir) == run_helpers.final_bits(straight)


BAD = {
  "NaN in a dense column": (
    ["--data_dir=dense_nan:500"], r"dense column 1 \('price'\): nan in example \d+"
  ),
  "label -1": (["--data_dir=label_minus_one:500"], r"label 'click': expected 0 or 1.*got -1.0"),
  "label NaN": (["--data_dir=label_nan:500"], "label 'click': expected 0 or 1.*got nan"),
  "label 2": (["--data_dir=label_two:500"], "label 'click': expected 0 or 1.*got 2.0"),
  "id out of range": (
    ["--data_dir=id_out_of_range:500"], "feature 'item': id 30 is out of range, table 'item'"
  ),
  "unknown data set": (
    ["--set=data.dataset=sythetic"], "dataset: no data set.*did you mean 'synthetic'"
  ),
  "unknown model": (["--set=model.name=dlmr"], "no model 'dlmr'; did you mean 'dlrm'"),
  "unknown optimizer": (["--set=optimizer.table=adm"], "no optimizer 'adm'; did you mean 'adam'"),
  "unknown config": (["--config=kagle"], "no config 'kagle'; did you mean 'kaggle'"),
  "unknown field": (["--set=model.botom_mlp=4"], "no such field; did you mean 'bottom_mlp'"),
  "no value": (["--set=steps"], "expected key=value"),
  "no number": (["--set=steps=many"], "expected int, got 'many'"),
  "no steps": (["--set=steps=0"], "steps: must be at least 1, got 0"),
  "micro-batches that do not divide": (
    ["--set=accumulate_steps=3"], "3 does not divide batch_size 64"
  ),
  "a bottom that does not fit the tables": (["--set=model.bottom_mlp=8,5"], "bottom_mlp"),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_here():
  """Makes the tiny data set known to this process, and shares what it compiles."""
  loaders = {**registry.LOADERS, "tiny": tiny_clicks.load}
  with pytest.MonkeyPatch.context() as patch, run_helpers.cached_programs():
    patch.setattr(registry, "LOADERS", loaders)
    yield


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_message_and_a_failure(what, tmp_path, tiny_here, capsys):
  more, message = BAD[what]
  outcome = run_helpers.run_here(tiny_args(tmp_path / "run", *more), capsys)
  assert outcome.code == 1, outcome.stderr
  assert re.search(message, outcome.stderr), outcome.stderr
  assert "Traceback" not in outcome.stderr and outcome.stdout == ""
  assert not (tmp_path / "run" / "result.json").exists()


def test_an_unknown_flag_is_named(tmp_path):
  outcome = run(["--modle=dlrm"], tmp_path)
  assert outcome.code not in (0, None)
  assert "Unknown command line flag 'modle'" in outcome.stderr


def test_a_config_comes_from_a_file_of_the_users(tmp_path, tiny_here, capsys):
  (tmp_path / "my.py").write_text(
    "from tests.runs import run_helpers\n"
    "def get_config(preset):\n  return run_helpers.tiny_config(*preset.split('+'))\n"
  )
  name = f"--config={tmp_path}/my.py:seed=5+model.name=logistic_regression"
  outcome = run_helpers.run_here([name, "--steps=3", f"--workdir={tmp_path}/run"], capsys)
  assert outcome.code == 0, outcome.stderr
  assert (outcome.result["seed"], outcome.result["steps"]) == (5, 3)
  outcome = run_helpers.run_here([f"--config={tmp_path}/my.py"], capsys)
  assert outcome.code == 1 and "my.py: TypeError: get_config() missing" in outcome.stderr


def test_steps_are_traced_by_two_flags(tmp_path, tiny_here, capsys):
  args = tiny_args(tmp_path / "run", "--steps=4", "--profile_steps=1:3", "--model=deep")
  outcome = run_helpers.run_here([*args, f"--profile_dir={tmp_path}/trace"], capsys)
  assert outcome.code == 0, outcome.stderr
  assert list((tmp_path / "trace").glob("plugins/profile/*/*.xplane.pb"))
  outcome = run_helpers.run_here([*args, f"--profile_dir={tmp_path}", "--profile_steps=3"], capsys)
  assert outcome.code == 1 and "--profile_steps=3: expected a:b" in outcome.stderr


def test_help_names_every_model_data_set_optimizer_and_config():
  text = " ".join(flags.FLAGS.module_help(train).split())
  names = {*model_registry.NAMES, *registry.LOADERS, *presets.names().split(", ")}
  assert len(names) > 30
  for name in (names | set(optimizers._TABLE)) - {"tiny"}:
    assert re.search(rf"[ ,]{name}[,.;]", text), name


def test_tables_too_large_for_the_device_are_refused_before_anything_is_made(tmp_path, capsys):
  args = [
    "--config=mlperf_dcnv2",
    "--set=model.embedding_dim=4096",
    "--set=model.bottom_mlp=512,4096",
    f"--workdir={tmp_path}/run",
  ]
  outcome = run_helpers.run_here(args, capsys)
  assert outcome.code == 1 and "the tables need" in outcome.stderr
  assert "--set data.max_rows_per_table" in outcome.stderr
  assert not (tmp_path / "run").exists()


def test_another_configuration_in_the_same_folder_is_refused(finished, capsys):
  workdir, _ = finished
  before = files_of(workdir)
  outcome = run_helpers.run_here(tiny_args(workdir, "--set=seed=5"), capsys)
  assert outcome.code == 1
  assert "another configuration (seed: 0 there, 5 asked for)" in outcome.stderr
  assert files_of(workdir) == before


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_a_damaged_file_of_the_run_is_named(name, tmp_path, capsys):
  workdir = tmp_path / "run"
  workdir.mkdir()
  good = "{}" if name == "result.json" else "{"
  (workdir / "config.json").write_text(good)
  (workdir / name).write_text('{"half')
  outcome = run_helpers.run_here(tiny_args(workdir), capsys)
  assert outcome.code == 1 and "Traceback" not in outcome.stderr, outcome.stderr
  assert "config" in outcome.stderr or name in outcome.stderr


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
  workdir = tmp_path / "photos"
  workdir.mkdir()
  (workdir / "cat.jpg").write_bytes(b"meow")
  outcome = run_helpers.run_here(tiny_args(workdir), capsys)
  assert outcome.code == 1 and "holds other files" in outcome.stderr
  assert [p.name for p in workdir.iterdir()] == ["cat.jpg"]


def test_a_file_where_the_folder_should_be_is_named(tmp_path, capsys):
  (tmp_path / "run").write_text("a file")
  outcome = run_helpers.run_here(tiny_args(tmp_path / "run"), capsys)
  assert outcome.code == 1 and "Traceback" not in outcome.stderr
  assert str(tmp_path / "run") in outcome.stderr


def test_a_torn_last_line_of_metrics_heals_on_resume(finished, tmp_path):
  workdir = tmp_path / "run"
  assert run(tiny_args(workdir, "--set=steps=16"), tmp_path / "first").code == 0
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"step": 18, "spl')
  (workdir / "result.json").unlink()
  outcome = run(tiny_args(workdir), tmp_path / "second")
  assert outcome.code == 0, outcome.stderr
  assert outcome.resumed_from == 16
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert lines[-2]["step"] == run_helpers.STEPS
  assert [line["split"] for line in lines].count("test") == 1  # the first run's test is gone
