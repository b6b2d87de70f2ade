"""The cells of a sweep: what each asks the engine for, its dose, its control, and that trait_steering runs them all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inspect_ai.model import get_model

from persona_bench.analysis.samples.collect import collect
from persona_bench.analysis.tables.build import build_tables
from persona_bench.definitions.presets import PRESETS, SETTINGS, Preset, load_preset
from persona_bench.definitions.traits import Trait, load_trait
from persona_bench.errors import RunError, TraitError, VectorError
from persona_bench.inspect_ext.cells import FEW_SHOTS, UNSTEERED, Cell, VectorFile, plan, preset_plan, sweep
from persona_bench.models.steering import Intervention
from persona_bench.vectors.vector import PersonaVector
from tests import test_evals
from tests.conftest import one_line, tiny_vector
from tests.test_evals import ROOT, run

LAYERS, DOSES = (1, 3, 4), (-0.4, 0.2)
EVIL = load_trait("evil")
ALL = {"settings": SETTINGS, "controlled": SETTINGS, "trait": EVIL}


def with_reference() -> PersonaVector:
    return tiny_vector(negative_mean=torch.randn(5, 32, generator=torch.Generator().manual_seed(8)))


@pytest.fixture
def file(tmp_path: Path) -> VectorFile:
    made = with_reference()
    made.save(tmp_path / "evil.safetensors")
    return VectorFile(tmp_path / "evil.safetensors", made)


def swept(file: VectorFile) -> list[Cell]:
    return sweep(file, LAYERS, DOSES, 2, **ALL)


def find(cells: list[Cell], vector: str, setting: str, dose: float | None = None) -> list[Cell]:
    found = [cell for cell in cells if (cell.vector, cell.setting) == (vector, setting)]
    return found if dose is None else [cell for cell in found if cell.relative_dose == dose]


def test_every_setting_has_its_cells_and_controls(file: VectorFile) -> None:
    cells = swept(file)
    assert cells[0] == UNSTEERED and len({cell.id for cell in cells}) == len(cells)
    counts = {(c.vector, c.setting): 0 for c in cells}
    for cell in cells:
        counts[cell.vector, cell.setting] += 1
    assert counts == {
        ("none", "none"): 1,
        ("persona", "single"): 3 * 2,
        ("random", "single"): 2 * 2,
        ("persona", "multi"): 2,
        ("random", "multi"): 2 * 2,
        ("persona", "incremental"): 2,
        ("random", "incremental"): 2 * 2,
        ("persona", "cap"): 2,
        ("random", "cap"): 2 * 2,
        ("persona", "ablate"): 2,
        ("random", "ablate"): 2 * 2,
        ("prompt", "system_prompt"): 1,
        ("prompt", "few_shot"): 1,
    }
    for control in (cell for cell in cells if cell.vector == "random"):
        same = [c for c in find(cells, "persona", control.setting) if c.layers == control.layers]
        assert any(c.relative_dose == control.relative_dose and c.coefficient == control.coefficient for c in same)


def test_whatever_dose_is_chosen_has_its_random_vectors() -> None:
    for sizes in PRESETS.values():
        cells = plan(sizes.layers(30), sizes.doses, sizes.random_vectors)
        for dose in sizes.doses:
            assert len(find(cells, "random", "single", dose)) == sizes.random_vectors


def test_ids_of_single_cells_are_as_they_were(file: VectorFile) -> None:
    """Texts hang on ids, which seed them."""
    assert [cell.id for cell in sweep(file, (3,), (-0.4, 0.2), 1)] == [
        *("none", "persona-l3-d-0.4", "persona-l3-d+0.2", "random:0-l3-d-0.4", "random:0-l3-d+0.2")
    ]


def test_the_quick_preset_has_two_cells_more() -> None:
    sizes = load_preset("quick")
    layers = sizes.layers(30)
    cells = plan(layers, sizes.doses, sizes.random_vectors, **preset_plan(sizes, EVIL, 30, layers))
    single = plan(layers, sizes.doses, sizes.random_vectors)
    assert [cell for cell in cells if cell not in single] == [
        Cell("persona", "persona", "ablate", (layers[1],), relative_dose=None),
        Cell("prompt", "none", "system_prompt", before=(("system", (EVIL.ladder or ("",))[0]),)),
    ]
    assert all(set(SETTINGS) == set(PRESETS[name].settings) for name in ("standard", "paper"))


def test_a_preset_may_steer_other_traits_than_the_main_ones_in_fewer_ways() -> None:
    sizes = load_preset("standard")
    layers = sizes.layers(30)

    def settings(trait: Trait, preset: Preset, given: str = "") -> set[str]:
        how = preset_plan(preset, trait, 30, layers, given)
        return {cell.setting for cell in plan(layers, preset.doses, preset.random_vectors, **how)}

    other = load_trait("optimistic")
    assert settings(EVIL, sizes) == set(SETTINGS)
    assert settings(other, sizes) == {"single", "system_prompt"} and settings(other, sizes, "multi") == {"multi"}
    assert settings(other, load_preset("paper")) == set(SETTINGS) - {"few_shot"}  # it has no examples


def interventions(folder: Path, file: VectorFile, cell: Cell) -> list[Intervention]:
    """What the engine will do for a cell."""
    api: Any = get_model(f"persona/{folder}", dtype="float32").api
    return [item for request in cell.extra(file).apply_steering_vectors for item in api._interventions(request)]


def test_doses_are_those_of_what_is_added(folder: Path, file: VectorFile) -> None:
    cells, vector = swept(file), file.vector
    for vector_name in ("persona", "random"):
        for dose in DOSES:
            for cell in find(cells, vector_name, "multi", dose):
                added = interventions(folder, file, cell)
                assert [item.layer for item in added] == list(LAYERS)
                shares = [
                    np.sign(item.coefficient) * float((item.coefficient * item.vector).norm()) / float(norm)
                    for item, norm in zip(added, vector.residual_norms[list(LAYERS)], strict=True)
                ]
                assert shares == pytest.approx([dose / 3] * 3)
                assert cell.coefficient == pytest.approx(np.mean([item.coefficient for item in added]))
    for cell in find(cells, "persona", "incremental"):
        added = interventions(folder, file, cell)
        total = sum((item.coefficient * item.vector for item in added), torch.zeros(32))
        torch.testing.assert_close(total, cell.coefficient * vector.directions["persona"][LAYERS[-1]])
        dose = float(total.norm() / vector.residual_norms[LAYERS[-1]])
        assert dose == pytest.approx(abs(cell.relative_dose or 0))


@pytest.mark.parametrize("setting", ["single", "multi", "incremental"])
def test_a_control_is_as_long_at_every_layer(folder: Path, file: VectorFile, setting: str) -> None:
    cells = swept(file)
    for control in find(cells, "random", setting):
        (own,) = [c for c in find(cells, "persona", setting, control.relative_dose) if c.layers == control.layers]
        pairs = zip(interventions(folder, file, own), interventions(folder, file, control), strict=True)
        for ours, theirs in pairs:
            assert ours.layer == theirs.layer and ours.operation == theirs.operation == "add"
            lengths = [float((item.coefficient * item.vector).norm()) for item in (ours, theirs)]
            assert lengths[0] == pytest.approx(lengths[1], rel=1e-4)
            cosine = torch.nn.functional.cosine_similarity(ours.vector, theirs.vector, dim=0)
            assert abs(float(cosine)) < 0.7


def test_caps_lie_at_the_mean_negative_response_and_ablation_has_no_dose(folder: Path, file: VectorFile) -> None:
    cells = swept(file)
    assert file.vector.negative_mean is not None
    for vector in ("persona", "random"):
        for cell in find(cells, vector, "cap"):
            for item in interventions(folder, file, cell):
                unit = item.vector / item.vector.norm()
                assert item.operation == "cap"
                assert item.coefficient == pytest.approx(float(file.vector.negative_mean[item.layer] @ unit), rel=1e-4)
        clamps = find(cells, vector, "cap") + find(cells, vector, "ablate")
        assert {cell.layers for cell in clamps} == {(3,), LAYERS}
        assert all(cell.relative_dose is None and cell.metadata()["coefficient"] == 0 for cell in clamps)
    assert {item.operation for item in interventions(folder, file, find(cells, "persona", "ablate")[1])} == {"ablate"}


def test_words_stand_before_the_question(file: VectorFile) -> None:
    cells = swept(file)
    (told,), (shown,) = find(cells, "prompt", "system_prompt"), find(cells, "prompt", "few_shot")
    assert EVIL.ladder and EVIL.shots
    assert told.metadata()["before"] == [["system", EVIL.ladder[0]]]
    turns = shown.metadata()["before"]
    assert [role for role, _ in turns] == ["user", "assistant"] * FEW_SHOTS
    assert turns[1] == ["assistant", EVIL.shots.negative[0].answer]
    assert not told.extra(file).apply_steering_vectors and (told.layer, told.metadata()["layers"]) == (0, "")
    assert find(cells, "persona", "multi")[0].metadata()["layers"] == "1,3,4"
    bare = EVIL.model_copy(update={"ladder": None, "shots": None})
    sizes = load_preset("standard")
    (only,) = [c for c in plan(LAYERS, DOSES, 1, **preset_plan(sizes, bare, 4, LAYERS)) if c.vector == "prompt"]
    assert only.before == (("system", bare.system_prompt("negative", 0)),)


def test_what_cannot_be_run_is_refused(file: VectorFile, tmp_path: Path) -> None:
    sizes = load_preset("quick")
    with pytest.raises(RunError) as unknown:
        preset_plan(sizes, EVIL, 4, LAYERS, "single,twice")
    one_line(unknown, "twice", "incremental")
    with pytest.raises(TraitError) as silent:
        preset_plan(sizes, EVIL.model_copy(update={"shots": None}), 4, LAYERS, "few_shot")
    one_line(silent, "shots", "few_shot")
    old = tmp_path / "old.safetensors"
    tiny_vector().save(old)
    loaded = PersonaVector.load(old)
    assert loaded.negative_mean is None and PersonaVector.load(file.path).hash == file.vector.hash != loaded.hash
    assert sweep(VectorFile(old, loaded), LAYERS, DOSES, 1)
    with pytest.raises(VectorError) as error:
        sweep(VectorFile(old, loaded), LAYERS, DOSES, 1, settings=("cap",))
    one_line(error, "persona-bench extract", "settings")


def test_trait_steering_runs_every_setting(
    folder: Path, file: VectorFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    cells = sweep(file, (1, 3), (-0.4,), 1, **ALL)
    short = dataclasses.replace(load_preset("quick"), steering_rollouts=1, max_tokens=8)
    monkeypatch.setitem(PRESETS, "quick", short)
    monkeypatch.setitem(test_evals.LIMITS, "trait_steering", 2 * len(cells))
    log = run(
        *("trait_steering", folder, tmp_path / "logs"),
        vector=str(file.path),
        layers="1,3",
        doses="-0.4",
        settings=",".join(SETTINGS),
    )
    frame = collect({"trait_steering/evil": log}, [], "stated").steering
    assert set(frame["setting"]) == {"none", *SETTINGS} and len(frame) == 2 * len(cells)
    assert (frame["relative_dose"].isna() == frame["setting"].isin(["cap", "ablate"])).all()
    assert set(frame["layers"]) == {"", "1", "3", "1,3"}
    table = build_tables(collect({"trait_steering/evil": log}, [], "stated"), resamples=10)["steering"]
    assert len(table[table["half"] == "report"]) == len({(c.vector, c.setting, c.layers) for c in cells})
    asked = {sample.id: sample for sample in log.samples or []}
    assert len({sample.output.completion for sample in asked.values()}) > len(cells)
    shown = asked["q0-few_shot"].input
    assert not isinstance(shown, str) and [m.role for m in shown] == ["user", "assistant"] * FEW_SHOTS + ["user"]
    assert shown[-1].text == EVIL.evaluation_questions[0]
    for sample in asked.values():
        config = next(event.config for event in sample.events if event.event == "model")
        sent = ((config.extra_body or {}).get("extra_args") or {}).get("apply_steering_vectors", [])
        (cell,) = [c for c in cells if f"q{sample.metadata['question_id']}-{c.id}" == sample.id]
        assert len(sent) == len(cell.extra(file).apply_steering_vectors)
