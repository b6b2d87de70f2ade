"""`persona-bench check`: rules on planted intervals, baselines, what is written, and exit codes end to end."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from evals.mmlu_preservation import dataset
from persona_bench import checking
from persona_bench.analysis import regression as rg
from persona_bench.analysis import regression_output as output
from persona_bench.analysis import statistics as st
from persona_bench.cli import main
from persona_bench.definitions import presets
from persona_bench.definitions.traits import load_trait
from persona_bench.errors import DataError
from persona_bench.models.engine import Engine
from persona_bench.models.loading import load
from persona_bench.vectors.selectivity import separation
from persona_bench.vectors.vector import PersonaVector
from tests.builders_samples import World, make_samples
from tests.conftest import one_line, tiny_vector

LAYER = 2  # the middle one of the tiny model


def measure(value: float, half: float = 1.0, n: int = 20) -> rg.Measure:
    return rg.Measure(value, value - half, value + half, n)


def baseline(**changes: Any) -> rg.Baseline:
    held = {"steering slope": measure(40.0, 5.0), "MMLU": measure(-0.01, 0.05)}
    values: dict[str, Any] = {
        "format": rg.FORMAT,
        "trait": "evil",
        "trait_hash": "t",
        "weights_hash": "w",
        "grader": "g",
        "preset": "quick",
        "seed": 0,
        "layer": 2,
        "vector_hash": "v" * 64,
        "direction": rg.packed(np.arange(32.0)),
        "measures": rg.held_measures(held),
    }
    return rg.Baseline(**{**values, **changes})


def status(rule: str, found: rg.Measure, held: rg.Baseline | None = None) -> str:
    (check,) = rg.judge_measures({rule: found}, held)
    return check.status


# --- rules ------------------------------------------------------------------------------------------------------------


def test_without_a_baseline_a_bound_decides() -> None:
    assert status("steering slope", measure(3)) == "good"
    assert status("steering slope", measure(0.5)) == "inconclusive"
    assert status("steering slope", measure(-3)) == "worse"
    assert status("refusal cosine", rg.Measure.exact(0.6, 1)) == "worse"
    assert status("refusal cosine", rg.Measure.exact(-0.9, 1)) == "good"
    assert status("steering slope", rg.Measure(reason="judge gate: no grader")) == "not testable"


def test_what_makes_a_vector_one_must_be_shown_in_one_of_two_ways() -> None:
    clear, vague, untested = measure(3), measure(0.5), rg.Measure(reason="no answers")

    def found(told: rg.Measure, read: rg.Measure) -> tuple[list[str], int]:
        checks = rg.judge_measures({"separation": told, "labelled answers": read})
        return [check.status for check in checks], rg.exit_code(checks)

    assert found(clear, clear) == (["good", "good"], 0)
    assert found(clear, vague) == (["good", "inconclusive"], 0)
    assert found(vague, clear) == (["inconclusive", "good"], 0)
    assert found(vague, vague) == (["worse", "worse"], 1)
    assert found(vague, untested) == (["worse", "not testable"], 1)
    assert found(clear, untested) == (["good", "not testable"], 0)
    assert found(untested, untested) == (["not testable", "not testable"], 2)
    assert found(clear, measure(-3)) == (["good", "worse"], 1)


def test_with_a_baseline_the_interval_of_the_difference_decides() -> None:
    held = baseline()
    assert status("steering slope", measure(40, 5), held) == "good"
    assert status("steering slope", measure(34, 5), held) == "good"  # 6 lower, give or take 7.1
    assert status("steering slope", measure(32, 5), held) == "worse"  # 8 lower
    assert status("steering slope", measure(60, 5), held) == "good"
    assert status("MMLU", measure(-0.06, 0.03), held) == "good"
    assert status("MMLU", measure(-0.09, 0.03), held) == "worse"
    assert status("monitoring r", measure(0.5, 0.2), held) == "good"  # the baseline has none


@pytest.mark.parametrize("seed", range(5))
def test_a_change_is_found_as_often_as_its_interval_says(seed: int) -> None:
    """Two lopsided estimates whose truth is known: about 95 of 100 intervals of the difference hold it."""
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(200):
        parts = [rng.exponential(scale, size=30) for scale in (3.0, 2.0)]
        found = [st.mean(part, range(30), rng=rng, resamples=300) for part in parts]
        new, old = (st.Interval(item.value, item.low, item.high) for item in found)
        moved = st.change(new, old)
        hits += moved.low <= 1.0 <= moved.high
    assert 0.90 <= hits / 200 <= 0.99


def test_random_directions_rarely_pass_for_more_than_random() -> None:
    """Every direction's effect differs, none is special: the persona's is one more draw."""
    passed = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        effects = rng.normal(size=21)[None, :] + 0.3 * rng.normal(size=(10, 21))
        found = st.beyond_random(effects[:, 0], effects[:, 1:])
        passed += found.low > 0
    assert passed <= 2  # one in 2,000 is promised; 2.5 % would be ten
    special = effects[:, 0] * 0 + 6.0
    assert st.beyond_random(special, effects[:, 1:]).low > 0


def test_slope_and_excess_find_what_was_planted() -> None:
    rng = np.random.default_rng(0)
    x = np.tile([-0.3, 0.0, 0.3], 40)
    ids = np.repeat(np.arange(20), 6)
    y = 50 + 60 * x + rng.normal(size=20)[ids] * 5 + rng.normal(size=120)
    own = st.slope(x, y, ids, rng=st.stream(0, "a"))
    flat = st.slope(x, y - 60 * x, ids, rng=st.stream(0, "a"))
    assert own.value == pytest.approx(60, abs=1.5) and 0.5 < own.high - own.low < 3
    assert st.excess(own, flat).value == pytest.approx(60)
    assert st.excess(own, flat).high - st.excess(own, flat).low < 1e-6
    assert math.isnan(st.slope(x * 0, y, ids, rng=st.stream(0, "a")).value)


def test_judged_measures_on_planted_samples() -> None:
    samples = make_samples(World(traits=("evil",), base=40.0, layers=(8,), coherence_cost=200))
    found = checking.judged_measures(samples, "evil", 8, "", 0)
    assert found["steering slope"].low < 100 < found["steering slope"].high + 5
    assert found["steering beyond random"].low > 50
    assert status("coherence", found["coherence"]) == "worse"
    assert found["monitoring r"].low > 0.5 and found["monitoring beyond random"].low > 0
    shut = checking.judged_measures(samples, "evil", 8, "judge gate: AUROC 0.5", 0)
    assert shut.keys() == found.keys() and {item.reason for item in shut.values()} == {"judge gate: AUROC 0.5"}
    at_chance = dataclasses.replace(samples, mmlu=samples.mmlu.assign(correct=0.0))
    assert "chance" in checking.mmlu_measure(at_chance, "evil", 0).reason
    assert checking.mmlu_measure(samples, "evil", 0).high < 0


# --- baselines --------------------------------------------------------------------------------------------------------


def test_a_baseline_comes_back_as_it_was(tmp_path: Path) -> None:
    held = baseline()
    held.save(tmp_path / "b.json")
    again = rg.Baseline.load(tmp_path / "b.json")
    assert again == held and (again.array == np.arange(32.0)).all()
    unchanged = {name: rg.Measure(m.value, m.low, m.high, m.n) for name, m in held.measures.items()}
    assert {check.status for check in rg.judge_measures(unchanged, again)} <= {"good", "inconclusive"}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "cannot read baseline"),
        ("{", "Invalid JSON"),
        ("[]", "b.json"),
        ('{"format": "other/1"}', "format"),
        (json.dumps({**baseline().model_dump(), "layer": 0}), "layer"),
        (json.dumps({**baseline().model_dump(), "measures": {"MMLU": {"value": None}}}), "measures.MMLU"),
    ],
)
def test_a_broken_baseline_is_one_line(content: str | None, part: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "b.json").write_text(content)
    with pytest.raises(DataError) as error:
        rg.Baseline.load(tmp_path / "b.json")
    one_line(error, part, "--write-baseline")


@pytest.mark.parametrize("direction", ["!", "AAA=", "", rg.packed(np.array([1.0, math.nan]))])
def test_a_broken_direction_is_one_line(direction: str) -> None:
    with pytest.raises(DataError) as error:
        _ = baseline(direction=direction).array
    one_line(error, "--write-baseline")


# --- what is written --------------------------------------------------------------------------------------------------


def outcome() -> rg.Outcome:
    found = {
        "separation": measure(3),
        "steering slope": measure(10, 2),
        "coherence": measure(-20, 9),
        "monitoring r": rg.Measure(reason="judge <gate> & \x00 more"),
    }
    return rg.Outcome("evil|<b> on m", {"model": "m", "layer": "2"}, rg.judge_measures(found, baseline()))


def test_junit_has_a_case_a_check() -> None:
    root = ElementTree.fromstring(output.junit(outcome()))
    assert root.tag == "testsuites"
    (suite,) = root
    assert suite.tag == "testsuite"
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": 4, "failures": 1, "errors": 0, "skipped": 1}
    cases = {case.attrib["name"]: case for case in suite.iter("testcase")}
    assert list(cases) == ["separation", "steering slope", "coherence", "monitoring r"]
    failure = cases["steering slope"].find("failure")
    assert failure is not None and "baseline" in failure.attrib["message"]
    skipped = cases["monitoring r"].find("skipped")
    assert skipped is not None and skipped.attrib["message"].startswith("judge <gate> &")
    said = cases["coherence"].find("system-out")
    assert said is not None and "inconclusive" in str(said.text) and cases["coherence"].find("failure") is None
    assert {item.attrib["name"] for item in suite.iter("property")} == {"model", "layer"}


def test_junit_of_what_could_not_be_checked() -> None:
    (suite,) = ElementTree.fromstring(output.junit_error("v.safetensors", "is broken"))
    assert (suite.attrib["tests"], suite.attrib["errors"]) == ("1", "1")
    error = suite.find("testcase/error")
    assert error is not None and error.attrib["message"] == "is broken"


def test_the_summary_is_a_table_that_nothing_breaks() -> None:
    text = output.markdown(outcome())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4 and {line.replace("\\|", "").count("|") for line in table} == {len(output.COLUMNS) + 1}
    assert "<b>" not in text and "**worse: steering slope; not testable: monitoring r**" in text


# --- end to end -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model, a handful of MMLU questions and small sizes."""
    options = "\n".join(f"{letter}. {word}" for letter, word in zip("ABCD", ("one", "two", "red", "blue"), strict=True))
    lines = [json.dumps({"question": f"Which is {i}?", "options": options, "answer": "A. one"}) for i in range(6)]
    path = tmp_path / "mmlu.jsonl"
    path.write_text("\n".join(lines))
    monkeypatch.setattr(dataset, "fetch_data", lambda _: path)
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    sizes = dataclasses.replace(presets.load_preset("check-quick"), max_tokens=6, mmlu_questions=6)
    monkeypatch.setitem(presets.CHECKED, "check-quick", sizes)
    return folder


@pytest.fixture
def vector(small: Path, tmp_path: Path) -> Path:
    """What a perfect vector of the tiny model would be: the direction in which its responses really differ."""
    loaded, trait = load(str(small)), load_trait("evil")
    blind = tiny_vector(provenance={"weights_hash": loaded.weights_hash, "model": "tiny"})
    seen = separation(
        Engine(loaded), blind, trait, LAYER, questions=10, random_vectors=64, temperature=0.7, max_tokens=6
    )
    # The effects on 64 known directions tell the difference itself, in 32 dimensions.
    units = torch.nn.functional.normalize(
        torch.stack([blind.direction(f"random:{index}")[LAYER] for index in range(64)]), dim=1
    )
    difference = torch.linalg.lstsq(units.double(), torch.tensor(seen.random.T)).solution.mean(dim=1).float()
    path = tmp_path / "v.safetensors"
    persona = (difference / difference.norm()).repeat(blind.n_layers + 1, 1)
    dataclasses.replace(blind, directions={**blind.directions, "persona": persona}).save(path)
    return path


def call(*words: Any) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, words)])


def with_persona(path: Path, persona: torch.Tensor, target: Path, **changes: Any) -> Path:
    held = PersonaVector.load(path)
    dataclasses.replace(held, directions={**held.directions, "persona": persona}, **changes).save(target)
    return target


def test_exit_codes_end_to_end(vector: Path, small: Path, tmp_path: Path) -> None:
    shared = ("--model", small, "--grader", "none")
    written, junit, summary = tmp_path / "b.json", tmp_path / "j.xml", tmp_path / "s.md"
    summary.write_text("before\n")
    good = call(vector, *shared, "--write-baseline", written, "--junit", junit, "--summary", summary)
    assert good.exit_code == 0, good.output
    assert rg.Baseline.load(written).vector_hash == PersonaVector.load(vector).hash
    assert int(ElementTree.parse(junit).getroot().attrib["failures"]) == 0
    assert summary.read_text().startswith("before\n### persona-bench check")
    assert "not testable: steering slope" in good.output and "no grader" in good.output

    again = call(vector, *shared, "--baseline", written)
    assert again.exit_code == 0, again.output

    held = PersonaVector.load(vector)
    random = with_persona(vector, held.direction("random:9999"), tmp_path / "r.safetensors")
    alone = call(random, *shared, "--write-baseline", tmp_path / "no.json", "--junit", junit)
    assert alone.exit_code == 1 and "separation" in alone.output, alone.output
    assert not (tmp_path / "no.json").exists()
    assert int(ElementTree.parse(junit).getroot().attrib["failures"]) == 2
    beside = call(random, *shared, "--baseline", written)
    assert beside.exit_code == 1 and "worse: baseline cosine, separation, labelled answers" in beside.output, (
        beside.output
    )


def wrong(kind: str, vector: Path, target: Path) -> Path:
    held = PersonaVector.load(vector)
    persona = held.directions["persona"].clone()
    if kind == "broken":
        target.write_bytes(vector.read_bytes()[:200])
    elif kind == "nan":
        from safetensors import safe_open
        from safetensors.torch import save_file

        with safe_open(vector, framework="pt") as file:
            tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        tensors["direction.persona"][1, 0] = math.nan
        save_file(tensors, target, metadata=header)
    elif kind == "width":
        tiny_vector(d_model=16).save(target)
    elif kind == "weights":
        with_persona(vector, persona, target, provenance={**held.provenance, "weights_hash": "f" * 64})
    elif kind == "zero":
        persona[2] = 0
        with_persona(vector, persona, target)
    return target


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("broken", "cannot read vector"),
        ("nan", "not finite"),
        ("width", "4 layers of width 16"),
        ("weights", "--other-weights"),
        ("missing", "no vector file"),
    ],
)
def test_a_vector_that_cannot_be_checked_is_2(kind: str, part: str, vector: Path, small: Path, tmp_path: Path) -> None:
    junit = tmp_path / "j.xml"
    bad = wrong(kind, vector, tmp_path / "bad.safetensors")
    done = call(bad, "--model", small, "--grader", "none", "--junit", junit)
    assert done.exit_code == 2 and part in done.output, done.output
    assert ElementTree.parse(junit).getroot().attrib["errors"] == "1"


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is run: for refusals that come before any measurement."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured before it was refused")

    monkeypatch.setattr(checking, "_judge_free", never)
    monkeypatch.setattr(checking, "check_evals", never)
    yield


@pytest.mark.usefixtures("unmeasured")
def test_a_baseline_of_something_else_is_2(vector: Path, small: Path, tmp_path: Path) -> None:
    held, trait, loaded = PersonaVector.load(vector), load_trait("evil"), load(str(small))
    fits = {"trait_hash": trait.hash, "weights_hash": loaded.weights_hash, "layer": 2, "vector_hash": held.hash}
    for changes, part in (
        ({"trait": "kind"}, "another trait"),
        ({"trait_hash": "x"}, "another trait hash"),
        ({"weights_hash": "x"}, "another weights hash"),
        ({"seed": 3}, "another seed"),
        ({"grader": "someone"}, "another grader"),
        ({"preset": "paper"}, "another preset"),
        ({"direction": rg.packed(np.ones(7))}, "7 numbers"),
    ):
        path = tmp_path / "b.json"
        baseline(**{**fits, "grader": "g", **changes}).save(path)
        done = call(vector, "--model", small, "--grader", "g", "--baseline", path)
        assert done.exit_code == 2 and part in done.output, (part, done.output)
    done = call(vector, "--model", small, "--grader", "none", "--baseline", tmp_path / "none.json")
    assert done.exit_code == 2 and "cannot read baseline" in done.output
    done = call(vector, "--model", small, "--grader", "none", "--layer", 0)
    assert done.exit_code == 2 and "layer 0 is outside 1..4" in done.output
    foreign = tmp_path / "v.pt"
    foreign.write_bytes(b"\x80\x04")
    done = call(foreign, "--model", small)
    assert done.exit_code == 2 and "another project" in done.output and "persona-bench convert" in done.output


def test_a_vector_with_a_zero_layer_is_worse(vector: Path, tmp_path: Path) -> None:
    found = checking._static(PersonaVector.load(wrong("zero", vector, tmp_path / "z.safetensors")), 3, None)
    assert status("norms", found["norms"]) == "worse" and found["norms"].value == 1


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: out of memory"), KeyboardInterrupt(), OSError("gone")])
def test_a_check_that_is_cut_off_is_2(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any) -> None:
        raise error

    junit = tmp_path / "j.xml"
    junit.write_text("of an earlier check")
    monkeypatch.setattr(checking, "check", cut)
    done = call("v.safetensors", "--junit", junit)
    assert done.exit_code == 2 and "Traceback" in done.output and type(error).__name__ in done.output
    assert ElementTree.parse(junit).getroot().attrib["errors"] == "1"
    assert f"{type(error).__name__}: {error}" in junit.read_text()


def test_a_comparison_that_is_cut_off_is_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from persona_bench.analysis import runs

    def cut(*_: Any) -> None:
        raise KeyError("column")

    (tmp_path / "run.json").write_text("{}")
    monkeypatch.setattr(runs, "read_run", cut)
    done = CliRunner().invoke(main, ["compare", str(tmp_path), str(tmp_path)])
    assert done.exit_code == 2 and "KeyError: 'column'" in done.output
    assert CliRunner().invoke(main, ["compare", "--help"]).exit_code == 0
    assert CliRunner().invoke(main, ["check"]).exit_code == 2
