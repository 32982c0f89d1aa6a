"""Keeps ``python -m jaxrec.training.aot`` as a name of jaxrec/aot.py."""

import runpy

if __name__ == "__main__":
  runpy.run_module("jaxrec.aot", run_name="__main__", alter_sys=True)
