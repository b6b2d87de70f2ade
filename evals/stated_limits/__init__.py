"""stated_limits."""

from evals.stated_limits.method import limits_descriptions, limits_variants

__all__ = ["limits_descriptions", "limits_variants"]
