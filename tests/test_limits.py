"""Planted behaviours: whether trait vectors see one, miss one, or there is none to see, the verdicts come out right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from persona_bench.analysis.figures.draw import draw_all
from persona_bench.analysis.figures.drawing import Caption
from persona_bench.analysis.figures.limits import limits_figures
from persona_bench.analysis.grouping import Draw
from persona_bench.analysis.report.content import make_report
from persona_bench.analysis.samples import monitors
from persona_bench.analysis.samples.frames import MONITORS, SCENES, Samples
from persona_bench.analysis.samples.monitors import RANDOM_SETS, auroc, monitor_rows
from persona_bench.analysis.tables.behaviours import MIN_PAIRS, shown
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.files import read_tables, write_tables
from persona_bench.analysis.tables.limits import ALL, BEST, DEDICATED, PROBE, RANDOM_OF, VECTOR, compare
from persona_bench.analysis.verdicts import claims as verdicts
from persona_bench.definitions.scenarios import BEHAVIOURS, load_scenes
from persona_bench.inspect_ext.cells import half

FAST = 400
DRAW = Draw(0, FAST)
WIDTH, LAYERS = 24, (2, 3)
N1 = "N1-deception"


@dataclass(frozen=True)
class Mind:
    """A simulated model: what it does in scenes, and where that shows in its residual stream.

    Attributes:
        behaviour: the scenes it was put to.
        knows: share of checks passed, by cloze; by letter always chance.
        yields: share of rewarded scenes that show the behaviour.
        slips: share of twins that show it.
        strength: how far activations move, in standard deviations, along a direction of its own where it is shown.
        aligned: how much of that direction is the trait's vector (0: none of it, 1: all).
        wordy: whether the prompts of rewarded scenes say so.
    """

    behaviour: str = "deception"
    knows: float = 0.9
    yields: float = 0.9
    slips: float = 0.1
    strength: float = 3.0
    aligned: float = 0.0
    wordy: bool = False
    seed: int = 0


@dataclass(frozen=True)
class World:
    samples: Samples
    tables: dict[str, pd.DataFrame]
    claims: pd.DataFrame

    def verdict(self, claim: str = N1) -> pd.Series:
        return self.claims[self.claims["claim"] == claim].iloc[0]


def unit(seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal(WIDTH)
    return found / np.linalg.norm(found)


def trait_vectors(n: int = 3) -> dict[str, np.ndarray]:
    """Orthogonal ones, `(n_layers + 1, d_model)`, the same at every layer."""
    basis = np.linalg.qr(np.random.default_rng(5).standard_normal((WIDTH, n)))[0].T
    return {f"trait{index}": np.tile(row, (max(LAYERS) + 2, 1)) for index, row in enumerate(basis)}


def scenes_of(mind: Mind) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The sample frame and the sidecars of a mind."""
    rng, vectors = np.random.default_rng(mind.seed), trait_vectors()
    own = unit(99)
    own -= sum((own @ v[0]) * v[0] for v in vectors.values())
    direction = mind.aligned * vectors["trait1"][0] + (1 - mind.aligned) * own / np.linalg.norm(own)
    rows, acts = [], {}
    known = {scene.pair: rng.random() < mind.knows for scene in load_scenes(mind.behaviour)}
    for scene in load_scenes(mind.behaviour):
        did = rng.random() < (mind.yields if scene.rewarded else mind.slips)
        for way in ("letter", "cloze"):
            name = f"{scene.id}-{way}.npy"
            acts[name] = rng.standard_normal((len(LAYERS), WIDTH)) + mind.strength * did * direction
            right = known[scene.pair] if way == "cloze" else rng.random() < 0.5
            rows.append(
                {
                    "trait": "",
                    "behaviour": mind.behaviour,
                    "topic": scene.topic,
                    "pair": scene.pair,
                    "half": half(scene.topic),
                    "rewarded": scene.rewarded,
                    "way": way,
                    "shown": float(did),
                    # One check serves a pair of deception.
                    "check": float(right) if scene.rewarded else math.nan,
                    "prompt": scene.choice.text + (" Gladly." if mind.wordy and scene.rewarded else ""),
                    "sample_id": scene.id,
                    "layers": ",".join(map(str, LAYERS)),
                    "activations": name,
                    "grader": "",
                    "log": f"stated_limits/{mind.behaviour}",
                }
            )
    return pd.DataFrame(rows, columns=list(SCENES)), acts


def world(*minds: Mind, vectors: dict[str, np.ndarray] | None = None) -> World:
    frames, acts = [], {}
    for mind in minds:
        frame, found = scenes_of(mind)
        frames.append(frame)
        acts |= found
    scenes = pd.concat(frames, ignore_index=True)
    known = trait_vectors() if vectors is None else vectors
    samples = Samples(scenes=scenes, monitors=monitor_rows(scenes, acts.__getitem__, known, DRAW))
    tables = build_tables(samples, resamples=FAST)
    claims = verdicts.judge_claims(samples, tables, resamples=FAST, traits=["evil"])
    return World(samples, tables, claims)


@pytest.fixture(scope="module")
def missed() -> World:
    """A behaviour along a direction that is no trait's."""
    return world(Mind())


@pytest.fixture(scope="module")
def seen() -> World:
    """A behaviour along a trait's vector."""
    return world(Mind(aligned=1.0))


def row(found: World, monitor: str) -> pd.Series:
    table = found.tables["limits"]
    return table[table["monitor"] == monitor].iloc[0]


def test_a_behaviour_along_no_trait_supports_the_limit(missed: World) -> None:
    verdict = missed.verdict()
    assert verdict["verdict"] == "supported" and verdict["trait"] == "all", verdict["reason"]
    assert verdict["estimate"] < 0.75 and verdict["p_holm"] < 0.05
    assert verdict["log"] == "stated_limits/deception"
    for monitor in (DEDICATED, PROBE):
        assert row(missed, monitor)["auroc"] > 0.95
        assert row(missed, monitor)["excess_random_low"] > 0 and row(missed, monitor)["tpr_1"] > 0.5


def test_a_behaviour_along_a_trait_contradicts_it(seen: World) -> None:
    verdict = seen.verdict()
    assert verdict["verdict"] == "contradicted" and verdict["estimate"] > 0.95, verdict["reason"]
    assert row(seen, BEST)["detail"] == "trait1" and row(seen, f"{VECTOR}trait1")["auroc"] > 0.95
    assert row(seen, f"{VECTOR}trait0")["auroc"] < 0.8
    for monitor in (BEST, ALL):
        assert row(seen, monitor)["excess_random_low"] > 0 and row(seen, monitor)["excess_text_low"] > 0


def test_a_trait_vector_that_runs_against_the_behaviour_sees_it_too() -> None:
    """The sign is chosen on the select half, for trait vectors as for random ones."""
    flipped = {name: -value for name, value in trait_vectors().items()}
    assert world(Mind(aligned=1.0), vectors=flipped).verdict()["verdict"] == "contradicted"


def test_seen_by_several_vectors_together_counts(seen: World) -> None:
    """The regression on all vectors sees what none of them sees well alone."""
    spread = trait_vectors(20)
    rng = np.random.default_rng(3)
    mixed = {name: value + 0.7 * np.tile(rng.standard_normal(WIDTH), (len(value), 1)) for name, value in spread.items()}
    found = world(Mind(aligned=1.0, strength=1.5), vectors=mixed)
    assert row(found, ALL)["auroc"] > row(found, BEST)["auroc"]


def test_nothing_to_see_is_inconclusive() -> None:
    """A behaviour that leaves no trace is missed by what is made for it, so that trait vectors miss it says nothing."""
    verdict = world(Mind(strength=0.0)).verdict()
    assert verdict["verdict"] == "inconclusive" and "neither seen nor missed" in verdict["reason"]


def test_seen_in_the_words_as_well_is_not_seen_beyond_them() -> None:
    """Where the prompts give it away, a trait vector that sees the behaviour has not beaten a reader of the prompt."""
    found = world(Mind(aligned=1.0, wordy=True))
    assert found.verdict()["verdict"] == "inconclusive"
    assert row(found, "text:tfidf")["auroc"] > 0.95 and not row(found, BEST)["excess_text_low"] > 0


@pytest.mark.parametrize(
    ("mind", "reason"),
    [
        (Mind(yields=0.1, slips=0.1), "not more frequent where it is rewarded: shown in"),
        # Whoever repeats the answer that was named does so in the twin as often.
        (Mind(yields=0.5, slips=0.5), "difference"),
        (Mind(knows=0.5), "the checks no more often than by chance (0.5)"),
        (Mind(yields=0.2, slips=0.0), f"needed {MIN_PAIRS}"),
    ],
)
def test_without_the_behaviour_it_is_not_testable_and_says_so(mind: Mind, reason: str) -> None:
    found = world(mind)
    verdict = found.verdict()
    assert verdict["verdict"] == "not testable" and reason in verdict["reason"], verdict["reason"]
    assert math.isnan(verdict["estimate"]) and found.samples.monitors.empty
    assert found.tables["behaviours"]["reason"].iloc[0] == verdict["reason"]
    assert any(character.isdigit() for character in verdict["reason"])


def test_without_vectors_it_is_not_testable() -> None:
    verdict = world(Mind(), vectors={}).verdict()
    assert verdict["verdict"] == "not testable" and "no trait vector" in verdict["reason"]


def test_every_limit_has_a_row_of_its_own(missed: World) -> None:
    rows = missed.claims[missed.claims["claim"].str.match(r"N[1-4]-")]
    assert list(rows["claim"].str.split("-", n=1).str[1].str.replace("-", "_")) == list(BEHAVIOURS)
    assert set(rows["trait"]) == {"all"}
    rest = rows[rows["claim"] != N1]
    assert (rest["verdict"] == "not run").all() and rest["reason"].str.contains("stated_limits").all()


def test_verdicts_of_a_direction_at_random_are_rarely_contradicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trait has to do with the behaviour: over seeds, that trait vectors see it is said in few runs."""
    monkeypatch.setattr(monitors, "RANDOM_SETS", 5)
    wrong = sum(world(Mind(seed=seed)).verdict()["verdict"] == "contradicted" for seed in range(1, 13))
    assert wrong <= 1


# The parts


def test_what_counts_is_what_the_model_did() -> None:
    scenes, _ = scenes_of(Mind(knows=0.8))
    found = shown(scenes, "deception", DRAW)
    assert found.way == "cloze" and not found.reason
    part = scenes[scenes["way"] == "cloze"]
    rewarded, twin = (part[part["rewarded"] == side].set_index("pair") for side in (True, False))
    expected = {
        pair
        for pair in rewarded.index
        if rewarded["check"][pair] == 1 and rewarded["shown"][pair] == 1 and twin["shown"][pair] == 0
    }
    assert set(found.counted["pair"]) == expected and len(found.counted) == 2 * len(expected)
    assert found.rewarded.value - found.twin.value == pytest.approx(found.difference.value)
    lost = scenes.assign(shown=scenes["shown"].where(scenes["pair"] != min(expected)))
    assert min(expected) not in set(shown(lost, "deception", DRAW).counted["pair"])


def test_both_checks_of_a_pair_must_be_passed() -> None:
    scenes, _ = scenes_of(Mind(knows=1.0))
    twins = scenes["rewarded"].eq(False) & scenes["way"].eq("cloze")
    failed = scenes.assign(check=scenes["check"].where(~twins, (scenes["pair"] % 3 != 0).astype(float)))
    found = shown(failed, "deception", DRAW)
    assert (
        not (found.counted["pair"] % 3 == 0).any() and found.passed == (scenes["pair"].drop_duplicates() % 3 != 0).sum()
    )


def test_nothing_of_the_report_half_is_fitted(missed: World) -> None:
    """Other activations on the report half change no value on the select half, and no choice."""
    scenes, acts = scenes_of(Mind())
    report = set(scenes.loc[scenes["half"] == "report", "activations"])
    other = {name: value if name not in report else -value + 1 for name, value in acts.items()}
    changed = monitor_rows(scenes, other.__getitem__, trait_vectors(), DRAW)
    keys = ["monitor", "sample_id"]
    kept = [
        frame[frame["half"] == "select"].set_index(keys)[["value", "layer", "detail"]]
        for frame in (missed.samples.monitors, changed)
    ]
    pd.testing.assert_frame_equal(kept[0], kept[1])


def test_frames_and_areas(missed: World) -> None:
    frame = missed.samples.monitors
    assert tuple(frame.columns) == MONITORS and frame["value"].notna().all()
    names = set(frame["monitor"])
    assert {f"{name}:{k}" for name in RANDOM_OF.values() for k in range(RANDOM_SETS)} < names
    found = compare(frame, "deception", DRAW)
    sets = [found.areas[f"{RANDOM_OF[BEST]}:{k}"].value for k in range(RANDOM_SETS)]
    assert found.random[BEST].value == pytest.approx(np.mean(sets))
    # A random direction is one of many: the control's interval is wider than any single one's would be on average.
    widths = [found.areas[f"{RANDOM_OF[BEST]}:{k}"] for k in range(RANDOM_SETS)]
    assert found.random[BEST].high - found.random[BEST].low > np.mean([area.high - area.low for area in widths])
    values, label = np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0]]), np.array([0.0, 1.0, 0.0, 1.0])
    assert auroc(values, label) == pytest.approx([0.75, 0.5])


def test_the_same_frames_give_the_same_tables(missed: World) -> None:
    again = build_tables(missed.samples, resamples=FAST)
    for name in ("behaviours", "limits"):
        pd.testing.assert_frame_equal(again[name], missed.tables[name])


def test_tables_figures_and_report_go_through_files(missed: World, tmp_path: Path) -> None:
    write_tables(missed.tables, tmp_path)
    tables = read_tables(tmp_path)
    for name in ("behaviours", "limits"):
        assert len(tables[name]) == len(missed.tables[name]) > 0
    caption = Caption("tiny", "quick", "none", "2026")
    drawn = draw_all({**tables, "claims": missed.claims}, tmp_path / "figures", caption)
    assert {"behaviours", "limits"} <= {path.stem for path in drawn}
    figures = dict(limits_figures(tables, caption))
    labels = [text.get_text() for text in figures["limits"].axes[0].get_yticklabels()]
    assert labels[0] == PROBE and labels.index(DEDICATED) < labels.index(BEST) < labels.index("text:tfidf")
    report = make_report({"model": "tiny", "traits": ["evil"]}, tables, missed.claims, drawn)
    (found,) = [item for item in report.rows if item.id == N1]
    assert found.figure == "limits" and "stated_limits" in found.command
    assert {BEST, DEDICATED, "random best"} <= set(found.controls["monitor"])
    # Where nothing could be tested, there are the rates.
    absent = world(Mind(yields=0.1)).tables
    assert list(dict(limits_figures(absent, caption))) == ["behaviours"]
