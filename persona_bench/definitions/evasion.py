"""System prompts that may bring a trait out without its vector telling, and paraphrases of the plain instruction."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from persona_bench.definitions.presets import LimitsPreset
from persona_bench.definitions.traits import Trait
from persona_bench.errors import TraitError

EVASION = "evasion"
"""The behaviour of `stated_limits` that is about a trait."""
NEUTRAL, PLAIN, SEARCH, PARAPHRASE = "neutral", "plain", "search", "paraphrase"
WAYS = (NEUTRAL, PLAIN, SEARCH, PARAPHRASE)
"""No system prompt, the trait's first positive instruction, one of the search, and a paraphrase of the instruction."""

_Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class _Texts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: tuple[_Text, ...] = Field(min_length=10)
    paraphrases: tuple[_Text, ...] = Field(min_length=5)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    traits: dict[str, _Texts]
    provenance: dict[str, Any]


@cache
def _texts() -> dict[str, _Texts]:
    path = files("persona_bench.definitions") / "data" / "evasion.json"
    return _File.model_validate_json(path.read_text(encoding="utf-8")).traits


def has_texts(trait: Trait) -> bool:
    """Whether there are texts for a trait of this name."""
    return trait.name in _texts()


def system_prompts(trait: Trait, sizes: LimitsPreset) -> list[tuple[str, int, str]]:
    """Every condition: way, number within the way, and system prompt ("" for none).

    Raises:
        TraitError: there are no texts for the trait.
    """
    if not has_texts(trait):
        raise TraitError(f"trait {trait.name} has no texts to evade with; choose from {', '.join(_texts())}")
    held = _texts()[trait.name]
    found = [(NEUTRAL, 0, ""), (PLAIN, 0, trait.system_prompt("positive", 0))]
    found += [(SEARCH, number, text) for number, text in enumerate(held.prompts[: sizes.evasion_prompts])]
    return found + [(PARAPHRASE, number, text) for number, text in enumerate(held.paraphrases[: sizes.paraphrases])]


def texts() -> str:
    """All of it as one text, for fingerprints."""
    return json.dumps({name: item.model_dump() for name, item in _texts().items()}, sort_keys=True)
