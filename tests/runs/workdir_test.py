"""A run's folder is taken for what it is, and holds whole files only."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from jaxrec.config import experiment as experiment_lib
from jaxrec.config import overrides
from jaxrec.runs import workdir as workdir_lib

CONFIG = experiment_lib.ExperimentConfig()


@pytest.fixture
def workdir(tmp_path):
  return workdir_lib.Workdir(tmp_path / "run")


def contents(path: pathlib.Path) -> dict[str, bytes]:
  return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def set_(*settings: str) -> experiment_lib.ExperimentConfig:
  return overrides.with_overrides(CONFIG, settings)


def test_a_new_folder_is_made_with_its_config_and_found_again(workdir):
  workdir.open(CONFIG)
  assert list(contents(workdir.path)) == ["config.json"]
  assert json.loads(workdir.config_path.read_text())["model"]["top_mlp"] == [128, 64, 1]
  workdir.open(CONFIG)


def test_looking_at_a_folder_changes_nothing(workdir):
  workdir.check(CONFIG)
  assert not workdir.path.exists()


def test_a_run_may_go_on_for_longer_and_read_its_data_otherwise(workdir):
  workdir.open(CONFIG)
  longer = set_("steps=9000", "data.num_workers=3", "data.prefetch_depth=4", "data.data_dir=/there")
  workdir.open(longer)
  assert json.loads(workdir.config_path.read_text())["steps"] == 9000


def test_the_test_may_have_other_files_but_not_begin_or_cease_to_have_its_own(workdir):
  held_out, of_its_own = CONFIG, set_("data.test_dir=/there")
  workdir.open(of_its_own)
  workdir.open(set_("data.test_dir=/here"))
  for opened, refused in ((of_its_own, held_out), (held_out, of_its_own)):
    workdir.config_path.unlink()
    workdir.open(opened)
    with pytest.raises(workdir_lib.WorkdirError, match=r"another configuration \(data.test_dir: "):
      workdir.open(refused)


@pytest.mark.parametrize(
  ("override", "shown"),
  [
    ("seed=1", "seed: 0 there, 1 asked for"),
    ("model.top_mlp=8,1", "model.top_mlp: [128, 64, 1] there, [8, 1] asked for"),
    ("optimizer.learning_rate=0.5", "optimizer.learning_rate: 0.001 there, 0.5 asked for"),
  ],
)
def test_a_folder_of_another_configuration_is_refused_and_left_alone(workdir, override, shown):
  workdir.open(CONFIG)
  before = contents(workdir.path)
  with pytest.raises(workdir_lib.WorkdirError) as refused:
    workdir.open(set_(override))
  message = str(refused.value)
  assert f"{workdir.path} holds a run of another configuration ({shown})" in message
  assert "another --workdir, or --fresh" in message
  assert contents(workdir.path) == before


def test_a_file_in_place_of_the_folder_is_refused(workdir):
  workdir.path.write_text("mine")
  with pytest.raises(workdir_lib.WorkdirError, match="run is a file, not a folder; .* --workdir"):
    workdir.open(CONFIG)
  assert workdir.path.read_text() == "mine"


def test_a_folder_of_other_things_is_refused_and_left_alone(workdir):
  workdir.path.mkdir()
  (workdir.path / "thesis.tex").write_text("mine")
  with pytest.raises(workdir_lib.WorkdirError, match="holds other files and no config.json: not a"):
    workdir.open(CONFIG)
  assert contents(workdir.path) == {"thesis.tex": b"mine"}


def test_an_empty_folder_and_one_of_a_run_killed_as_it_began_are_taken(workdir):
  workdir.path.mkdir()
  workdir.check(CONFIG)
  (workdir.path / "config.json.tmp").write_text('{"data": {"dat')
  workdir.open(CONFIG)
  assert list(contents(workdir.path)) == ["config.json"]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"data": {"dat', r"cannot read .*config.json: .*move it away or use --fresh"),
    ("\udcff", r"cannot read .*config.json: .*move it away or use --fresh"),
    ("[]", r"config.json does not hold a JSON object; move it away or use --fresh"),
  ],
)
def test_a_damaged_config_is_refused(workdir, text, message):
  workdir.open(CONFIG)
  workdir.config_path.write_text(text, errors="surrogateescape")
  with pytest.raises(workdir_lib.WorkdirError, match=message):
    workdir.open(CONFIG)


def test_a_config_that_is_a_folder_is_refused(workdir):
  workdir.config_path.mkdir(parents=True)
  with pytest.raises(workdir_lib.WorkdirError, match="cannot read .*config.json: .*directory"):
    workdir.open(CONFIG)


def test_a_result_is_found_for_its_number_of_steps(workdir):
  workdir.open(CONFIG)
  assert workdir.result(set_("steps=10")) is None
  workdir.write_result(set_("steps=10"), {"auc": 0.5, "steps": 10}, test={"auc": 0.5})
  assert workdir.result(set_("steps=10")) == {"auc": 0.5, "steps": 10}
  assert workdir.result(set_("steps=20")) is None


def test_a_run_that_stopped_early_or_ran_for_epochs_is_done_by_what_was_asked(workdir):
  workdir.open(CONFIG)
  early = set_("steps=50", "early_stop_patience=2")
  workdir.write_result(early, {"auc": 0.5, "steps": 30})
  assert workdir.result(early) == {"auc": 0.5, "steps": 30}
  for other in (("steps=30",), ("steps=50",), ("steps=50", "early_stop_patience=3")):
    assert workdir.result(set_(*other)) is None, other
  two = set_("epochs=2", "steps=7")
  workdir.write_result(two, {"auc": 0.5, "steps": 900})
  assert workdir.result(set_("epochs=2")) == {"auc": 0.5, "steps": 900}  # steps do not decide
  assert workdir.result(set_("epochs=3")) is None and workdir.result(set_("steps=900")) is None


def test_a_result_of_before_these_choices_is_done_by_the_steps_made(workdir):
  workdir.open(CONFIG)
  workdir.result_path.write_text('{"result": {"auc": 0.5, "steps": 10}}')
  assert workdir.result(set_("steps=10")) == {"auc": 0.5, "steps": 10}
  assert workdir.result(set_("steps=10", "early_stop_patience=1")) is None
  assert workdir.result(set_("epochs=10")) is None


@pytest.mark.parametrize(
  ("override", "is_done"),
  [
    ("test_examples=9", False),
    ("baseline_steps=9", False),
    ("slices=day", False),
    ("data.data_dir=/there", False),
    ("data.num_workers=3", True),
  ],
)
def test_a_result_stands_for_what_it_was_tested_with(workdir, override, is_done):
  workdir.open(CONFIG)
  result = {"auc": 0.5, "steps": 10}
  workdir.write_result(set_("steps=10"), result)
  assert workdir.result(set_("steps=10", override)) == (result if is_done else None)


@pytest.mark.parametrize("before", [{}, {"tested_with": {"test_examples": 262_144}}])
def test_a_result_of_before_data_were_told_apart_stands_and_its_slices_are_those_it_holds(
  workdir, before
):
  workdir.open(CONFIG)
  old = {"result": {"auc": 0.5, "steps": 10}, "slices": {"day": []}, **before}
  workdir.result_path.write_text(json.dumps(old))
  asked = set_("steps=10", "slices=day", "data.data_dir=/there")
  assert workdir.result(asked) == {"auc": 0.5, "steps": 10}
  assert workdir.result(set_("steps=10")) is None


def test_a_folder_in_use_is_refused_until_it_is_free_again(workdir):
  with workdir.locked():
    workdir.open(CONFIG)
    before = contents(workdir.path)
    other = workdir_lib.Workdir(workdir.path)
    with pytest.raises(workdir_lib.WorkdirError, match="run is in use by another process"):
      other.locked().__enter__()
    assert contents(workdir.path) == before
  with workdir.locked():
    pass


def test_a_folder_that_was_locked_and_never_opened_is_taken(workdir):
  with workdir.locked():
    pass
  workdir.check(CONFIG)


def test_the_lock_of_a_killed_process_vanishes_though_a_child_of_it_lives(workdir):
  program = f"""
import subprocess, sys
from jaxrec.runs import workdir
with workdir.Workdir({str(workdir.path)!r}).locked():
  child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, close_fds=False)
  print(child.pid, flush=True)
  sys.stdin.read()
"""
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
  with subprocess.Popen([sys.executable, "-c", program], **pipes) as holder:
    child = int(holder.stdout.readline())
    try:
      with pytest.raises(workdir_lib.WorkdirError, match="in use by another process"):
        workdir.locked().__enter__()
      holder.kill()
      holder.wait()
      os.kill(child, 0)  # it is still there
      with workdir.locked():
        pass
    finally:
      os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("text", ["{}", '{"result": 3}', '{"result": {"auc": 1}}'])
def test_a_result_of_something_else_is_refused(workdir, text):
  workdir.open(CONFIG)
  workdir.result_path.write_text(text)
  with pytest.raises(workdir_lib.WorkdirError, match="holds no result of jaxrec; move it away"):
    workdir.result(CONFIG)


def test_a_damaged_result_is_refused(workdir):
  workdir.open(CONFIG)
  workdir.result_path.write_text('{"resu')
  with pytest.raises(workdir_lib.WorkdirError, match="cannot read .*result.json: .*move it away"):
    workdir.result(CONFIG)


def test_metrics_are_cut_back_to_a_step_and_torn_lines_go(workdir):
  workdir.open(CONFIG)
  for step in (5, 10, 15):
    workdir.append_metrics({"step": step, "split": "train", "loss": 0.1})
  whole = workdir.metrics_path.read_bytes().splitlines(keepends=True)
  with workdir.metrics_path.open("ab") as file:
    file.write(b'7\nnull\n{"split": "val"}\n\xff\xfe\n{"step": 3, "spl')
  workdir.keep_metrics_until(10)
  assert workdir.metrics_path.read_bytes() == b"".join(whole[:2])
  workdir.keep_metrics_until(0)
  assert workdir.metrics_path.read_bytes() == b""


def test_metrics_that_do_not_exist_are_not_made(workdir):
  workdir.open(CONFIG)
  workdir.keep_metrics_until(10)
  assert not workdir.metrics_path.exists()


def test_a_line_that_cannot_be_written_leaves_no_half_of_itself(workdir, monkeypatch):
  workdir.open(CONFIG)
  workdir.append_metrics({"step": 1})

  def full(descriptor):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(workdir_lib.WorkdirError) as refused:
    workdir.append_metrics({"step": 2})
  assert f"cannot write {workdir.metrics_path}: No space left on device" in str(refused.value)
  assert "Make room or choose another --workdir" in str(refused.value)
  assert workdir.metrics_path.read_text() == '{"step": 1}\n'


def test_a_file_that_cannot_be_written_keeps_what_it_held(workdir, monkeypatch):
  workdir.open(CONFIG)
  workdir.write_result(CONFIG, {"steps": 1})
  before = contents(workdir.path)

  def full(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  with pytest.raises(workdir_lib.WorkdirError, match="result.json: No space left on device"):
    workdir.write_result(CONFIG, {"steps": 2})
  assert contents(workdir.path) == before


def test_a_checkpoint_past_the_end_is_refused(workdir):
  workdir.check_steps(20, 20)
  with pytest.raises(
    workdir_lib.WorkdirError, match="at step 30 already, past --steps=20: ask for"
  ):
    workdir.check_steps(30, 20)


def test_a_fresh_path_is_the_first_that_is_free(tmp_path):
  path = str(tmp_path / "run")
  assert workdir_lib.fresh_path(path) == path
  os.mkdir(path)
  assert workdir_lib.fresh_path(path) == f"{path}-2"
  assert workdir_lib.fresh_path(f"{path}/") == f"{path}-2"
  os.mkdir(f"{path}-2")
  assert workdir_lib.fresh_path(path) == f"{path}-3"
