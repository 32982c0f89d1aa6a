"""Learning curves: what is read, what is drawn, and that a picture appears whole or not at all."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from matplotlib import figure as mpl_figure
from matplotlib import image

from jaxrec.runs.results import curves

RECORDS = [
  {"step": 100, "split": "train", "loss": 0.6, "auc": 0.6},
  {"step": 200, "split": "train", "loss": 0.5, "auc": 0.7},
  {"step": 200, "split": "val", "auc": 0.69, "logloss": 0.52, "ne": 0.9, "calibration": 1.0},
  {"step": 300, "split": "train", "loss": 0.45, "auc": float("nan")},
  {"step": 300, "split": "test", "auc": 0.71, "logloss": 0.47},
]


def write(path: pathlib.Path, records, tail="") -> pathlib.Path:
  path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
  return path


def draw(tmp_path, records=RECORDS, **options) -> mpl_figure.Figure:
  """Draws, and returns the figure behind the picture."""
  made = []
  make = mpl_figure.Figure

  def recording(*args, **kwargs):
    made.append(make(*args, **kwargs))
    return made[-1]

  with mock.patch.object(mpl_figure, "Figure", recording):
    curves.plot_curves(write(tmp_path / "metrics.jsonl", records), tmp_path / "c.png", **options)
  (figure,) = made
  return figure


def lines_of(axes) -> dict[str, list[tuple[float, float]]]:
  return {line.get_label(): list(map(tuple, line.get_xydata().tolist())) for line in axes.lines}


def test_each_split_is_drawn_in_both_panels(tmp_path):
  loss_axes, auc_axes = draw(tmp_path).axes
  assert lines_of(loss_axes) == {
    "training (windows)": [(100, 0.6), (200, 0.5), (300, 0.45)],
    "validation": [(200, 0.52)],
    "test": [(300, 0.47)],
  }
  assert lines_of(auc_axes) == {
    "training (windows)": [(100, 0.6), (200, 0.7)],  # the NaN is left out
    "validation": [(200, 0.69)],
    "test": [(300, 0.71)],
  }


def test_references_are_dashed_lines_named_with_their_value(tmp_path):
  _, auc_axes = draw(tmp_path, auc_ceiling=0.8021, logistic_auc=0.765).axes
  assert [text.get_text() for text in auc_axes.texts] == [
    "ceiling 0.8021",
    "logistic regression 0.7650",
  ]
  dashed = [line for line in auc_axes.lines if line.is_dashed()]
  assert [line.get_ydata()[0] for line in dashed] == [0.8021, 0.765]
  low, high = auc_axes.get_ylim()
  assert low < 0.6 and high > 0.8021


def test_the_picture_is_a_png_that_is_not_blank(tmp_path):
  draw(tmp_path, title="a run")
  pixels = image.imread(tmp_path / "c.png")
  assert pixels.shape[0] > 400 and pixels.shape[1] > 1000
  assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50


def test_a_resumed_run_keeps_the_last_line_of_a_step_in_order(tmp_path):
  records = [
    {"step": 1, "split": "train", "loss": 1.0},
    {"step": 3, "split": "train", "loss": 9.0},
    {"step": 2, "split": "train", "loss": 2.0},
    {"step": 3, "split": "train", "loss": 3.0},
  ]
  read = curves.read_records(write(tmp_path / "m.jsonl", records))
  assert [(r["step"], r["loss"]) for r in read["train"]] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
  path = write(tmp_path / "m.jsonl", RECORDS[:2], tail='{"step": 300, "spl')
  assert len(curves.read_records(path)["train"]) == 2


@pytest.mark.parametrize("line", ["not json", "[1]", "7", '{"step": 1}', '{"split": "val"}'])
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line):
  path = write(tmp_path / "m.jsonl", RECORDS[:2], tail=line + "\n")
  with pytest.raises(ValueError, match=r"m.jsonl, line 3: expected a JSON object with 'step'"):
    curves.read_records(path)


@pytest.mark.parametrize("text", ["", '{"step": 1'])
def test_a_file_without_a_complete_line_is_refused(tmp_path, text):
  path = write(tmp_path / "m.jsonl", [], tail=text)
  with pytest.raises(ValueError, match="no complete line; train first"):
    curves.plot_curves(path, tmp_path / "c.png")
  assert not (tmp_path / "c.png").exists()


def test_missing_values_and_panels_draw_without_a_warning(tmp_path):
  records = [{"step": 1, "split": "val", "auc": 0.6}, {"step": 2, "split": "val", "auc": None}]
  loss_axes, auc_axes = draw(tmp_path, records).axes
  assert lines_of(loss_axes) == {}
  assert lines_of(auc_axes) == {"validation": [(1, 0.6)]}


def test_a_picture_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
  draw(tmp_path)
  before = (tmp_path / "c.png").read_bytes()

  def fail(self, path):
    pathlib.Path(path).write_bytes(b"half")
    raise OSError(28, "No space left on device")

  with (
    mock.patch("matplotlib.backends.backend_agg.FigureCanvasAgg.print_png", fail),
    pytest.raises(OSError, match="No space left"),
  ):
    curves.plot_curves(tmp_path / "metrics.jsonl", tmp_path / "c.png")
  assert (tmp_path / "c.png").read_bytes() == before
  assert sorted(path.name for path in tmp_path.iterdir()) == ["c.png", "metrics.jsonl"]


def test_matplotlibs_global_state_is_left_alone(tmp_path):
  path = write(tmp_path / "m.jsonl", RECORDS)
  program = (
    "import sys\n"
    "from jaxrec.runs.results import curves\n"
    "assert 'matplotlib' not in sys.modules, 'imported before it is needed'\n"
    "import matplotlib\n"
    "before = matplotlib.rcParams.copy()\n"
    f"curves.plot_curves({str(path)!r}, {str(tmp_path / 'c.png')!r})\n"
    "assert 'matplotlib.pyplot' not in sys.modules\n"
    "assert dict.__eq__(matplotlib.rcParams, before)\n"  # == would resolve the backend
  )
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, env=environment
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == ""
  assert (tmp_path / "c.png").exists()
