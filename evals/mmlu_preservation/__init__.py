"""mmlu_preservation."""

from evals.mmlu_preservation.mmlu_preservation import mmlu_preservation

__all__ = ["mmlu_preservation"]
