"""stated_limits."""

from evals.stated_limits.method import limits_descriptions, limits_questions, limits_variants
from evals.stated_limits.stated_limits import stated_limits

__all__ = ["limits_descriptions", "limits_questions", "limits_variants", "stated_limits"]
