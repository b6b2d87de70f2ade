"""What samples of training data are measured by, and which are trained on to see whether that tells anything."""

from __future__ import annotations

from typing import Literal, get_args

Measure = Literal["response", "response_minus_prompt", "difference"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
"""Scalar projections of a response: alone, against the last prompt token, against the model's own response."""

PICKS = ("top", "random", "bottom")
"""Samples of the highest projection difference, at random, of the lowest."""
POOLS = ("mixture", "corpus", "passed")
"""What they are picked from: all training sets together, real conversations, those of them that a filter let pass."""
FILTER_CUT = 1.0
"""A sample that the judge scores over this (of 100) does not pass the filter."""
