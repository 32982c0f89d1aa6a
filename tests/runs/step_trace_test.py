"""A trace holds the steps that were asked for, and a run with one is the same run."""

from __future__ import annotations

import gzip
import io
import json
import types

import jax
import pytest

from jaxrec import config
from jaxrec.data import registry
from jaxrec.runs import loop, step_trace
from jaxrec.runs import terminal as terminal_lib
from tests.data import tiny_clicks
from tests.runs import run_helpers

LOGISTIC = ("model.name=logistic_regression", "steps=8", "eval_every=4")


@pytest.fixture(scope="module", autouse=True)
def tiny():
  loaders = {**registry.LOADERS, "tiny": tiny_clicks.load}
  with pytest.MonkeyPatch.context() as patch, run_helpers.cached_programs():
    patch.setattr(registry, "LOADERS", types.MappingProxyType(loaders))
    yield


def run(path, window, *settings):
  text = io.StringIO()
  terminal = terminal_lib.Terminal(text)
  config = run_helpers.tiny_config(*LOGISTIC, *settings)
  loop.run(config, str(path), terminal=terminal, trace=window)
  return text.getvalue()


def traced_steps(folder) -> list[int]:
  """Numbers of the steps in the one trace of a folder."""
  (path,) = folder.glob("plugins/profile/*/*.trace.json.gz")
  assert list(path.parent.glob("*.xplane.pb"))
  with gzip.open(path) as file:
    events = json.load(file)["traceEvents"]
  return [int(e["args"]["step_num"]) for e in events if e.get("name") == "train" and "args" in e]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
  folder = tmp_path_factory.mktemp("traced")
  shown = run(folder / "run", step_trace.parse_window(str(folder / "trace"), "3:6"))
  return folder, shown


def test_a_trace_holds_the_steps_after_the_first_number_up_to_the_second(traced):
  folder, shown = traced
  assert traced_steps(folder / "trace") == [4, 5, 6]
  assert f"trace of steps 4 to 6: xprof --logdir={folder / 'trace'}, or " in shown


def test_a_traced_run_ends_with_the_same_bits(traced, tmp_path):
  run(tmp_path / "run", None)
  folder, _ = traced
  assert run_helpers.final_bits(folder / "run") == run_helpers.final_bits(tmp_path / "run")


def test_a_run_that_ends_within_the_window_leaves_what_there_is(tmp_path):
  shown = run(tmp_path / "run", step_trace.parse_window(str(tmp_path / "trace"), "6:20"))
  assert traced_steps(tmp_path / "trace") == [7, 8]
  assert "trace of steps 7 to 8" in shown


def test_a_run_that_is_past_the_window_says_that_there_is_no_trace(tmp_path):
  run(tmp_path / "run", None)
  window = step_trace.parse_window(str(tmp_path / "trace"), "2:4")
  shown = run(tmp_path / "run", window, "steps=10")
  assert "no trace: step 3, where --profile_steps begins, was not trained here" in shown
  assert not list((tmp_path / "trace").iterdir())


def test_without_a_window_the_step_function_is_itself():
  with step_trace.recording(None, terminal_lib.silent()) as wrap:
    assert wrap(len, 7) is len


def test_each_of_several_processes_has_a_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  window = step_trace.parse_window(str(tmp_path), "0:1")
  with step_trace.recording(window, terminal_lib.silent()) as wrap:
    assert wrap(lambda state, batch: (state, batch), 0)(1, 2) == (1, 2)
  assert traced_steps(tmp_path / "process_1") == [1]


@pytest.mark.parametrize("steps", ["", "5", "5:5", "6:5", "a:b", "-1:5", "1:2:3", "1 : 2"])
def test_steps_that_are_no_window_are_refused(tmp_path, steps):
  with pytest.raises(config.ConfigError, match=r"--profile_steps=.*: expected a:b with 0 <= a < b"):
    step_trace.parse_window(str(tmp_path), steps)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(config.ConfigError, match=r"--profile_dir=.*file: File exists"):
    step_trace.parse_window(str(tmp_path / "file"), "1:2")
  assert step_trace.parse_window(None, step_trace.DEFAULT_STEPS) is None
  with pytest.raises(config.ConfigError, match="--profile_steps=3:4: name a folder with --profile"):
    step_trace.parse_window(None, "3:4")


def test_an_error_before_the_first_step_is_not_followed_by_words_of_a_trace(tmp_path):
  window = step_trace.parse_window(str(tmp_path), "2:4")
  shown = io.StringIO()
  with (
    pytest.raises(KeyError),
    step_trace.recording(window, terminal_lib.Terminal(shown)),
  ):
    raise KeyError("compiling")
  assert shown.getvalue() == ""
