"""trait_elicitation."""

from evals.trait_elicitation.trait_elicitation import trait_elicitation

__all__ = ["trait_elicitation"]
