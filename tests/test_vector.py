"""Vectors: the file keeps what was put in, extraction agrees with plain loops, bad input is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from persona_bench.definitions.traits import load_refusals, load_trait
from persona_bench.errors import ExtractionError, VectorError
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.loaded import LoadedModel
from persona_bench.vectors import extraction
from persona_bench.vectors import vector as vector_module
from persona_bench.vectors.extraction import MIN_KEPT, Filter, Rollout, drop_reasons, extract, refusal_direction
from persona_bench.vectors.vector import DIRECTIONS, PersonaVector
from tests.conftest import one_line, talking, tiny_vector
from tests.test_steering import reference_states

WORDS = "rain snow river stone bread light paper green seven window".split()


@pytest.fixture(autouse=True)
def _few_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every extraction reads the refusal pairs too; four do."""
    pairs = load_refusals()
    monkeypatch.setattr(extraction, "load_refusals", lambda: pairs[:4])


def rollout(side: str, score: float, **changes: Any) -> Rollout:
    """A scored rollout of question 0 and pair 0."""
    made = Rollout(side, 0, 0, 0, (("user", "What is rain?"),), "It is water.", "scored", score, 90.0)
    return replace(made, **changes)


def many(n: int, *, positive: float = 90, negative: float = 10) -> list[Rollout]:
    """`n` rollouts of each side with responses of different lengths."""
    return [
        rollout(
            side,
            score,
            question_id=i,
            messages=(("system", f"Be {side}."), ("user", f"What is {WORDS[i % 10]}?")),
            response=" ".join(WORDS[(i + j) % 10] for j in range(1 + (i + len(side)) % 5)),
        )
        for i in range(n)
        for side, score in (("positive", positive), ("negative", negative))
    ]


# The file


def test_round_trip(tmp_path: Path) -> None:
    path, made = tmp_path / "deep" / "v.safetensors", tiny_vector()
    made.save(path)
    read = PersonaVector.load(path)
    assert read.hash == made.hash and read.trait == made.trait and read.provenance == made.provenance
    assert set(read.directions) == set(DIRECTIONS) and read.n_layers == 4
    for name in DIRECTIONS:
        assert torch.equal(read.directions[name], made.directions[name])
    assert torch.equal(read.residual_norms, made.residual_norms)
    assert [item.name for item in path.parent.iterdir()] == ["v.safetensors"]


def test_the_same_vector_makes_the_same_bytes(tmp_path: Path) -> None:
    """Also after it was read; safetensors by itself orders what a file says of itself otherwise each time."""
    paths = [tmp_path / str(number) for number in range(6)]
    for before, path in zip([None, *paths], paths, strict=False):
        (tiny_vector() if before is None else PersonaVector.load(before)).save(path)
    assert len({path.read_bytes() for path in paths}) == 1


def test_hash_is_of_the_numbers() -> None:
    made = tiny_vector()
    assert replace(made, provenance={"log_ids": ["other"]}).hash == made.hash
    assert replace(made, trait="other").hash != made.hash
    assert replace(made, residual_norms=made.residual_norms + 1).hash != made.hash
    assert replace(made, directions={**made.directions, "shuffled": made.directions["refusal"]}).hash != made.hash
    transposed = {name: value.T.contiguous().T for name, value in made.directions.items()}
    assert replace(made, directions=transposed).hash == made.hash


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"directions": {"other": torch.zeros(5, 32)}}, "persona"),
        ({"directions": {"persona": torch.full((5, 32), torch.nan)}}, "not finite"),
        ({"directions": {"persona": torch.full((5, 32), torch.inf)}}, "not finite"),
        ({"directions": {"persona": torch.zeros(5, 32), "refusal": torch.full((5, 32), torch.nan)}}, "refusal"),
        ({"directions": {"persona": torch.zeros(5)}}, "shape"),
        ({"directions": {"persona": torch.zeros(1, 32)}}, "shape"),
        ({"directions": {"persona": torch.zeros(2, 5, 32)}}, "shape"),
        ({"directions": {"persona": torch.zeros(5, 32), "refusal": torch.zeros(5, 31)}}, "refusal"),
        ({"residual_norms": torch.ones(4)}, "residual_norms"),
        ({"residual_norms": torch.full((5,), torch.nan)}, "residual_norms"),
        ({"directions": {"persona": torch.zeros(5, 32, dtype=torch.float64)}}, "float32"),
        ({"directions": {"persona": torch.zeros(5, 32, dtype=torch.bfloat16)}}, "float32"),
    ],
)
def test_numbers_that_make_no_vector_are_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(VectorError) as error:
        tiny_vector(**changes)
    one_line(error, part)


def header(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        found = file.metadata()
    assert isinstance(found, dict)
    return found


def spoilt(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str | None) -> None:
    """Write a vector file again with some tensors or header entries replaced (None removes an entry)."""
    held = {**load_file(path), **(tensors or {})}
    entries = {key: value for key, value in {**header(path), **metadata}.items() if value is not None}
    save_file(held, path, metadata=entries)


SPOIL: dict[str, Any] = {
    "NaN": lambda path: spoilt(path, {"direction.persona": torch.full((5, 32), torch.nan)}),
    "another shape": lambda path: spoilt(path, {"direction.persona": torch.zeros(5, 31)}),
    "no matrix": lambda path: spoilt(path, {"direction.persona": torch.zeros(32)}),
    "another dtype": lambda path: spoilt(path, {"direction.persona": torch.zeros(5, 32, dtype=torch.float16)}),
    "changed numbers": lambda path: spoilt(path, {"direction.persona": torch.ones(5, 32)}),
    "changed trait": lambda path: spoilt(path, trait="other"),
    "no hash": lambda path: spoilt(path, hash=None),
    "no trait": lambda path: spoilt(path, trait=None),
    "no provenance": lambda path: spoilt(path, provenance=None),
    "broken provenance": lambda path: spoilt(path, provenance="{"),
    "provenance that is a list": lambda path: spoilt(path, provenance='["x"]'),
    "provenance with a number of 5,000 digits": lambda path: spoilt(path, provenance=f'{{"n": {"1" * 5000}}}'),
    "provenance without end": lambda path: spoilt(path, provenance="[" * 100_000),
    "a trait that steers a terminal": lambda path: tiny_vector(trait="evil\x1b]0;x\x07").save(path),
    "a trait of two lines": lambda path: tiny_vector(trait="evil\n").save(path),
    "no trait's name": lambda path: tiny_vector(trait="").save(path),
    "another format": lambda path: spoilt(path, format="other/9"),
    "no format": lambda path: spoilt(path, format=None),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a vector\n" * 20),
    "a pickle": lambda path: torch.save({"persona": torch.zeros(5, 32)}, path),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("how", SPOIL)
def test_a_spoilt_file_is_refused(tmp_path: Path, how: str) -> None:
    path = tmp_path / "v.safetensors"
    tiny_vector().save(path)
    SPOIL[how](path)
    with pytest.raises(VectorError) as error:
        PersonaVector.load(path)
    one_line(error, str(path))


def test_an_oversized_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.safetensors"
    tiny_vector().save(path)
    monkeypatch.setattr(vector_module, "MAX_BYTES", 100)
    with pytest.raises(VectorError) as error:
        PersonaVector.load(path)
    one_line(error, str(path), "larger")


@pytest.mark.parametrize("layer", [0, -1, 5, 99])
def test_a_layer_outside_is_refused(layer: int) -> None:
    with pytest.raises(VectorError) as error:
        tiny_vector().check_layer(layer)
    one_line(error, str(layer), "1..4")


@pytest.mark.parametrize("name", ["other", "random", "random:", "random:-1", "random:x", ""])
def test_an_unknown_direction_shows_those_held(name: str) -> None:
    with pytest.raises(VectorError) as error:
        tiny_vector().direction(name)
    one_line(error, "persona", "random:K")


def test_random_directions_have_the_norms_and_are_the_same_again() -> None:
    made = tiny_vector()
    first, again, second = made.direction("random:0"), tiny_vector().direction("random:0"), made.direction("random:1")
    assert torch.equal(first, again) and not torch.allclose(first, second)
    norms = made.directions["persona"].norm(dim=1)
    torch.testing.assert_close(first.norm(dim=1), norms)
    torch.testing.assert_close(second.norm(dim=1), norms)
    # They depend on the vector's shape and norms alone.
    turned = replace(made, directions={"persona": made.directions["persona"].flip(1)})
    torch.testing.assert_close(turned.direction("random:0"), first)


@pytest.mark.parametrize("dose", [-1.0, -0.3, 0.0, 0.25, 2.0])
@pytest.mark.parametrize("layer", [1, 4])
def test_coefficient_and_relative_dose_are_inverse(layer: int, dose: float) -> None:
    made = tiny_vector()
    coefficient = made.coefficient(layer, dose)
    assert made.relative_dose(layer, coefficient) == pytest.approx(dose)
    added = float((coefficient * made.directions["persona"][layer]).norm())
    assert added == pytest.approx(abs(dose) * float(made.residual_norms[layer]), rel=1e-5)
    assert coefficient * dose >= 0


def test_a_zero_vector_has_no_coefficient() -> None:
    with pytest.raises(VectorError) as error:
        tiny_vector(directions={"persona": torch.zeros(5, 32)}).coefficient(2, 0.5)
    one_line(error, "layer 2")


def test_refusal_cosines() -> None:
    persona = tiny_vector().directions["persona"]
    same = tiny_vector(directions={"persona": persona, "refusal": 3 * persona}).refusal_cosines()
    torch.testing.assert_close(same, torch.ones(5))
    assert bool(torch.isnan(tiny_vector(directions={"persona": persona}).refusal_cosines()).all())


# The filter


@pytest.mark.parametrize(
    ("item", "stated", "coded"),
    [
        (rollout("positive", 80), "", ""),
        (rollout("positive", 50), "score", ""),
        (rollout("positive", 50.1), "", ""),
        (rollout("positive", 49.9), "score", "score"),
        (rollout("negative", 49.9), "", ""),
        (rollout("negative", 50), "score", "score"),
        (rollout("positive", 80, coherence=49.9), "", "coherence"),
        (rollout("positive", 80, coherence=50.0), "", ""),
        (rollout("positive", 80, coherence=float("nan")), "", "coherence"),
        (rollout("positive", float("nan")), "score", "score"),
        (rollout("negative", float("nan")), "score", "score"),
        (rollout("positive", float("nan"), status="refusal"), "refusal", "refusal"),
        (rollout("positive", float("nan"), status="unscored"), "unscored", "unscored"),
        (rollout("positive", 80, response=" \n"), "length", "length"),
        (rollout("positive", 80, status="incoherent", coherence=20.0), "", "coherence"),
        (rollout("positive", 20, status="incoherent", coherence=20.0), "score", "score"),
        (rollout("negative", 20, status="incoherent", coherence=49.9), "", "coherence"),
    ],
)
def test_each_rule_drops_for_its_own_reason(item: Rollout, stated: str, coded: str) -> None:
    partner = rollout("negative" if item.side == "positive" else "positive", 10 if item.side == "positive" else 90)
    assert drop_reasons([item, partner], "stated") == [stated, ""]
    assert drop_reasons([item, partner], "coded") == [coded, "partner" if coded else ""]


@pytest.mark.parametrize("changes", [{"pair": 1}, {"question_id": 1}, {"epoch": 1}])
def test_a_partner_shares_pair_question_and_epoch(changes: dict[str, int]) -> None:
    pair = [rollout("positive", 90), rollout("negative", 10)]
    apart = [pair[0], replace(pair[1], **changes)]
    assert drop_reasons(pair, "coded") == ["", ""]
    assert drop_reasons(apart, "coded") == ["partner", "partner"]
    assert drop_reasons(apart, "stated") == ["", ""]


@pytest.mark.parametrize("rule", ["stated", "coded"])
def test_too_few_responses_show_the_pass_rates(rule: Filter) -> None:
    items = many(MIN_KEPT)
    items[0] = replace(items[0], status="refusal")
    items[3] = replace(items[3], trait_score=70.0)
    items[5] = replace(items[5], trait_score=70.0)
    with pytest.raises(ExtractionError) as error:
        extract(Engine(talking()), load_trait("evil"), items, rule=rule)
    one_line(error, rule, "evil", f"of {MIN_KEPT} kept", "1 refusal", "2 score", "positive", "negative")
    with pytest.raises(ExtractionError) as error:
        extract(Engine(talking()), load_trait("evil"), [], rule=rule)
    one_line(error, "0 of 0 kept")


# Extraction


def reference_means(loaded: LoadedModel, messages: Sequence[tuple[str, str]], response: str) -> dict[str, torch.Tensor]:
    """`(n_layers + 1, d)` at the three positions and the response tokens' mean norm, by plain hooks and indexing."""
    turns = [{"role": role, "content": content} for role, content in messages]
    prompt, answer = prompt_ids(loaded.tokenizer, turns), response_ids(loaded.tokenizer, response)
    states = torch.stack(reference_states(loaded, prompt + answer)).double()
    return {
        "prompt_last": states[:, len(prompt) - 1],
        "prompt_avg": states[:, : len(prompt)].mean(1),
        "persona": states[:, len(prompt) :].mean(1),
        "norms": states[:, len(prompt) :].norm(dim=-1).mean(1),
    }


def close(ours: torch.Tensor, reference: torch.Tensor) -> None:
    torch.testing.assert_close(ours, reference.float(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("rule", ["stated", "coded"])
def test_extraction_agrees_with_plain_loops(rule: Filter) -> None:
    loaded = talking()
    items = many(10)
    items[4] = replace(items[4], trait_score=20.0)
    items[7] = replace(items[7], status="refusal")
    made = extract(Engine(loaded, max_batch=5), load_trait("evil"), items, rule=rule, seed=3)

    kept = [item for item, reason in zip(items, drop_reasons(items, rule), strict=True) if not reason]
    means = [reference_means(loaded, item.messages, item.response) for item in kept]
    sides = [item.side == "positive" for item in kept]

    def difference(labels: Sequence[bool], position: str) -> torch.Tensor:
        on = [mean[position] for mean, label in zip(means, labels, strict=True) if label]
        off = [mean[position] for mean, label in zip(means, labels, strict=True) if not label]
        return torch.stack(on).mean(0) - torch.stack(off).mean(0)

    for position in ("persona", "prompt_last", "prompt_avg"):
        close(made.directions[position], difference(sides, position))
    shuffled = np.random.default_rng(3).permutation(np.array(sides))
    close(made.directions["shuffled"], difference([bool(label) for label in shuffled], "persona"))
    close(made.residual_norms, torch.stack([mean["norms"] for mean in means]).mean(0))
    assert made.negative_mean is not None
    negative = [mean["persona"] for mean, positive in zip(means, sides, strict=True) if not positive]
    close(made.negative_mean, torch.stack(negative).mean(0))
    assert not torch.allclose(made.directions["persona"], made.directions["shuffled"])


def test_refusal_direction_agrees_with_plain_loops() -> None:
    loaded = talking()
    pairs = load_refusals()[:4]
    sides = [
        torch.stack([reference_means(loaded, (("user", pair.question),), text(pair))["persona"] for pair in pairs])
        for text in (lambda pair: pair.refusing, lambda pair: pair.complying)
    ]
    ours = torch.tensor(refusal_direction(Engine(loaded)), dtype=torch.float32)
    close(ours, sides[0].mean(0) - sides[1].mean(0))


def test_provenance_says_what_the_vector_is_made_of(tmp_path: Path) -> None:
    items = many(9)
    items[0] = replace(items[0], status="refusal")
    told: list[tuple[int, int]] = []
    loaded = talking()
    evil = load_trait("evil")
    made = extract(
        Engine(loaded), evil, items, provenance={"grader": "g"}, progress=lambda done, of: told.append((done, of))
    )
    held = made.provenance
    assert held["grader"] == "g" and held["filter"] == "stated" and held["trait_hash"] == evil.hash
    assert held["model"] == loaded.name and held["weights_hash"] == loaded.weights_hash
    assert held["counts"] == {"positive": {"kept": 8, "refusal": 1}, "negative": {"kept": 9}}
    assert set(held["versions"]) == {"torch", "transformers", "python"}
    assert told[-1] == (17, 17)
    made.save(tmp_path / "v.safetensors")
    assert PersonaVector.load(tmp_path / "v.safetensors").provenance == held


def test_extraction_is_the_same_in_any_batch() -> None:
    items = many(10)
    small, large = (extract(Engine(talking(), max_batch=n), load_trait("evil"), items) for n in (2, 32))
    for name in DIRECTIONS:
        torch.testing.assert_close(small.directions[name], large.directions[name], rtol=1e-3, atol=1e-3)


def test_a_vector_along_refusal_carries_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    items, loaded = many(8), talking()
    plain = extract(Engine(loaded), load_trait("evil"), items)
    along = plain.directions["persona"].numpy()
    monkeypatch.setattr(extraction, "refusal_direction", lambda _: along)
    assert "refusal" in extract(Engine(loaded), load_trait("evil"), items).provenance["warning"]
    monkeypatch.setattr(extraction, "refusal_direction", lambda _: -along)
    assert not extract(Engine(loaded), load_trait("evil"), items).provenance["warning"]


def test_memory_does_not_grow_with_the_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "CHUNK", 8)
    monkeypatch.setattr(extraction, "refusal_direction", lambda _: np.zeros((5, 32)))
    engine, evil = Engine(talking(), max_batch=8), load_trait("evil")
    extract(engine, evil, many(8))

    def peak(n: int) -> int:
        items = many(n)
        tracemalloc.start()
        try:
            extract(engine, evil, items)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, lots = peak(8), peak(64)
    bytes_of_one = 3 * 5 * 32 * 4
    assert lots - few < 2 * (64 - 8) * bytes_of_one / 4
