"""trait_steering."""

from evals.trait_steering.trait_steering import trait_steering

__all__ = ["trait_steering"]
