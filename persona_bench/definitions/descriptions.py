"""Other descriptions of each trait, and the system prompts that follow from them; some are vague on purpose."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field

from persona_bench.definitions.traits import TRAITS

_DATA = files("persona_bench.definitions") / "data" / "descriptions"


class Description(BaseModel):
    """One other description of a trait.

    Attributes:
        vague: whether it leaves open what the trait is.
        description: the trait in other words.
        positive: the whole system prompt for the trait; it does not call the trait by its name.
        negative: the whole system prompt against it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    vague: bool
    description: str = Field(min_length=1)
    positive: str = Field(min_length=1)
    negative: str = Field(min_length=1)


@cache
def load_descriptions(trait: str) -> tuple[Description, ...]:
    """The other descriptions of a built-in trait; none of a trait from elsewhere."""
    path = _DATA / f"{trait}.json"
    if trait not in TRAITS or not path.is_file():
        return ()
    held = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Description.model_validate(item) for item in held["descriptions"])


def description_groups(trait: str) -> dict[str, tuple[int, ...]]:
    """Name -> numbers of descriptions: each by itself, and all clear and all vague ones together."""
    found = load_descriptions(trait)
    groups: dict[str, tuple[int, ...]] = {f"description:{number}": (number,) for number in range(len(found))}
    for name, vague in (("clear", False), ("vague", True)):
        members = tuple(number for number, item in enumerate(found) if item.vague == vague)
        if members:
            groups[name] = members
    return groups
