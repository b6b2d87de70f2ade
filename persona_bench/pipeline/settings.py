"""What is asked of a run, where its files are, and whether they are all there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from persona_bench.definitions.evasion import texts as evasion_texts
from persona_bench.definitions.outcomes import FILTERS
from persona_bench.definitions.presets import load_preset
from persona_bench.definitions.scenarios import BEHAVIOURS, load_scenes
from persona_bench.definitions.traits import load_labelled, load_trait, load_twins
from persona_bench.errors import RunError
from persona_bench.files import model_folder, write_atomic

CORE_EVALS = ("judge_validity", "trait_elicitation", "trait_steering", "trait_monitoring", "mmlu_preservation")
ALL_EVALS = (*CORE_EVALS, "stated_limits", "preventative_steering", "data_flagging")
DEFAULT_MODEL = "smollm2-135m"
DEFAULT_GRADER = "qwen2.5-coder-1.5b"
NEED_VECTORS = frozenset(ALL_EVALS[2:])
JUDGED = NEED_VECTORS - {"mmlu_preservation"}
"""Evals whose verdicts need a judge that was checked, so that asking for one of them checks it."""
VERSIONED = ("persona-bench", "inspect-ai", "torch", "transformers", "numpy", "pandas", "scipy", "scikit-learn")
STAGES = (
    *("load", "judge", "elicit", "extract", "steer and monitor", "mmlu", "limits", "limits of the method", "finetune"),
    *("flag", "analyse"),
)
"""What the seconds in run.json are of, in the order in which it is done."""

BEGUN = "begun.json"
"""Says what the logs of a folder are made with."""
OPTIONS = {
    **{name: f"--{name}" for name in ("model", "preset", "grader", "seed", "corpus")},
    "extraction_filter": "--filter",
}
OF_RUN = ("grader", "seed", "extraction_filter", "corpus")
"""What every call that goes on with a run shares, besides model and preset, which its folder is named by."""
OF_VECTOR = ("model", "preset", "grader", "seed")
"""What every call shares that makes a vector from the logs of a folder."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What a run was asked for.

    Attributes:
        model: the model under test, as `loading.load` takes it.
        preset: quick, standard or paper.
        traits: names of traits.
        grader: an Inspect model, or local weights by the names `loading.load` takes; several, comma-separated, are a
            panel.
        evals: which evals.
        seed: of sampling, subsets and resampling.
        extraction_filter: stated or coded.
        corpus: files, folders or Hub datasets of real conversations to flag, comma-separated.
    """

    model: str = DEFAULT_MODEL
    preset: str = "quick"
    traits: tuple[str, ...] = ("evil", "sycophancy", "hallucination")
    grader: str = DEFAULT_GRADER
    evals: tuple[str, ...] = CORE_EVALS
    seed: int = 0
    extraction_filter: str = "stated"
    corpus: str = ""

    def __post_init__(self) -> None:
        load_preset(self.preset)
        if self.extraction_filter not in FILTERS:
            raise RunError(f"unknown filter {self.extraction_filter!r}; choose from {', '.join(FILTERS)}")
        for name in self.traits:
            load_trait(name)
        unknown = [name for name in self.evals if name not in ALL_EVALS]
        if unknown:
            raise RunError(f"unknown eval(s) {', '.join(unknown)}; choose from {', '.join(ALL_EVALS)}, core or all")
        if not self.traits or not self.evals:
            raise RunError("a run needs at least one trait and one eval")
        if self.corpus and "data_flagging" not in self.evals:
            raise RunError("--corpus is flagged by data_flagging alone; have it among --evals, or leave the corpus out")

    @property
    def fingerprint(self) -> str:
        """Changes whenever a run with these settings could come out differently: settings, texts, version."""
        texts = [load_trait(name).hash for name in self.traits]
        if "stated_limits" in self.evals:
            texts += [evasion_texts(), *(scene.choice.prompt for name in BEHAVIOURS for scene in load_scenes(name))]
        labels = [[item.model_dump() for item in (*load_labelled(name), *load_twins(name))] for name in self.traits]
        content = json.dumps([asdict(self), texts, labels, version("persona-bench")], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def model_spec(name: str) -> str:
    """An Inspect model name: local weights get the `persona/` provider, names with a known provider stay."""
    from persona_bench.models.assets import CATALOGUE
    from persona_bench.models.loading import split_adapter

    weights = split_adapter(name)[0]
    if name.startswith("persona/") or weights in CATALOGUE or Path(os.path.expanduser(weights)).exists():
        return name if name.startswith("persona/") else f"persona/{name}"
    return name


def run_folder(settings: Settings, out: Path) -> Path:
    """Where a run's files are: OUT/<model>/<preset>."""
    return out / model_folder(settings.model.removeprefix("persona/")) / settings.preset


def finished(settings: Settings, out: Path) -> dict[str, Any] | None:
    """The run.json of a finished run with these settings whose files are all there, or None."""
    path = run_folder(settings, out) / "run.json"
    if not path.exists():
        return None
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if held.get("fingerprint") != settings.fingerprint:
        return None
    return held if all((path.parent / name).exists() for name in held["files"]) else None


def refuse_other(settings: Settings, folder: Path, names: Sequence[str], way_out: str) -> None:
    """Refuse a folder whose logs were made with something else: of two logs of one name only the newest would count.

    Args:
        settings: of this call.
        folder: of a run, or of the logs behind one vector.
        names: of the settings that must be the same, `OF_RUN` or `OF_VECTOR`. A corpus may be added later, and left
            out.
        way_out: what to choose instead.

    Raises:
        RunError: naming what differs, or the file that cannot be read.
    """
    held, asked = _begun(folder), asdict(settings)
    differing = [
        name
        for name in names
        if name in held
        and _same_spelling(name, held[name]) != _same_spelling(name, asked[name])
        and not (name == "corpus" and "" in (held[name], asked[name]))
    ]
    if differing:
        told = " and ".join(f"{OPTIONS[name]} {held[name]}, not {asked[name]}" for name in differing)
        raise RunError(f"{folder} was begun with {told}; {way_out}")


def note_begun(settings: Settings, folder: Path, names: Sequence[str]) -> None:
    """Write down what a folder's logs are made with, for `refuse_other`."""
    asked = {name: value for name, value in asdict(settings).items() if name in names}
    held = {name: value for name, value in _begun(folder).items() if name in OPTIONS and value != ""}
    write_atomic(folder / BEGUN, json.dumps({**asked, **held}, indent=1, sort_keys=True) + "\n")


def _begun(folder: Path) -> dict[str, Any]:
    """What a folder was begun with; a run of an older version says what it finished with, an unfinished one nothing."""
    for path in (folder / BEGUN, folder / "run.json"):
        if path.exists():
            try:
                return dict(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise RunError(f"{path} is broken; remove it, and go on with what the folder was begun with") from error
    return {}


def _same_spelling(name: str, value: Any) -> Any:
    if name not in ("grader", "model"):
        return value
    return [model_spec(part.strip()) for part in value.split(",") if part.strip()]


def is_published(folder: Path) -> bool:
    """Whether a folder holds the curated form of a run (`persona-bench publish`), which has no responses."""
    path = folder / "run.json"
    return path.exists() and bool(json.loads(path.read_text(encoding="utf-8")).get("published"))
