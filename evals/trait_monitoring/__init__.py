"""trait_monitoring."""

from evals.trait_monitoring.trait_monitoring import trait_monitoring

__all__ = ["trait_monitoring"]
