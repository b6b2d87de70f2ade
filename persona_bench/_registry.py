"""Inspect's entry point: read on every Inspect run on a machine with this package, so it imports no torch."""

from inspect_ai.model import modelapi

from persona_bench.inspect_ext.judge import trait_judge

__all__ = ["persona", "trait_judge"]


@modelapi("persona")
def persona() -> type:
    """The `persona/<weights>` provider: batched local generation with steering, capture and scoring."""
    from persona_bench.inspect_ext.provider import PersonaAPI

    return PersonaAPI
