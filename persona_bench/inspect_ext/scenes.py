"""Scenes of a behaviour as Inspect samples: the forced choice, its check, and the activations before the answer.

What the model chooses is read off likelihoods, in two ways: by letter, where the options are listed and A or B is the
likelier answer; and by cloze, where they are not and one of their texts is the likelier, per token. Small models know
by cloze alone (SmolLM2-135M: 70 % of the facts, and half of them, which is chance, as soon as the options are listed).

The residual stream of the last prompt token, where the answer is decided and nothing of it is said yet, goes into
sidecars: a `.npy` file for each sample and way, named by the hash of what it is of, so that a file of another model or
prompt is never taken for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from inspect_ai.model import GenerateConfig, Model, get_model
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from persona_bench.definitions.presets import Preset
from persona_bench.definitions.scenarios import Choice
from persona_bench.errors import DataError, RunError, first_line
from persona_bench.files import model_folder, write_atomic
from persona_bench.inspect_ext.judge import mean_of_scored, n_scored
from persona_bench.inspect_ext.provider import PersonaAPI
from persona_bench.inspect_ext.requests import ExtraArgs, ScoreItem

WAYS = ("letter", "cloze")
"""How a choice is read off likelihoods."""
PARTS = ("choice", "check")
LETTERS = ("A", "B")
FOLDER = "activations"


def activations_folder(given: str, preset: str) -> Path:
    """Where sidecars go: the folder given, or `activations` of the run of this model and preset in results/."""
    return Path(given or Path("results", model_folder(get_model().name), preset, FOLDER)).resolve()


@solver
def choose(preset: Preset, folder: str, layers: Sequence[int] = ()) -> Solver:
    """Choose between a scene's options, answer its check, and keep the activations before the choice.

    `metadata["choice"]` and `metadata["check"]` hold text, options and the marked one (a check may be None, where the
    pair's other scene has it); what came of them stands in `metadata["answers"]` as log-likelihoods by way, None where
    a text is longer than the model's context.

    Args:
        preset: whose layers are read.
        folder: of the sidecars.
        layers: 1-based layers, instead of the preset's.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        api = local(model)
        parts = [(name, _choice(state.metadata[name])) for name in PARTS if state.metadata[name]]
        asked = [(name, way, choice) for name, choice in parts for way in WAYS]
        extra = ExtraArgs(score=tuple(item for _, way, choice in asked for item in _items(way, choice)))
        state.output = await model.generate("", config=GenerateConfig(extra_body=extra.body()))
        found = (state.output.metadata or {})["scores"]
        answers: dict[str, dict[str, Any]] = {name: {} for name, _ in parts}
        for number, (name, way, _) in enumerate(asked):
            answers[name][way] = _likelihoods(found[2 * number : 2 * number + 2])
        read = tuple(layers) or preset.layers(api.loaded.n_layers)
        state.metadata |= {
            "answers": answers,
            "layers": list(read),
            "activations": {
                way: await _keep(api, _prompt(way, choice), read, Path(folder))
                for name, way, choice in asked
                if name == "choice" and answers[name][way] is not None
            },
        }
        return state

    return solve


def local(model: Model) -> PersonaAPI:
    """The local provider behind a model.

    Raises:
        RunError: it is another one, whose activations cannot be read.
    """
    if not isinstance(model.api, PersonaAPI):
        raise RunError(f"{model} gives no activations; test local weights, --model persona/<weights>")
    return model.api


def _choice(held: dict[str, Any]) -> Choice:
    first, second = held["options"]
    return Choice(held["text"], (first, second), held["marked"])


def _prompt(way: str, choice: Choice) -> str:
    return choice.prompt if way == "letter" else choice.text


def _items(way: str, choice: Choice) -> list[ScoreItem]:
    # Letters too are continuations and no alternatives: both answers then share the pass over the prompt.
    messages = ({"role": "user", "content": _prompt(way, choice)},)
    return [
        ScoreItem(messages=messages, continuation=text) for text in (LETTERS if way == "letter" else choice.options)
    ]


def scene_prompt(way: str, held: dict[str, Any]) -> str:
    """What the model is told, of a part as the sample's metadata holds it."""
    return _prompt(way, _choice(held))


def taken(said: dict[str, Any], part: str, way: str) -> int | None:
    """Index of the option that is the likelier answer; a tie takes the one that is not marked.

    Args:
        said: metadata of a sample that was solved.
        part: choice or check.
        way: letter or cloze.

    Returns:
        None where there is no answer: a text longer than the context, or a check that the pair's other scene has.
    """
    found = said["answers"].get(part, {}).get(way)
    if not found:
        return None
    marked = int(said[part]["marked"])
    return marked if found[marked] > found[1 - marked] else 1 - marked


def _likelihoods(scores: Sequence[dict[str, Any] | None]) -> list[float] | None:
    """Log-likelihood per token of each answer; None where one is longer than the model's context."""
    fits = [score for score in scores if score is not None]
    return [score["logprob"] / max(score["n_tokens"], 1) for score in fits] if len(fits) == len(scores) else None


async def _keep(api: PersonaAPI, prompt: str, layers: tuple[int, ...], folder: Path) -> str:
    """Write a sidecar unless it is there; returns its name."""
    made_from = json.dumps([api.connection_key(), prompt, layers])
    name = f"{hashlib.sha256(made_from.encode()).hexdigest()[:32]}.npy"
    if not (folder / name).exists():
        content = io.BytesIO()
        np.save(content, await api.read_prompt([{"role": "user", "content": prompt}], layers), allow_pickle=False)
        write_atomic(folder / name, content.getvalue())
    return name


def read_activations(folder: Path, name: str) -> np.ndarray:
    """One sidecar, `(n_layers_read, d_model)` float32; nothing in it is executed.

    Raises:
        DataError: it is missing, broken, or holds values that are not finite.
    """
    path = folder / Path(name).name
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = first_line(error)
        raise DataError(
            f"cannot read activations {path}: {reason}; remove the logs of stated_limits and run again"
        ) from (error)
    if found.ndim != 2 or not np.isfinite(found).all():
        raise DataError(f"activations {path} are of shape {found.shape}, or not finite; remove them and run again")
    return found


@scorer(metrics={"*": [mean_of_scored(), n_scored()]})
def chosen() -> Scorer:
    """1 where the option that counts was taken, else 0, by way: `letter`, `cloze`, `letter_check`, `cloze_check`.

    NaN where a text is longer than the model's context, and for a check that the pair's other scene has; a tie is not
    taken.
    """

    async def score(state: TaskState, target: Target) -> Score:
        value: dict[str, str | int | float | bool | None] = {}
        for name, suffix in zip(PARTS, ("", "_check"), strict=True):
            for way in WAYS:
                option = taken(state.metadata, name, way)
                right = option is not None and option == state.metadata[name]["marked"]
                value[f"{way}{suffix}"] = math.nan if option is None else float(right)
        return Score(value=value)

    return score
