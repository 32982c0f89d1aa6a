"""Feeds a step: from examples by number, shuffled, to batches on the device."""

from jaxrec.data.pipeline.input_batches import InputOptions, Source, batches

__all__ = ["InputOptions", "Source", "batches"]
