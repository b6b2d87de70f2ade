"""judge_validity."""

from evals.judge_validity.judge_validity import judge_validity

__all__ = ["judge_validity"]
