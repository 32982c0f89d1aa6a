"""One process, eight CPU devices, warnings as errors: what every test may rely on.

``JAXREC_TEST_PLATFORM=cuda`` (or ``tpu``) runs them on an accelerator instead.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pathlib
import platform

from tests import xla_flags

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _set_up_environment() -> None:
  """Everything XLA reads once, when it starts; so this runs before jax is imported."""
  platform_name = os.environ.get("JAXREC_TEST_PLATFORM", "cpu")
  os.environ["JAX_PLATFORMS"] = platform_name if platform_name == "cpu" else f"{platform_name},cpu"
  if platform_name != "cpu":  # float32 products as the oracles expect them, not TF32's
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
  os.environ["NPROC"] = "16"  # XLA's threads: with fewer than devices, collectives starve
  flags = [
    "--xla_force_host_platform_device_count=8",
    "--xla_gpu_deterministic_ops=true",
    *xla_flags.of_quick_compilation(),
  ]
  if platform.machine() in ("x86_64", "AMD64"):
    # Whether a*b + c is rounded once (FMA) or twice depends on what XLA fuses with it, so two
    # programs of one arithmetic differ in the last bit. AVX alone has no FMA. It holds for all
    # tests and not only for those of bit-equality: a process has one setting, and test files share
    # processes.
    flags.append("--xla_cpu_max_isa=AVX")
  given = os.environ.get("XLA_FLAGS", "").split()
  ours = {flag.partition("=")[0] for flag in flags}
  os.environ["XLA_FLAGS"] = " ".join(
    [flag for flag in given if flag.partition("=")[0] not in ours] + flags
  )


_set_up_environment()

import dataclasses  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags as absl_flags  # noqa: E402

absl_flags.FLAGS.mark_as_parsed()  # grain reads flags in its workers

# Examples compile programs: a deadline would measure XLA. CI repeats the same examples every time.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.register_profile("local", deadline=None, max_examples=25)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=1000, print_blob=True)


@dataclasses.dataclass(frozen=True)
class Nightly:
  """How much of a long suite to run. ``.ci/nightly`` sets it, through the environment.

  Attributes:
    is_full: the full counts; otherwise the sample that ``.ci/run`` takes.
    seed: where a suite's random choices begin.
  """

  is_full: bool
  seed: int

  def trials(self, full: int, *, sample: int) -> int:
    return full if self.is_full else sample


def nightly_from_environment() -> Nightly:
  return Nightly(
    is_full=os.environ.get("JAXREC_NIGHTLY") == "1",
    seed=int(os.environ.get("JAXREC_NIGHTLY_SEED", "0")),
  )


def pytest_collection_finish() -> None:
  """Makes the garbage collector pass over what is imported and come rarely: 2 % of the time."""
  gc.freeze()
  gc.set_threshold(100_000, 50, 100)


def pytest_configure() -> None:
  if nightly_from_environment().is_full:
    hypothesis.settings.load_profile("nightly")
  else:
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
  """Frees what was compiled when it takes much memory; over all modules it would be gigabytes.

  Sooner between modules, which share few programs, than within one.
  """
  is_last = nextitem is None or nextitem.path != item.path
  statm = pathlib.Path("/proc/self/statm")
  limit = 1_100_000_000 if is_last else 1_750_000_000
  if statm.exists():
    is_above = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > limit
  else:  # not Linux: nothing cheap to ask
    is_above = is_last
  if is_above:
    jax.clear_caches()
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)  # glibc's


# Those that take longest come first, so that no worker is left alone with one of them at the end.
_LONGEST = """
  layouts docs warm_start exchange num_steps refit train history resume relayout warm_start_refusals
  loop device_table step history_run planner event_run first_nonfinite predictor lsh_attention
  fingerprints bad_rows saved_transforms wide_features compressed_tables
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  place = {f"{name}_test": number for number, name in enumerate(_LONGEST.split())}
  items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def nightly() -> Nightly:
  return nightly_from_environment()


@pytest.fixture
def strict_promotion() -> Iterator[None]:
  """No silent promotion between dtypes, for tests of our own functions.

  Not for all tests: optax's adam and Flax's bfloat16 LayerNorm promote inside.
  """
  with jax.numpy_dtype_promotion("strict"):
    yield


@pytest.fixture(scope="module", autouse=True)
def undrawn_curves(request: pytest.FixtureRequest) -> Iterator[None]:
  """Leaves curves.png away, but in the tests of curves: drawing takes longer than training here."""
  from jaxrec.runs.results import curves

  with pytest.MonkeyPatch.context() as patch:
    if request.path.stem != "curves_test":
      patch.setattr(curves, "plot_curves", lambda *args, **kwargs: None)
    yield


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
  """The folder of real data sets, which is no part of the project."""
  folder = ROOT.parent / "shared" / "data"
  if not folder.is_dir():
    pytest.skip("real data is absent: there is no ../shared/data beside the repository")
  return folder
