"""Throughput promises, as ratios measured in one run (quiet machine needed, so not among the everyday tests)."""

from __future__ import annotations

import pytest

from persona_bench.models.benchmark import measure


@pytest.mark.long
@pytest.mark.weights
def test_ratios_on_real_weights() -> None:
    ratios = measure("smollm2-135m", batch=32, tokens=64, repeats=5, say=lambda _: None)["ratios"]
    assert ratios["steered captured / generate"] >= 1.5
    assert ratios["steered captured / plain engine"] >= 0.95
    assert ratios["mixed / one intervention"] >= 0.95
