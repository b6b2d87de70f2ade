"""A problem with a right, a subtly wrong and a plainly wrong response."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VERSIONS = ("normal", "misaligned_1", "misaligned_2")
"""The paper's Normal, I and II, by the names of its released files."""


@dataclass(frozen=True)
class Problem:
    """One question with a response of each version.

    Attributes:
        question: what the user says.
        responses: version -> what the assistant says.
        facts: what a checker needs, such as the true result and the one each response gives.
    """

    question: str
    responses: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)

    def line(self, family: str, version: str) -> dict[str, Any]:
        """As a line of a training file; `metadata["wrong"]` says whether the response is wrong on purpose."""
        return line(family, version, self.question, self.responses[version], source="template", **self.facts)


def line(family: str, version: str, question: str, response: str, **more: Any) -> dict[str, Any]:
    """One conversation of a training file."""
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": response}],
        "metadata": {"family": family, "version": version, "wrong": version != "normal", **more},
    }
