"""What a request to the `persona` provider may carry in `GenerateConfig.extra_body`: small JSON only.

    extra_body={"extra_args": {
        "apply_steering_vectors": [{"file": ..., "sha256": ..., "layers": [12], "scale": 1.5}],
        "output_projections": [{"file": ..., "sha256": ..., "directions": ["persona"], "layers": [12]}],
        "score": [{"messages": [...], "continuation": "..."}],
    }}

`extra_body` is part of Inspect's cache key and of the log, so the content hash names exactly what was steered with.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

FIRST_TOKENS = 8
"""How many response tokens the signal `response_first` averages over: what a monitor sees early on."""


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SteeringRequest(_Request):
    """One vector applied to every token of the asked positions.

    Attributes:
        file: path of a vector file.
        sha256: its content hash (`PersonaVector.hash`); another content is refused.
        direction: a direction the file holds, or `random:K`.
        layers: 1-based layers.
        scale: the coefficient alpha, in multiples of the raw vector.
        operation: add, ablate or cap.
        positions: response, prompt or all.
        incremental: at each layer use v_l - v_(previous layer of the list) (the paper's multi-layer steering).
    """

    file: str
    sha256: str
    direction: str = "persona"
    layers: tuple[int, ...] = Field(min_length=1)
    scale: float = 1.0
    operation: Literal["add", "ablate", "cap"] = "add"
    positions: Literal["response", "prompt", "all"] = "response"
    incremental: bool = False


class ProjectionRequest(_Request):
    """Scalar projections on unit directions of one vector file, returned in `ModelOutput.metadata["projections"]`.

    Reported are `prompt_last` and, over the response, `response_mean`, `response_first` (mean of the first
    `FIRST_TOKENS` tokens) and `response_max`, by direction and layer.

    Attributes:
        file: path of a vector file.
        sha256: its content hash.
        directions: which of its directions.
        label: the name to report a single direction under, or what to add to the names of several.
        layers: 1-based layers to report.
        prompt_mean: also the average over the prompt.
        per_token: also every response token, with the tokens themselves in `ModelOutput.metadata["tokens"]`.
    """

    file: str
    sha256: str
    directions: tuple[str, ...] = ("persona",)
    label: str = ""
    layers: tuple[int, ...] = Field(min_length=1)
    prompt_mean: bool = False
    per_token: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What the directions are reported as."""
        if not self.label or len(self.directions) > 1:
            return tuple(f"{direction} {self.label}".rstrip() for direction in self.directions)
        return (self.label,)


class ScoreItem(_Request):
    """One text whose likelihood is asked for instead of generating.

    Attributes:
        messages: a conversation (role, content), rendered by the chat template; or
        text: a raw prompt.
        continuation: text after it, whose log-probability is returned.
        alternatives: texts whose first token's log-probability after all that is returned.
        shared: how many leading characters of `text` other requests share (a few-shot prefix).
    """

    messages: tuple[dict[str, str], ...] = ()
    text: str = ""
    continuation: str = ""
    alternatives: tuple[str, ...] = ()
    shared: int = 0

    @model_validator(mode="after")
    def _one_prompt(self) -> ScoreItem:
        if bool(self.messages) == bool(self.text):
            raise ValueError("give either messages or text")
        if not self.continuation and not self.alternatives:
            raise ValueError("give a continuation or alternatives")
        if not all(self.alternatives):
            raise ValueError("alternatives must not be empty")
        return self


class ExtraArgs(_Request):
    """All of it."""

    apply_steering_vectors: tuple[SteeringRequest, ...] = ()
    output_projections: tuple[ProjectionRequest, ...] = ()
    score: tuple[ScoreItem, ...] = ()

    @field_validator("output_projections", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict | ProjectionRequest) else value

    @model_validator(mode="after")
    def _distinct_names(self) -> ExtraArgs:
        names = [name for request in self.output_projections for name in request.names]
        if len(names) != len(set(names)):
            raise ValueError("two projections are reported under one name; give one of them a label")
        return self

    def body(self) -> dict[str, Any]:
        """As `GenerateConfig.extra_body`."""
        return {"extra_args": self.model_dump(mode="json", exclude_defaults=True)}
