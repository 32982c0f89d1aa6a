"""The runner of the notebooks: what raises or runs over must fail it."""

from __future__ import annotations

import nbformat
import pytest

from colabs import run


def write_notebook(folder, name, *cells):
  notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
  nbformat.write(notebook, folder / name)


def test_a_notebook_that_succeeds_passes_and_its_time_is_told(tmp_path, capsys):
  write_notebook(tmp_path, "01_good.ipynb", "x = 1", "open('left.txt', 'w').close(); assert x == 1")
  assert run.run(tmp_path, []) == 0
  assert capsys.readouterr().out.startswith("01_good.ipynb: ok, ")
  assert [path.name for path in tmp_path.iterdir()] == ["01_good.ipynb"]


def test_a_notebook_that_raises_fails_and_the_next_still_runs(tmp_path, capsys):
  write_notebook(tmp_path, "01_bad.ipynb", "x = 1", "raise ValueError('this cell is wrong')")
  write_notebook(tmp_path, "02_good.ipynb", "x = 1")
  assert run.run(tmp_path, []) == 1
  printed = capsys.readouterr().out
  assert "01_bad.ipynb: FAILED" in printed
  assert "this cell is wrong" in printed
  assert "02_good.ipynb: ok" in printed
  assert run.run(tmp_path, ["02"]) == 0


def test_a_notebook_that_runs_over_fails(tmp_path, capsys):
  write_notebook(tmp_path, "01_slow.ipynb", "import time; time.sleep(60)")
  assert run.run(tmp_path, [], limit_s=3.0) == 1
  assert "not finished after 3 s" in capsys.readouterr().out


@pytest.mark.parametrize("prefixes", [[], ["99"]])
def test_no_notebook_at_all_is_a_failure(tmp_path, capsys, prefixes):
  if prefixes:
    write_notebook(tmp_path, "01_good.ipynb", "x = 1")
  assert run.run(tmp_path, prefixes) == 1
  assert "no notebook in" in capsys.readouterr().out
