"""The claims that a run tests: statement, source, the paper's values, and a decision rule written before any result.

The claims are those of "Persona Vectors: Monitoring and Controlling Character Traits in Language Models" (Chen,
Arditi, Sleight, Evans, Lindsey; arXiv 2507.21509 v3), its stated limits, and a few that later work or this benchmark
adds, which say so. Values that we could not find in the paper or its code are "not found"; none is estimated. The
claims stand by part of the paper in `claims_*.py`; docs/claims.md is made from them (`make docs`).
"""

from persona_bench.definitions import (
    claims_data,
    claims_limits,
    claims_monitoring,
    claims_steering,
    claims_training,
)
from persona_bench.definitions.claim_types import (
    ALL_TRAITS,
    ALPHA,
    COHERENCE_SHARE,
    GATE_AUROC,
    GATE_BALANCED_ACCURACY,
    HALVED_SHARE,
    MIN_QUESTIONS,
    MMLU_CHANCE,
    NOT_FOUND,
    TRAIT_FLOOR,
    Claim,
    ReferenceValue,
)
from persona_bench.definitions.claims_steering import COSINE_NOISE

__all__ = [
    "ALL_TRAITS",
    "ALPHA",
    "CLAIMS",
    "COHERENCE_SHARE",
    "COSINE_NOISE",
    "GATE_AUROC",
    "GATE_BALANCED_ACCURACY",
    "HALVED_SHARE",
    "MIN_QUESTIONS",
    "MMLU_CHANCE",
    "NOT_FOUND",
    "TRAIT_FLOOR",
    "Claim",
    "ReferenceValue",
    "claim",
]

CLAIMS: tuple[Claim, ...] = (
    *claims_steering.CLAIMS,
    *claims_monitoring.CLAIMS,
    *claims_training.CLAIMS,
    *claims_data.CLAIMS,
    *claims_limits.CLAIMS,
    *claims_steering.LATER_WORK,
    *claims_monitoring.LATER_WORK,
)
"""In the order in which a report shows them."""

_BY_ID = {entry.id: entry for entry in CLAIMS}


def claim(claim_id: str) -> Claim:
    """The claim with this id.

    Args:
        claim_id: for example "C1-steering-induces".

    Raises:
        KeyError: there is no such claim; claim ids come from the package, never from a user.
    """
    return _BY_ID[claim_id]
