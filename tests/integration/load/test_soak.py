"""The short form of the soak (``tox -e soak`` is the long one): a few dozen operations from fixed seeds."""

from __future__ import annotations

import pytest

from tests.soak.running import Soak


@pytest.mark.load
@pytest.mark.parametrize("seed", [1, 2], ids=lambda seed: f"seed {seed}")
def test_soak(seed: int) -> None:
    figures = Soak(seed, limit=20, seconds=120).run()
    assert figures.answers > 100
