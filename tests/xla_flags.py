"""How the tests compile: quickly; and as users' programs are where a test reads the compiled text.

Most of the suite's time is the compiler's, on programs that run for milliseconds. XLA reads its
flags when it starts, so this module imports no jax.
"""

from __future__ import annotations

import importlib.metadata
import os

# The emitters of JAX 0.10 that later ones do not have: they compile in half the time.
_OLD_EMITTERS = "--xla_cpu_use_fusion_emitters=false"


def of_quick_compilation() -> list[str]:
  """Flags of XLA:CPU for programs that are compiled often and run once.

  The full nightly suites, and all suites of a JAX that has no other emitters, are compiled with the
  emitters of users' programs.
  """
  flags = ["--xla_backend_optimization_level=0"]  # LLVM's
  if os.environ.get("JAXREC_NIGHTLY") == "1":
    return flags
  flags.append("--xla_cpu_parallel_codegen_split_count=1")
  if importlib.metadata.version("jaxlib").startswith("0.10."):
    flags.append(_OLD_EMITTERS)
  return flags


def as_shipped() -> dict[str, bool]:
  """Options of ``jax.stages.Lowered.compile`` for a test that reads what was compiled."""
  is_quick = _OLD_EMITTERS in os.environ.get("XLA_FLAGS", "").split()
  return {"xla_cpu_use_fusion_emitters": True} if is_quick else {}
