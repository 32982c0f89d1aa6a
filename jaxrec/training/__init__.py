"""Training: where layers and tables meet in one pure step."""

from jaxrec.training.evaluation import evaluate, predict
from jaxrec.training.losses import ClickLoss, binary_cross_entropy
from jaxrec.training.schedules import warmup_hold_decay
from jaxrec.training.state import (
  Optimizers,
  TrainState,
  apply_gradients,
  init_state,
  with_fingerprints,
)
from jaxrec.training.step import make_step

__all__ = [
  "ClickLoss",
  "Optimizers",
  "TrainState",
  "apply_gradients",
  "binary_cross_entropy",
  "evaluate",
  "init_state",
  "with_fingerprints",
  "make_step",
  "predict",
  "warmup_hold_decay",
]
