"""Shipped experiments, and a user's own: what ``--config`` names.

Read next: jaxrec/config/presets/registry.py.
"""

from jaxrec.config.presets.registry import for_dataset, get, names

__all__ = ["for_dataset", "get", "names"]
