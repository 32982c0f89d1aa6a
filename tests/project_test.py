"""The project around the package: what is shipped, what is promised, what must not be in a file."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import jax
import pytest

import jaxrec
from tests import conftest, layering_test, repository

ROOT = repository.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Spelled so that this file does not hold what it looks for.
INDEX_HOSTS = (
  "py" + "pi.org",
  "python" + "hosted.org",
  "download.py" + "torch.org",
  "file:" + "//",
)
HOME = re.compile(r"(?<![\w.~*])/(?:home|root|work|Users|opt)/[\w.-]")


def places_of_this_machine(text: str) -> list[str]:
  """Absolute paths below home or work folders, and package indexes, that ``text`` names."""
  return HOME.findall(text) + [host for host in INDEX_HOSTS if host in text]


def commands_named(page: str) -> set[str]:
  """The make targets a page names in its code: blocks and `inline`."""
  blocks = re.findall(r"^ *```.*?^ *```", page, re.DOTALL | re.MULTILINE)
  inline = re.findall(r"`[^`\n]+`", page)
  return set(re.findall(r"\bmake ([a-z][\w-]*)", "\n".join(blocks + inline)))


def make_targets() -> set[str]:
  makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
  return set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel, built without a network from a copy that also holds what must stay out of it."""
  folder = tmp_path_factory.mktemp("wheel")
  source = folder / "source"
  source.mkdir()
  for name in ("pyproject.toml", "README.md", "LICENSE", "train.py"):
    shutil.copy(ROOT / name, source)
  for name in ("jaxrec", "tests", "benchmarks", "colabs"):
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("layers", "sharding", "caching"):
    shutil.copy(ROOT / name, source / name, follow_symlinks=False)
  command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
  done = subprocess.run(
    [*command, "--no-index", "--wheel-dir", folder, source], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  (path,) = folder.glob("*.whl")
  return path


def run_python(program: str, *, cwd, path: str = "") -> subprocess.CompletedProcess[str]:
  env = {**os.environ, "PYTHONPATH": path}
  return subprocess.run(
    [sys.executable, "-c", program], cwd=cwd, env=env, capture_output=True, text=True
  )


def test_the_wheel_holds_only_jaxrec(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
  tops = {name.split("/")[0] for name in names}
  assert tops == {"jaxrec", f"jaxrec-{PROJECT['version']}.dist-info"}
  modules = {str(path.relative_to(ROOT)) for path in repository.files(".py")}
  assert {name for name in names if name.endswith(".py")} == {
    name for name in modules if name.startswith("jaxrec/")
  }
  assert "jaxrec/py.typed" in names
  assert any(name.endswith("/LICENSE") for name in names)


def test_the_wheel_imports_without_the_repository(wheel, tmp_path):
  program = "import jaxrec; print(jaxrec.__file__, jaxrec.__version__)"
  done = run_python(program, cwd=tmp_path, path=str(wheel))
  assert done.returncode == 0, done.stderr
  file, version = done.stdout.split()
  assert file.startswith(str(wheel))
  assert version == PROJECT["version"]


@pytest.mark.parametrize("name", ["layers", "sharding", "caching"])
def test_the_links_at_the_top_are_for_the_eye_only(name, tmp_path, wheel):
  link = ROOT / name
  assert link.is_symlink()
  assert os.readlink(link) == f"jaxrec/{name}"
  assert (link / "__init__.py").is_file()
  for path in ("", str(wheel)):  # as this environment has it installed, and as a wheel
    done = run_python(f"import {name}", cwd=tmp_path, path=path)
    assert f"No module named '{name}'" in done.stderr


def test_every_package_that_jaxrec_imports_is_a_declared_dependency():
  extras = [item for items in PROJECT["optional-dependencies"].values() for item in items]
  declared = {
    re.split(r"[^\w-]", item)[0].lower().replace("_", "-")
    for item in PROJECT["dependencies"] + extras
  }
  providers = importlib.metadata.packages_distributions()
  sources = [path for path in repository.files(".py") if path.is_relative_to(ROOT / "jaxrec")]
  tops = {
    name.split(".")[0]
    for path in [*sources, ROOT / "train.py"]
    for _, name, level in layering_test.imported_names(ast.parse(path.read_text(encoding="utf-8")))
    if not level
  }
  foreign = tops - set(sys.stdlib_module_names) - {"jaxrec"}
  assert {"jax", "flax", "optax", "numpy"} <= foreign
  for top in foreign:
    # An extra need not be installed here: then it must be named as it is imported.
    names = {name.lower().replace("_", "-") for name in providers.get(top, [top])}
    assert names & declared, f"{top} (of {sorted(names)}) is not declared in pyproject.toml"


def test_the_version_is_the_same_everywhere():
  assert jaxrec.__version__ == PROJECT["version"]
  changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
  assert "## [Unreleased]" in changelog or f"## [{PROJECT['version']}]" in changelog


@pytest.mark.parametrize(
  ("page", "needed"),
  [
    ("README.md", {"train", "test"}),
    ("docs/index.md", {"train", "test"}),
    ("CONTRIBUTING.md", {"test", "lint", "types"}),
  ],
)
def test_every_command_a_page_names_is_a_make_target(page, needed):
  named = commands_named((ROOT / page).read_text(encoding="utf-8"))
  assert needed <= named <= make_targets()


def test_commands_are_found_in_code_and_not_in_prose():
  page = "To make sure:\n\n```\nmake train ARGS=x\n```\n\nthen `make test`, which may make trouble."
  assert commands_named(page) == {"train", "test"}


def test_ci_begins_with_the_readmes_test_command():
  script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
  stages = re.findall(r"^stage \w+ (.*)$", script, re.MULTILINE)
  assert stages[0] == "make test"
  assert {name for stage in stages for name in re.findall(r"make (\w+)", stage)} <= make_targets()
  for name in ("run", "nightly"):
    assert os.access(ROOT / ".ci" / name, os.X_OK)


def test_no_file_names_a_place_of_one_machine_or_a_package_index():
  found, num_read = {}, 0
  for path in repository.files():
    try:
      text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
      continue  # an image
    num_read += 1
    if places := places_of_this_machine(text):
      found[str(path.relative_to(ROOT))] = places
  assert num_read > 30
  assert found == {}


@pytest.mark.parametrize(
  "text",
  [
    "/".join(("", "home", "me", "data")),
    "workdir=" + "/".join(("", "work", "main")),
    f"https://files.{INDEX_HOSTS[1]}/packages/x.whl",
    f"--index-url {INDEX_HOSTS[3]}srv/simple",
  ],
)
def test_a_planted_place_is_found(text):
  assert places_of_this_machine(f"before {text} after")


def test_relative_paths_and_urls_are_no_places_of_a_machine():
  assert not places_of_this_machine("../shared/data runs/work/first https://example.org/home/x")


def test_the_stated_environment_of_every_test_holds():
  assert jax.default_backend() == "cpu"
  assert jax.device_count() == 8
  assert os.environ["NPROC"] == "16"
  assert jaxrec.__file__ == str(ROOT / "jaxrec" / "__init__.py")


def test_an_outer_xla_flag_is_kept_and_ours_prevail(monkeypatch):
  monkeypatch.setenv(
    "XLA_FLAGS", "--xla_dump_to=somewhere --xla_force_host_platform_device_count=2"
  )
  conftest._set_up_environment()
  flags = os.environ["XLA_FLAGS"].split()
  assert "--xla_dump_to=somewhere" in flags
  assert "--xla_force_host_platform_device_count=8" in flags
  assert "--xla_force_host_platform_device_count=2" not in flags


def test_strict_promotion_refuses_a_silent_promotion(strict_promotion):
  with pytest.raises(jax.dtypes.TypePromotionError, match="no available implicit dtype promotion"):
    jax.numpy.ones(2, "float32") + jax.numpy.ones(2, "bfloat16")


def test_nightly_counts_are_full_only_when_asked_for(monkeypatch):
  monkeypatch.setenv("JAXREC_NIGHTLY", "1")
  assert conftest.nightly_from_environment().trials(300, sample=5) == 300
  monkeypatch.setenv("JAXREC_NIGHTLY", "sample")
  monkeypatch.setenv("JAXREC_NIGHTLY_SEED", "7")
  assert conftest.nightly_from_environment().trials(300, sample=5) == 5
  assert conftest.nightly_from_environment().seed == 7
