"""A config comes from a user's own file, and what is wrong in it is said with its place."""

from __future__ import annotations

import textwrap

import pytest

from jaxrec.config import ConfigError, presets

GOOD = """
from __future__ import annotations
import dataclasses
from jaxrec.config import presets

@dataclasses.dataclass
class Choice:
  steps: int

CHOICES = {"small": Choice(3), "big": Choice(4000)}

def get_config(preset="small"):
  return dataclasses.replace(presets.get("kaggle"), steps=CHOICES[preset].steps)
"""


@pytest.fixture
def write(tmp_path):
  def write(text: str) -> str:
    path = tmp_path / "my own.py"
    path.write_text(textwrap.dedent(text))
    return str(path)

  return write


def test_a_file_gives_a_config_with_and_without_a_preset(write):
  path = write(GOOD)
  assert presets.get(path).steps == 3
  assert presets.get(f"{path}:big").steps == 4000
  assert presets.get(path).model == presets.get("kaggle").model


def test_a_file_that_has_changed_is_read_anew(write):
  assert presets.get(write(GOOD)).steps == 3
  assert presets.get(write(GOOD.replace("Choice(3)", "Choice(5)"))).steps == 5


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      "x = 1",
      r"my own.py: the file defines no function get_config; it returns an ExperimentConfig",
    ),
    ("get_config = 3", r"the file defines no function get_config"),
    ("def get_config():\n  return 3", r"get_config returned int; expected an ExperimentConfig"),
    ("def get_config():\n  return None", r"get_config returned NoneType; expected"),
    ("def get_config(:", r"my own.py: SyntaxError: .*line 1"),
    ("import nothing_at_all", r"ModuleNotFoundError in line 1: No module named 'nothing_at_all'"),
    (
      "def get_config():\n  x = 1\n  return x / 0",
      r"ZeroDivisionError in line 3: division by zero",
    ),
    (
      "def scale(x):\n  return x / 0\ndef get_config():\n  return scale(1)",
      r"ZeroDivisionError in line 2: division by zero",
    ),
    (
      "from jaxrec.config.experiment import ExperimentConfig\n"
      "def get_config():\n  return ExperimentConfig(steps=0)",
      r"my own.py: steps: must be at least 1, got 0",
    ),
  ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_place(write, text, message):
  with pytest.raises(ConfigError, match=message):
    presets.get(write(text))


def test_a_preset_that_the_file_does_not_take_is_named(write):
  with pytest.raises(ConfigError, match=r"my own.py:tiny: KeyError in line 13: 'tiny'"):
    presets.get(f"{write(GOOD)}:tiny")


def test_a_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(ConfigError, match=r"--config=.*gone.py: no file .*gone.py"):
    presets.get(str(tmp_path / "gone.py"))
