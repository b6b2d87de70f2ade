"""Other projects' vector files, written here as those projects write them: each layer lands where it belongs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from persona_bench.cli import main
from persona_bench.errors import PersonaBenchError, VectorError
from persona_bench.vectors.formats.convert import WRITERS, Request, convert
from persona_bench.vectors.vector import PersonaVector
from tests.conftest import one_line, tiny_vector

N, D = 4, 32
# Row l is l + 1 everywhere but for one sign: a layer off by one, or a row turned, shows.
LAYERS = torch.arange(1.0, N + 2).unsqueeze(1).repeat(1, D) * torch.cat([torch.ones(D - 1), -torch.ones(1)])


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def imported(source: Path, **asked: Any) -> PersonaVector:
    target = source.parent / "out.safetensors"
    convert(Request(source, target, **asked))
    return PersonaVector.load(target)


def refused(source: Path, *parts: str, name: str = "out.safetensors", **asked: Any) -> None:
    """The conversion ends in one line that names the file and holds every part, and writes nothing."""
    before = set(source.parent.iterdir())
    with pytest.raises(PersonaBenchError) as error:
        convert(Request(source, source.parent / name, **asked))
    one_line(error, str(source), *parts)
    assert set(source.parent.iterdir()) == before


def write_gguf(path: Path, rows: dict[int, torch.Tensor], architecture: str = "controlvector", **fields: Any) -> Path:
    """As repeng and llama.cpp write them: block -> direction."""
    writer = gguf.GGUFWriter(str(path), architecture)
    for name, value in fields.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(name.replace("__", "."), value)
    for block, row in rows.items():
        writer.add_tensor(f"direction.{block}", row.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


BLOCKS = {block: LAYERS[block + 1] for block in range(N)}
REPENG = {"controlvector__model_hint": "llama", "controlvector__layer_count": N}
STEERKIT = {"model__id": "some/model", "hook_site": "resid_post", "n_total_layers": N, "source__layer": 2}
GLP = {"glp__mode": "add", "glp__hook_point": "residual_stream_post_layer"}


def official(folder: Path, name: str = "evil_response_avg_diff.pt") -> Path:
    torch.save(LAYERS, folder / name)
    return folder / name


def hidden_directions(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    torch.save(LAYERS[1:].to(dtype), folder / "v_evil.pt")
    entry = {"name": "v_evil", "shape": [N, D], "dtype": "torch.bfloat16", "recommended_layer": 2}
    (folder / "manifest.json").write_text(json.dumps({"model": "some/model", "directions": [entry]}))
    return folder / "v_evil.pt"


def profile(folder: Path, version: int = 6) -> Path:
    save_file({f"layer_{block}": row.clone() for block, row in BLOCKS.items()}, folder / "evil.safetensors")
    (folder / "evil.json").write_text(json.dumps({"format_version": version, "method": "pca"}))
    return folder / "evil.safetensors"


def axis(folder: Path) -> Path:
    torch.save({"axis": LAYERS[1:].clone(), "metadata": {"model": "some/model"}}, folder / "axis.pt")
    return folder / "axis.pt"


def darkfield(folder: Path, layer: int = 3) -> Path:
    held = {"name": "evil", "vector": LAYERS[layer] / LAYERS[layer].norm(), "layer": layer, "model": "some/model"}
    torch.save({**held, "hidden_dim": D, "metadata": {}}, folder / "dark.pt")
    return folder / "dark.pt"


# In


def test_the_papers_file(tmp_path: Path) -> None:
    made = imported(official(tmp_path), n_layers=N)
    assert made.trait == "evil" and torch.equal(made.directions["persona"], LAYERS)
    assert f"layer {N}" in made.provenance["warning"] and "final norm" in made.provenance["warning"]
    held = made.provenance["imported"]
    assert held["format"] == "official" and held["said"] == {"position": "response_avg"} and len(held["sha256"]) == 64
    # Who says whose file it is need not know the model.
    assert torch.equal(imported(official(tmp_path), source_format="official").directions["persona"], LAYERS)


@pytest.mark.parametrize(("n_layers", "first", "name"), [(N, 0, "official"), (N + 1, 1, "hidden-directions")])
def test_a_bare_matrix_is_told_apart_by_the_models_layers(tmp_path: Path, n_layers: int, first: int, name: str) -> None:
    path = official(tmp_path, "v.pt")
    refused(path, "how many decoder blocks", "--model", f"--n-layers {N}", f"--n-layers {N + 1}")
    refused(path, "9", "made from", n_layers=9)
    made = imported(path, n_layers=n_layers)
    assert made.provenance["imported"]["format"] == name
    for row in range(N + 1):
        assert torch.equal(made.directions["persona"][first + row], LAYERS[row])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hidden_directions(tmp_path: Path, dtype: torch.dtype) -> None:
    path = hidden_directions(tmp_path, dtype)
    made = imported(path)
    assert torch.equal(made.directions["persona"][1:], LAYERS[1:]) and not made.directions["persona"][0].any()
    assert made.provenance["imported"]["said"]["recommended_layer"] == 2
    refused(path, "hidden-directions", n_layers=N - 1)
    (tmp_path / "manifest.json").write_text(json.dumps({"directions": [{"name": "v_evil", "shape": [9, D]}]}))
    refused(path, "manifest.json", "[9, 32]")
    (tmp_path / "manifest.json").unlink()
    refused(path, "how many decoder blocks")


@pytest.mark.parametrize(
    ("fields", "name"), [(REPENG, "repeng"), (STEERKIT, "steerkit"), ({**REPENG, **GLP}, "glp"), ({}, "repeng")]
)
def test_control_vectors(tmp_path: Path, fields: dict[str, Any], name: str) -> None:
    rows = {block: row for block, row in BLOCKS.items() if block or name != "glp"}
    made = imported(write_gguf(tmp_path / "evil.gguf", rows, **fields))
    assert made.provenance["imported"]["format"] == name and made.n_layers == N and made.trait == "evil"
    for layer in range(1, N + 1):
        expected = LAYERS[layer] if layer - 1 in rows else torch.zeros(D)
        assert torch.equal(made.directions["persona"][layer], expected)
    assert ("steerkit" in made.provenance["warning"]) == (name == "steerkit")
    assert made.provenance["imported"]["layers_absent"] == ([1] if name == "glp" else [])


def test_some_layers_alone_do_not_tell_how_many_there_are(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "evil.gguf", {2: BLOCKS[2]}, **REPENG)
    refused(path, "layer 3 alone", "how many decoder blocks", "--model")
    made = imported(path, n_layers=N)
    assert torch.equal(made.directions["persona"][3], LAYERS[3]) and made.directions["persona"].count_nonzero() == D
    refused(path, "layer 3", "1..2", n_layers=2)
    assert imported(write_gguf(tmp_path / "s.gguf", {2: BLOCKS[2]}, **STEERKIT)).n_layers == N


@pytest.mark.parametrize(
    ("rows", "fields", "part"),
    [
        (BLOCKS, {**REPENG, **GLP}, "direction.0"),
        ({1: BLOCKS[1]}, {**GLP, "glp__mode": "project"}, "glp.mode"),
        ({1: BLOCKS[1]}, {**GLP, "glp__hook_point": "ffn_out_pre_residual"}, "glp.hook_point"),
        (BLOCKS, {**STEERKIT, "hook_site": "mlp_out"}, "hook_site"),
        ({N: BLOCKS[1], 0: BLOCKS[0]}, STEERKIT, "layer 5"),
        ({-1: BLOCKS[1]}, STEERKIT, "no block"),
        ({0: BLOCKS[0], 1: BLOCKS[1][:4]}, REPENG, "widths"),
        ({0: torch.zeros(D), 1: torch.zeros(D)}, REPENG, "zero at every layer"),
        ({0: torch.full((D,), torch.nan)}, REPENG, "not finite"),
        ({0: torch.zeros(2, D)}, REPENG, "shape"),
        ({}, REPENG, "no direction.N"),
    ],
)
def test_control_vectors_that_are_none_are_refused(
    tmp_path: Path, rows: dict[int, torch.Tensor], fields: dict[str, Any], part: str
) -> None:
    refused(write_gguf(tmp_path / "evil.gguf", rows, **fields), part)


def test_a_gguf_of_another_kind_asks_who_wrote_it(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "evil.gguf", BLOCKS, "llama")
    refused(path, "'llama'", "--from repeng")
    assert torch.equal(imported(path, source_format="repeng").directions["persona"][1:], LAYERS[1:])
    refused(path, "a gguf file, which official does not write", source_format="official")


def test_saklas(tmp_path: Path) -> None:
    made = imported(profile(tmp_path))
    assert torch.equal(made.directions["persona"][1:], LAYERS[1:])
    assert "share" in made.provenance["warning"]
    said = convert(Request(tmp_path / "evil.safetensors", tmp_path / "out.safetensors")).warnings
    assert any(f"taken to have {N} layers" in item for item in said)
    refused(profile(tmp_path, 5), "format_version 5", "--from saklas")
    assert imported(profile(tmp_path, 5), source_format="saklas").n_layers == N
    (tmp_path / "evil.json").unlink()
    refused(tmp_path / "evil.safetensors", "no evil.json", "--from saklas")


def test_the_assistant_axis_asks_which_way_it_points(tmp_path: Path) -> None:
    path = axis(tmp_path)
    refused(path, "towards the Assistant", "--sign keep", "--sign flip")
    assert torch.equal(imported(path, sign="keep").directions["persona"][1:], LAYERS[1:])
    assert torch.equal(imported(path, sign="flip").directions["persona"][1:], -LAYERS[1:])


def test_darkfield(tmp_path: Path) -> None:
    path = darkfield(tmp_path)
    refused(path, "layer 3 alone", "--n-layers")
    made = imported(path, n_layers=N)
    assert torch.equal(made.directions["persona"][3], LAYERS[3] / LAYERS[3].norm()) and made.trait == "evil"
    assert "final norm" not in made.provenance["warning"]
    assert "final norm" in imported(darkfield(tmp_path, N), n_layers=N).provenance["warning"]
    refused(darkfield(tmp_path, 0), "from 1", n_layers=N)


def test_one_direction_asks_for_its_layer(tmp_path: Path) -> None:
    path = tmp_path / "v.pt"
    torch.save(LAYERS[2].clone(), path)
    refused(path, "how many blocks", "--layer")
    refused(path, "layer 9", n_layers=N, layer=9)
    made = imported(path, n_layers=N, layer=2)
    assert torch.equal(made.directions["persona"][2], LAYERS[2]) and not made.directions["persona"][[0, 1, 3, 4]].any()


# Out, and in again


@pytest.mark.parametrize("name", WRITERS)
def test_round_trip(tmp_path: Path, name: str) -> None:
    """What the format can hold comes back bit for bit; what it cannot is said."""
    ours, there, back = tmp_path / "v.safetensors", tmp_path / f"o{WRITERS[name][0]}", tmp_path / "b.safetensors"
    generator = torch.Generator().manual_seed(1)
    made = tiny_vector(directions={"persona": torch.randn(N + 1, D, generator=generator), "refusal": LAYERS.clone()})
    made.save(ours)
    asked: dict[str, Any] = {"layer": 3} if name == "darkfield" else {}
    sign = {"sign": "flip"} if name == "assistant-axis" else {}
    done = convert(Request(ours, there, target_format=name, **asked, **sign))
    lost = " ".join(done.warnings)
    assert "refusal" in lost and "residual norms" in lost and "negative" not in lost
    convert(Request(there, back, n_layers=N, **sign))
    first = {"official": 0, "llama.cpp": 2, "glp": 2}.get(name, 1)
    assert ("layer 1 (block 0" in lost) == (first == 2) and ("embedding" in lost) == (first > 0 and name != "darkfield")
    read, expected = PersonaVector.load(back).directions["persona"], made.directions["persona"].clone()
    if name == "darkfield":
        expected = torch.zeros_like(expected).index_copy(0, torch.tensor([3]), expected[3:4] / expected[3].norm())
        assert "length" in lost and "every other layer" in lost
    expected[:first] = 0
    assert torch.equal(read, expected)


def test_what_is_exported_is_what_the_others_read(tmp_path: Path) -> None:
    source, ours = official(tmp_path), tmp_path / "v.safetensors"
    convert(Request(source, ours, n_layers=N))
    convert(Request(ours, tmp_path / "out.gguf"))
    read = gguf.GGUFReader(tmp_path / "out.gguf")
    assert read.get_field("controlvector.layer_count").contents() == N
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in read.tensors}
    assert sorted(tensors) == [f"direction.{block}" for block in range(N)]
    assert torch.equal(tensors["direction.2"], LAYERS[3])
    convert(Request(ours, tmp_path / "out.pt"))
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), LAYERS)
    convert(Request(ours, tmp_path / "p.safetensors", target_format="saklas"))
    assert torch.equal(load_file(tmp_path / "p.safetensors")["layer_2"], LAYERS[3])
    assert json.loads((tmp_path / "p.json").read_text())["format_version"] == 6
    # Straight from one project to another, one layer of it.
    convert(Request(source, tmp_path / "one.gguf", n_layers=N, layer=3, target_format="llama.cpp"))
    (tensor,) = gguf.GGUFReader(tmp_path / "one.gguf").tensors
    assert tensor.name == "direction.2" and torch.equal(torch.tensor(tensor.data), LAYERS[3])


def test_a_manifest_keeps_its_other_entries(tmp_path: Path) -> None:
    path, ours = hidden_directions(tmp_path), tmp_path / "v.safetensors"
    convert(Request(path, ours))
    convert(Request(ours, tmp_path / "second.pt", target_format="hidden-directions"))
    held = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["name"] for entry in held["directions"]] == ["v_evil", "second"]
    assert torch.equal(imported(tmp_path / "second.pt").directions["persona"][1:], LAYERS[1:])
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(VectorError) as error:
        convert(Request(ours, tmp_path / "third.pt", target_format="hidden-directions"))
    one_line(error, "manifest.json")
    assert not (tmp_path / "third.pt").exists()


# The command


def test_an_import_for_a_model_can_be_checked_and_steered_with(folder: Path, tmp_path: Path) -> None:
    """With its model at hand an import gets residual norms and a refusal direction; of another model it is refused."""
    source, target = official(tmp_path), tmp_path / "v.safetensors"
    done = invoke(source, target, "--model", folder)
    assert done.exit_code == 0, done.output
    made = PersonaVector.load(target)
    assert made.residual_norms is not None and set(made.directions) == {"persona", "refusal"}
    assert made.coefficient(2, made.relative_dose(2, 1.5)) == pytest.approx(1.5)
    assert made.provenance["weights_hash"] and "final norm" in done.stderr
    plain = invoke(source, target, "--model", folder, "--no-norms")
    assert plain.exit_code == 0 and "--model" in plain.stderr and PersonaVector.load(target).residual_norms is None
    torch.save(torch.ones(7, D), source)
    assert invoke(source, tmp_path / "w.safetensors", "--model", folder).exit_code == 2
    torch.save(torch.ones(N + 1, D + 1), source)
    done = invoke(source, tmp_path / "w.safetensors", "--model", folder)
    assert done.exit_code == 2 and "width 33" in done.stderr and not (tmp_path / "w.safetensors").exists()


def test_a_vector_without_norms_says_where_they_come_from(tmp_path: Path) -> None:
    made = imported(official(tmp_path), n_layers=N)
    with pytest.raises(VectorError) as error:
        made.coefficient(2, 0.5)
    one_line(error, "persona-bench convert", "--model")


@pytest.mark.parametrize(
    ("name", "asked", "part"),
    [
        ("out.txt", {}, ".gguf"),
        ("out.pt", {"target_format": "repeng"}, ".gguf"),
        ("out.pt", {"target_format": "numpy"}, "official"),
        ("out.gguf", {"sign": "up"}, "flip"),
        ("out.gguf", {"trait": "../etc"}, "letters"),
        ("out.pt", {"target_format": "darkfield"}, "--layer"),
        ("out.pt", {"target_format": "assistant-axis"}, "--sign"),
        ("out.pt", {"layer": 2}, "darkfield"),
        ("out.gguf", {"layer": 9}, "1..4"),
        ("out.gguf", {"layer": 1, "target_format": "llama.cpp"}, "2..4"),
        ("out.gguf", {"direction": "mood"}, "persona"),
        ("out.gguf", {"n_layers": 9}, "4 layers"),
        ("out.safetensors", {}, "ours already"),
        ("v.safetensors", {}, "both input and output"),
        ("", {}, "folder"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, asked: dict[str, Any], part: str) -> None:
    tiny_vector().save(tmp_path / "v.safetensors")
    with pytest.raises(PersonaBenchError) as error:
        convert(Request(tmp_path / "v.safetensors", tmp_path / name, **asked))
    one_line(error, part)
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]


def test_other_commands_name_the_way_in(tmp_path: Path) -> None:
    for path in (official(tmp_path), write_gguf(tmp_path / "e.gguf", BLOCKS, **REPENG), profile(tmp_path)):
        for command in (("check",), ("project", "--input", "x", "--out", "y.csv", "--vector")):
            done = CliRunner().invoke(main, [*command, str(path)])
            assert done.exit_code == 2 and f"persona-bench convert {path}" in done.stderr, done.output
            assert len(done.stderr.strip().splitlines()) == 1
