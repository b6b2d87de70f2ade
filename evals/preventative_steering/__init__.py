"""preventative_steering."""

from evals.preventative_steering.preventative_steering import preventative_steering

__all__ = ["preventative_steering"]
