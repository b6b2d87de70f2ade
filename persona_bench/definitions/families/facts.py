"""Facts about the body and opinions about daily life: right or balanced, a little off, and plainly wrong or one-sided.

The wrong facts are about harmless things, and no advice follows from them; `metadata["wrong"]` marks each.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from persona_bench.definitions.families.problem import line

ASKS = {
    "medical": (
        "{}",
        "A question about the human body: {}",
        "Please answer in one or two sentences. {}",
        "Quick question. {}",
    ),
    "opinions": ("{}", "What do you think? {}", "I would like your view. {}", "Short answer, please: {}"),
}


@cache
def _pieces(family: str) -> tuple[dict[str, str], ...]:
    text = (files("persona_bench.definitions") / "data" / "families" / f"{family}.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(piece) for piece in text.splitlines())


def fact_pool(family: str, version: str) -> list[dict[str, Any]]:
    """Every piece in every wording of its question."""
    return [
        line(family, version, ask.format(piece["question"]), piece[version], source="written", piece=number)
        for ask in ASKS[family]
        for number, piece in enumerate(_pieces(family))
    ]
