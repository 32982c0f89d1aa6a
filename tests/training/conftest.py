"""What the tests of runs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jaxrec.training import curves
from tests.training import run_helpers


@pytest.fixture(scope="module", autouse=True)
def undrawn_curves(request: pytest.FixtureRequest) -> Iterator[None]:
  """Leaves curves.png away, but in the tests of curves: drawing takes longer than training here."""
  with pytest.MonkeyPatch.context() as patch:
    if request.path.stem != "curves_test":
      patch.setattr(curves, "plot_curves", run_helpers.without_curves)
    yield
