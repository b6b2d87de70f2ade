"""What identifies an MMLU question whatever serves it, which questions the wheel set holds, and subject groups.

MMLU: Hendrycks et al. 2021, arXiv 2009.03300; its four groups of subjects are the paper's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

_DATA = files("persona_bench.definitions") / "data"


def plain(text: str) -> str:
    """A text in lower case without anything but its letters and digits: sources differ in spaces and signs."""
    return "".join(character for character in text.lower() if character.isalnum())


def fingerprint(text: str, options: Sequence[str]) -> str:
    """Twelve hexadecimal digits that name a question by its text and its options, whatever their order."""
    parts = [plain(text), *sorted(map(plain, options))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def wheel_ids() -> tuple[str, ...]:
    """The fingerprints of the 2,850 questions in the wheel, sorted; 2,840, as ten questions stand there twice."""
    return tuple((_DATA / "mmlu_ids.txt").read_text(encoding="utf-8").split())


@lru_cache(maxsize=1)
def _groups() -> dict[str, str]:
    held = json.loads((_DATA / "mmlu_subjects.json").read_text(encoding="utf-8"))
    return {subject: group for group, subjects in held.items() for subject in subjects}


def subject_group(subject: str) -> str:
    """STEM, humanities, social sciences or other; "all" for a question whose subject is not known."""
    return _groups().get(subject, "all")


def subjects() -> list[str]:
    """The 57 subjects, sorted."""
    return sorted(_groups())
