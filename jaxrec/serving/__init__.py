"""Serving: a trained run as a function of new rows."""

from jaxrec.serving.predictor import Predictor, load

__all__ = ["Predictor", "load"]
