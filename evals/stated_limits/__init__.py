"""stated_limits."""

from evals.stated_limits.stated_limits import stated_limits

__all__ = ["stated_limits"]
