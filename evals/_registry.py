"""Every task of the suite."""

from evals.data_flagging import data_flagging
from evals.judge_validity import judge_validity
from evals.mmlu_preservation import mmlu_preservation
from evals.preventative_steering import preventative_steering
from evals.stated_limits import stated_limits
from evals.stated_limits.method import limits_descriptions, limits_questions, limits_variants
from evals.trait_elicitation import trait_elicitation
from evals.trait_monitoring import trait_monitoring
from evals.trait_steering import trait_steering

__all__ = [
    "data_flagging",
    "judge_validity",
    "limits_descriptions",
    "limits_questions",
    "limits_variants",
    "mmlu_preservation",
    "preventative_steering",
    "stated_limits",
    "trait_elicitation",
    "trait_monitoring",
    "trait_steering",
]
