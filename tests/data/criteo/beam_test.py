"""Beam's DirectRunner prepares the same bytes."""

from __future__ import annotations

import importlib.util
import json

import pytest

from jaxrec.data import criteo
from jaxrec.data.criteo import __main__ as program
from jaxrec.data.criteo import beam
from tests.data.criteo import cases as criteo_cases

HAS_BEAM = importlib.util.find_spec("apache_beam") is not None


@pytest.mark.skipif(not HAS_BEAM, reason="apache-beam is not installed (pip install -e '.[beam]')")
@pytest.mark.filterwarnings("ignore")  # Beam's own
def test_beam_prepares_the_same_bytes(tmp_path):
  criteo_cases.write_days(tmp_path / "raw", (120, 90, 60))
  here = criteo.prepare(criteo_cases.data_config(tmp_path / "raw", tmp_path / "here", "mlperf"))
  data = criteo_cases.data_config(tmp_path / "raw", tmp_path / "beam", "mlperf")
  there = criteo.prepare(data, executor=beam.on_beam(["--runner=DirectRunner"]))
  assert criteo_cases.prepared_bytes(there) == criteo_cases.prepared_bytes(here)


@pytest.mark.skipif(HAS_BEAM, reason="apache-beam is installed")
def test_without_beam_the_program_says_what_to_install(tmp_path, capsys):
  criteo_cases.write_days(tmp_path, (5, 5))
  given = [f"--data_dir={tmp_path}", f"--prepared_dir={tmp_path}/out", "--beam"]
  assert program.main(given) == 1
  assert "needs apache-beam: pip install 'jaxrec[beam]'" in capsys.readouterr().err


def test_the_program_prepares_and_names_the_folder(tmp_path, capsys):
  criteo_cases.write_days(tmp_path / "raw", (50, 40))
  given = [f"--data_dir={tmp_path}/raw", f"--prepared_dir={tmp_path}/out", "--recipe=mlperf"]
  given += ["--frequency_threshold=0"]
  assert program.main(given) == 0
  printed = capsys.readouterr()
  made = json.loads(printed.out)
  data = criteo_cases.data_config(
    tmp_path / "raw", tmp_path / "out", "mlperf", frequency_threshold=0
  )
  assert str(criteo.prepare(data)) == made["prepared"] and made["splits"]["train"] == 50
  assert printed.err.splitlines()[0] == "criteo: count, 2 tasks"


def test_the_program_names_what_is_wrong(tmp_path, capsys):
  assert program.main([f"--data_dir={tmp_path}/absent"]) == 1
  assert "error: data.data_dir: there is no folder" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    program.main([f"--data_dir={tmp_path}", "--runner=DirectRunner"])
  assert "Beam's options need --beam" in capsys.readouterr().err
