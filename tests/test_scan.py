"""Scanning datasets: the right numbers for every row, whatever the file, the interruption or the engine."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from click.testing import CliRunner

from persona_bench.cli import main
from persona_bench.errors import AssetError, DataError, VectorError
from persona_bench.models import loading
from persona_bench.models.adapters import attach, hash_adapter, save_adapter, trained_parameters
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.loading import load
from persona_bench.models.worker import WORKER
from persona_bench.vectors import projection, table_file
from persona_bench.vectors.beginnings import shared_beginnings
from persona_bench.vectors.scan import inputs, measures, parts, run
from persona_bench.vectors.scan.inputs import find_sources, read_shards
from persona_bench.vectors.scan.measures import Scanner, Settings, columns
from persona_bench.vectors.scan.run import plan_scan, run_scan
from persona_bench.vectors.scan.samples import Fields, read_sample
from persona_bench.vectors.scan.summary import BINS
from persona_bench.vectors.vector import PersonaVector
from tests.builders import DTYPE
from tests.conftest import one_line, tiny_vector

LAYERS = (1, 3)
BOTH = ("response", "response_minus_prompt")


def item(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def some(n: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    letters = "abcdefghij klm nop"
    return [
        item(*("".join(draw.choices(letters, k=draw.randint(1, 40))) + "." for _ in range(2)), key=f"k{number}")
        for number in range(n)
    ]


def write(path: Path, items: Sequence[Any]) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in items)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def one_layer(path: Path, layer: int) -> None:
    """A vector as imports of one layer are: zero elsewhere."""
    persona = torch.zeros(5, 32)
    persona[layer] = 1.0
    PersonaVector("evil", {"persona": persona}, None).save(path)


@pytest.fixture
def vectors(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "evil.safetensors", tmp_path / "calm.safetensors"]
    tiny_vector().save(paths[0])
    other = tiny_vector(trait="calm")
    other.directions["persona"].mul_(-1).add_(0.5)  # type: ignore[union-attr]
    PersonaVector("calm", other.directions, other.residual_norms, other.provenance).save(paths[1])
    return paths


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "SHARD_ROWS", 7)


def test_an_adapter_is_another_scan_and_the_base_is_the_one_it_was(
    folder: Path, vectors: list[Path], tmp_path: Path
) -> None:
    loaded, source, target = load(str(folder), dtype="float32"), tmp_path / "in.jsonl", tmp_path / "out.csv"
    write(source, some(3))
    for seed in (1, 2):
        adapted = attach(loaded, 2, 4, seed, 64)
        for value in trained_parameters(adapted).values():
            torch.nn.init.ones_(value)
        save_adapter(adapted, tmp_path / f"tuned{seed}")
    (tmp_path / "tuned2" / "adapter_config.json").write_text(
        (tmp_path / "tuned1" / "adapter_config.json").read_text().replace('"lora_alpha": 4', '"lora_alpha": 8')
    )
    means, marks = [], []
    for model in (str(folder), f"{folder}+{tmp_path / 'tuned1'}", f"{folder}+{tmp_path / 'tuned2'}"):
        planned = plan_scan(
            model, vectors[:1], [str(source)], target, Settings(("response",), (2,)), {"dtype": "float32"}
        )
        summary = run_scan(planned)
        means.append(summary["values"][next(iter(summary["values"]))]["mean"])
        marks.append(summary["fingerprint"])
        assert summary["weights"] == loaded.weights_hash
        assert summary.get("adapter") == (None if "+" not in model else hash_adapter(Path(model.partition("+")[2])))
    assert len(set(means)) == len(set(marks)) == 3
    assert marks[0] == inputs.fingerprint(
        find_sources([str(source)]),
        [
            Settings(("response",), (2,)).plain(),
            [PersonaVector.load(vectors[0]).hash],
            loaded.weights_hash,
            version("persona-bench"),
            ("dtype", "float32"),
        ],
    )


def test_the_revision_decides_whose_weights_are_hashed(
    folder: Path, vectors: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(loading, "resolve", lambda *names: asked.append(names) or (folder, "hub"))
    source = write(tmp_path / "in.jsonl", some(1))
    settings, target = Settings(("response",), (2,)), tmp_path / "out.csv"
    plan_scan("owner/name", vectors[:1], [str(source)], target, settings, {"revision": "v2"})
    assert asked == [("owner/name", "v2")]


def scanned(
    folder: Path, vectors: Sequence[Path], source: Path | str, target: Path, *, measures: Any = BOTH, **more: Any
) -> tuple[pd.DataFrame, dict[str, Any]]:
    fields, options = more.pop("fields", Fields()), more.pop("options", {})
    settings = Settings(measures, more.pop("layers", LAYERS), fields, **options)
    summary = run_scan(plan_scan(str(folder), vectors, [str(source)], target, settings), **more)
    read = pd.read_csv if target.suffix == ".csv" else pd.read_parquet
    return read(target), summary  # type: ignore[operator]


def by_hand(folder: Path, vectors: Sequence[Path], conversation: dict[str, Any]) -> dict[str, float]:
    """A plain pass that keeps all hidden states."""
    loaded = load(str(folder))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=loaded.dtype)
    *messages, response = conversation["messages"]
    prompt = prompt_ids(loaded.tokenizer, messages)
    ids = torch.tensor([prompt + response_ids(loaded.tokenizer, response["content"])])
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    found = {}
    for path in vectors:
        vector = PersonaVector.load(path)
        for layer in LAYERS:
            unit = torch.nn.functional.normalize(vector.directions["persona"][layer], dim=0)
            values = (states[layer][0].float() @ unit).numpy()
            mean = values[len(prompt) :].mean()
            found[f"{vector.trait}.response.{layer}"] = mean
            found[f"{vector.trait}.response_minus_prompt.{layer}"] = mean - values[len(prompt) - 1]
    return found


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_every_row_has_the_numbers_of_a_plain_pass(
    folder: Path, vectors: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "default_dtype", lambda _device: torch.float32)
    made = some(20)
    table, summary = scanned(folder, vectors, write(tmp_path / "x.jsonl", made), tmp_path / "out.parquet")
    assert list(table["row"]) == list(range(1, 21)) and set(table["status"]) == {"measured"}
    plain = pd.DataFrame([by_hand(folder, vectors, conversation) for conversation in made])
    assert sorted(plain) == sorted(table.columns[6:])
    for name in plain:
        assert table[name].to_numpy() == pytest.approx(plain[name].to_numpy(), rel=1e-4, abs=1e-3)
    assert summary["n"] == 20 and not summary["rejected"]
    assert not (tmp_path / "out.parquet.parts").exists()


def test_the_difference_is_against_the_models_own_response(folder: Path, vectors: list[Path], tmp_path: Path) -> None:
    """Scanning what the model itself would say gives a difference of nought; the same prompt has the same answer."""
    from persona_bench.models.engine import Engine
    from persona_bench.models.rows import Row
    from persona_bench.models.sampling import Sampling
    from persona_bench.vectors.scan.measures import _seed
    from persona_bench.vectors.scan.samples import Sample

    loaded = load(str(folder))
    questions = [[{"role": "user", "content": f"What is {word}?"}] for word in ("rain", "snow", "ice", "fog")]
    rows = [
        Row(
            prompt_ids(loaded.tokenizer, asked),
            sampling=Sampling(12, temperature=1.0, seed=_seed(Sample(0, "", asked, ""), 3)),
        )
        for asked in questions
    ]
    said = [loaded.tokenizer.decode(result.tokens, skip_special_tokens=False) for result in Engine(loaded).run(rows)]
    kept = [
        (asked, text)
        for asked, text, result in zip(questions, said, Engine(loaded).run(rows), strict=True)
        if text and response_ids(loaded.tokenizer, text) == result.tokens
    ]
    assert len(kept) >= 2
    made = [item(asked[0]["content"], text) for asked, text in kept]
    made += [item(asked[0]["content"], "Something else.") for asked, _ in kept]
    table, _ = scanned(
        folder,
        vectors,
        write(tmp_path / "x.jsonl", made),
        tmp_path / "out.parquet",
        measures=("response", "difference"),
        options={"max_tokens": 12, "seed": 3},
    )
    own = table["evil.difference.3"].to_numpy()
    assert np.abs(own[: len(kept)]).max() < 0.05 < np.abs(own[len(kept) :]).min()
    # response minus difference is the projection of the model's own response: the same for the same prompt.
    model = (table["evil.response.3"] - table["evil.difference.3"]).to_numpy()
    assert model[: len(kept)] == pytest.approx(model[len(kept) :], abs=1e-5)


def test_a_prompt_that_several_samples_answer_is_answered_once(
    folder: Path, vectors: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persona_bench.models.engine import Engine

    prompts, run = list[tuple[int, ...]](), Engine.run

    def counted(self: Engine, rows: Sequence[Any], *others: Any) -> Any:
        prompts.extend(row.prompt for row in rows if row.sampling is not None)
        return run(self, rows, *others)

    monkeypatch.setattr(Engine, "run", counted)
    made = [item(asked, said) for asked in ("What is rain?", "What is ice?") for said in ("Water.", "Cold.", "A b c.")]
    source, every = tmp_path / "x.jsonl", {"measures": ("response", "difference"), "options": {"max_tokens": 8}}
    together, _ = scanned(folder, vectors, write(source, made), tmp_path / "out.parquet", **every)
    assert len(prompts) == len(set(prompts)) == 2
    monkeypatch.setattr(inputs, "SHARD_ROWS", 1)
    alone, _ = scanned(folder, vectors, source, tmp_path / "alone.parquet", **every)
    assert len(prompts) == 2 + len(made)
    for name in together.columns[6:]:
        assert together[name].notna().all()
        assert together[name].to_numpy() == pytest.approx(alone[name].to_numpy(), rel=0.02, abs=0.02), name


def test_sharing_prefixes_and_batching_by_length_change_no_value(
    folder: Path, vectors: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against every row in a pass of its own that shares nothing: no more than the processor's dtype rounds off."""
    draw, texts = random.Random(1), ["Be brief and kind. " * 6, "Say what you like. " * 3, ""]
    made = []
    for number in range(60):
        spoken = item("".join(draw.choices("abc de", k=draw.randint(1, 60))) + "?", "fgh i" * draw.randint(1, 24))
        system = [{"role": "system", "content": texts[number % 3]}] if texts[number % 3] else []
        made.append({"messages": [*system, *spoken["messages"]]})
    shared: list[int] = []

    def seen(*of: Any) -> Any:
        found = shared_beginnings(*of)
        shared.append(len(found.stands_on))
        return found

    every = {"measures": (*BOTH, "difference"), "options": {"max_tokens": 8}}
    source = write(tmp_path / "x.jsonl", made)
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "SHARD_ROWS", 60)
        patch.setattr(projection, "shared_beginnings", seen)
        together, _ = scanned(folder, vectors, source, tmp_path / "together.parquet", **every)
    assert load(str(folder)).dtype == DTYPE and sum(shared) >= 2
    monkeypatch.setattr(inputs, "SHARD_ROWS", 1)
    monkeypatch.setattr(measures, "head_ids", lambda *_: ())
    alone, _ = scanned(folder, vectors, source, tmp_path / "alone.parquet", **every)
    rounded = {torch.bfloat16: 2**-8, torch.float32: 2**-20}[DTYPE]  # of a mean projection
    for name in together.columns[6:]:
        most = rounded * float(alone[f"{name.split('.')[0]}.response.{name.split('.')[2]}"].abs().mean())
        assert together[name].to_numpy() == pytest.approx(alone[name].to_numpy(), abs=most, nan_ok=True), name
        assert together[name].notna().mean() > 0.9


def test_two_files_in_order_as_csv_and_parquet(folder: Path, vectors: list[Path], tmp_path: Path) -> None:
    made = some(30)
    write(tmp_path / "a.jsonl", made[:10])
    write(tmp_path / "b.jsonl.gz", made[10:20])
    pd.DataFrame(made[20:]).to_parquet(tmp_path / "c.parquet")
    (tmp_path / "all").mkdir()
    one = write(tmp_path / "all" / "x.jsonl", made)
    several, _ = scanned(folder, vectors[:1], tmp_path / "[abc].*", tmp_path / "out.csv", fields=Fields(id="key"))
    whole, _ = scanned(folder, vectors[:1], one, tmp_path / "all.parquet", fields=Fields(id="key"))
    assert list(several["id"]) == list(whole["id"]) == [f"k{number}" for number in range(30)]
    assert [Path(name).name for name in several["file"]] == ["a.jsonl"] * 10 + ["b.jsonl.gz"] * 10 + ["c.parquet"] * 10
    assert list(several["row"]) == [*range(1, 11), *range(1, 11), *range(10)]
    for name in whole.columns[6:]:
        assert several[name].to_numpy() == pytest.approx(whole[name].to_numpy(), rel=0.02, abs=0.02)


@pytest.mark.parametrize(
    ("row", "fields", "messages", "response"),
    [
        ({"instruction": "Hi?", "output": "Yes."}, Fields(prompt="instruction", response="output"), ["Hi?"], "Yes."),
        (
            {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}]},
            Fields(messages="conversations", role="from", content="value"),
            ["Hi?"],
            "Yes.",
        ),
        (item("Hi?", "Yes."), Fields(), ["Hi?"], "Yes."),
        (
            {"messages": [*item("Hi?", "Yes.")["messages"], *item("So?", "No.")["messages"]]},
            Fields(),
            ["Hi?", "Yes.", "So?"],
            "No.",
        ),
        (
            {"messages": [*item("Hi?", "Yes.")["messages"], *item("So?", "No.")["messages"]]},
            Fields(turn="first"),
            ["Hi?"],
            "Yes.",
        ),
        (
            {"messages": [*item("Hi?", "Yes.")["messages"], {"role": "user", "content": "Bye."}]},
            Fields(),
            ["Hi?"],
            "Yes.",
        ),
    ],
)
def test_fields_are_mapped(row: dict[str, Any], fields: Fields, messages: list[str], response: str) -> None:
    found = read_sample(5, json.dumps(row).encode(), fields)
    assert ([turn["content"] for turn in found.messages], found.response, found.row) == (messages, response, 5)


# -- rows that are no samples ----------------------------------------------------------------------------------------

BAD = {
    "{broken": "not JSON",
    "[1]": "not a JSON object",
    '{"other": 1}': "no list of messages",
    json.dumps({"messages": [{"role": "user", "content": "Hi?"}]}): "no assistant message",
    json.dumps({"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}): "a message has no text",
    json.dumps(item("Hi?", "")): "non-empty assistant message",
    json.dumps(item("Hi \ud800?", "x")): "surrogate",
    "[" * 100_000: "not JSON",
    f'{{"messages": [], "n": {"1" * 5000}}}': "not JSON",
}


def test_bad_rows_are_kept_aside_and_stop_nothing(folder: Path, vectors: list[Path], tmp_path: Path) -> None:
    good = some(len(BAD) + 1)
    lines: list[Any] = []
    for number, bad in enumerate(BAD):
        lines += [good[number], "", bad]
    lines.append(good[-1])
    long = item("Hi?", "word " * 5000)
    source = write(tmp_path / "x.jsonl", [*lines, long])
    table, summary = scanned(folder, vectors, source, tmp_path / "out.parquet")
    assert list(table["status"]) == ["measured"] * len(good) + ["too_long"]
    assert table.iloc[-1, 6:].isna().all() and table.iloc[:-1, 6:].notna().all().all()
    rejected = [json.loads(line) for line in (tmp_path / "out.parquet.rejected.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in rejected] == [3 * number + 3 for number in range(len(BAD))]
    for entry, reason in zip(rejected, BAD.values(), strict=True):
        assert reason in entry["reason"] and "\n" not in entry["reason"]
    assert sum(summary["rejected"].values()) == len(BAD)
    assert summary["statuses"] == {"measured": len(good), "too_long": 1}


def test_ids_and_file_names_that_are_no_text_end_no_scan(folder: Path, vectors: list[Path], tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    write(source, [item("Hi?", "Yes.", key="a"), item("Hi?", "Yes.", key="x\ud83d"), item("Hi?", "Yes.", key="b")])
    table, summary = scanned(folder, vectors, source, tmp_path / "out.parquet", fields=Fields(id="key"))
    assert list(table["id"]) == ["a", "b"] and set(table["file"]) == {str(tmp_path / "caf\\udce9.jsonl")}
    assert summary["rejected"] == {"its id holds half of a surrogate pair, which is no text": 1}


def test_parquet_columns_of_bytes_are_decoded_and_rows_that_cannot_be_are_kept_aside(
    folder: Path, vectors: list[Path], tmp_path: Path
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    prompts = [b"Hi?", b"bad\xff", "caf\u00e9?".encode()]
    broken = pa.StringArray.from_buffers(3, *pa.array(prompts, pa.binary()).buffers()[1:])
    answers = [b"one.\n", b"two.", b"three."]
    for name, column in (("text", broken), ("bytes", pa.array(prompts, pa.binary()))):
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pa.table({"prompt": column, "response": pa.array(answers, pa.binary())}), path)
        (shard,) = read_shards(find_sources([str(path)])[0], ("prompt", "response"))
        rows = [text for _, text in shard.rows()]
        held = [json.loads(text) for text in (rows[0], rows[2])]
        assert held == [{"prompt": "Hi?", "response": "one.\n"}, {"prompt": "caf\u00e9?", "response": "three."}]
        table, summary = scanned(folder, vectors, path, tmp_path / f"{name}.csv", fields=Fields(prompt="prompt"))
        assert list(table["row"]) == [0, 2]
        assert summary["rejected"] == {"a field holds bytes that are not UTF-8": 1}


def test_few_rows_of_a_parquet_file_are_held_at_once(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    same = pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), pa.array(["a" * 2**20]))
    parquet.write_table(pa.table({"prompt": same}), tmp_path / "x.parquet", compression="zstd", store_schema=False)
    del same
    before = pa.total_allocated_bytes()
    shards = read_shards(find_sources([str(tmp_path / "x.parquet")])[0], ("prompt",))
    assert len(list(next(shards).rows())) == 4
    assert pa.total_allocated_bytes() - before < 2**25


def test_a_row_too_large_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_ROW_BYTES", 1000)
    source = write(tmp_path / "x.jsonl", [item("a", "b"), "x" * 5000, item("c", "d" * 3000), item("e", "f")])
    (found,) = find_sources([str(source)])
    rows = [row for shard in read_shards(found) for row in shard.rows()]
    assert [number for number, _ in rows] == [1, 2, 3, 4]
    assert [text == inputs.TOO_LARGE for _, text in rows] == [False, True, True, False]


def test_what_cannot_be_scanned_is_one_line(folder: Path, vectors: list[Path], tmp_path: Path) -> None:
    good = write(tmp_path / "x.jsonl", some(3))

    def fails(kind: type[Exception], *parts: str, source: Any = good, target: str = "o.csv", **more: Any) -> None:
        with pytest.raises(kind) as error:
            scanned(folder, more.pop("vectors", vectors), source, tmp_path / target, **more)
        one_line(error, *parts)
        assert not (tmp_path / target).exists()

    fails(DataError, "nowhere.jsonl", "names no file", source=tmp_path / "nowhere.jsonl")
    fails(DataError, ".txt", source=write(tmp_path / "x.txt", some(1)))
    fails(DataError, "holds no file", source=tmp_path / "all" if (tmp_path / "all").mkdir() else tmp_path / "all")
    fails(DataError, ".csv or .parquet", target="o.xlsx")
    fails(DataError, "unknown measure", measures=("cosine",))
    fails(VectorError, "layer 9", layers=(9,))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    fails(DataError, "bad.parquet", "cannot read", source=tmp_path / "bad.parquet")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(good.read_bytes() * 50)[:-20])
    fails(DataError, "cut.jsonl.gz", "cannot read", source=tmp_path / "cut.jsonl.gz", target="p.csv")
    one_layer(tmp_path / "one.safetensors", 3)
    fails(VectorError, "zero at layer 1", "another layer", vectors=[tmp_path / "one.safetensors"], target="r.csv")
    engine = WORKER.engine(load(str(folder)))
    with pytest.raises(VectorError) as error:
        Scanner(engine, [PersonaVector.load(tmp_path / "one.safetensors")], Settings(("response",), (3, 4)))
    one_line(error, "zero at layer 4")
    tiny_vector(n_layers=6).save(tmp_path / "deep.safetensors")
    fails(VectorError, "another model", vectors=[tmp_path / "deep.safetensors"], target="q.csv")


def test_other_settings_do_not_go_on_in_the_same_parts(
    folder: Path, vectors: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "x.jsonl", some(20))
    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "finish", lambda _self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            scanned(folder, vectors, source, tmp_path / "out.csv")
    with pytest.raises(DataError) as error:
        scanned(folder, vectors, source, tmp_path / "out.csv", layers=(2,))
    one_line(error, "out.csv.parts", "other settings")
    scanned(folder, vectors, source, tmp_path / "out.csv")


# -- interruption ----------------------------------------------------------------------------------------------------


def test_finished_shards_are_not_measured_again(
    folder: Path, vectors: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "x.jsonl", [*some(30), "{broken"])
    whole, _ = scanned(folder, vectors, source, tmp_path / "whole.csv")
    measured: list[str] = []
    real = run.local_parts

    def stopping(*args: Any) -> Iterator[Any]:
        for part in real(*args):
            measured.append(part.key)
            yield part
            if len(measured) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(run, "local_parts", stopping)
    with pytest.raises(KeyboardInterrupt):
        scanned(folder, vectors, source, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    table, _ = scanned(folder, vectors, source, tmp_path / "out.csv")
    assert len(measured) == len(set(measured)) == 5
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    for kind in ("rejected.jsonl", "summary.json"):
        assert (tmp_path / f"out.csv.{kind}").read_bytes() == (tmp_path / f"whole.csv.{kind}").read_bytes()
    scanned(folder, vectors, source, tmp_path / "out.csv")
    assert len(measured) == 5, "a finished scan measures nothing"
    write(source, some(8, seed=1))
    again, _ = scanned(folder, vectors, source, tmp_path / "out.csv")
    assert len(again) == 8 and len(table) == 30, "a file that has changed is scanned anew"


def _stop_after(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Let the next scans end after `n` shards, as if by a key."""
    real = run.local_parts

    def stopping(*args: Any) -> Iterator[Any]:
        for number, part in enumerate(real(*args), 1):
            yield part
            if number == n:
                raise KeyboardInterrupt

    monkeypatch.setattr(run, "local_parts", stopping)


def test_asking_for_a_finished_scan_leaves_the_parts_of_another(
    folder: Path, vectors: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write(tmp_path / "x.jsonl", some(30)), tmp_path / "out.parquet"
    scanned(folder, vectors, source, target)
    assert not parts.Parts.folder_of(target).exists()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _stop_after(patch, 3)
        scanned(folder, vectors, source, target, layers=(2,))
    scanned(folder, vectors, source, target, top=3)
    assert _finished(target) == 3


@pytest.mark.parametrize("given", ["", "*"])
def test_an_output_among_its_input_is_not_read(
    folder: Path, vectors: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    source, target = write(data / "x.jsonl", [*some(30), "{broken"]), data / "scan.parquet"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _stop_after(patch, 3)
        scanned(folder, vectors, data / given, target)
    for _ in range(2):
        table, summary = scanned(folder, vectors, data / given, target)
        assert len(table) == 30 and set(table["file"]) == {str(source)} and summary["rejected"]
    Path(f"{target}.summary.json").unlink()
    for named in (data / given, target, Path(f"{target}.rejected.jsonl")):
        with pytest.raises(DataError) as error:
            scanned(folder, vectors, named, target)
        one_line(error, "both input and output")


def command(folder: Path, vectors: Sequence[Path], source: Path, target: Path, *more: str) -> list[str]:
    named = [part for path in vectors for part in ("--vector", str(path))]
    small = "from persona_bench.vectors.scan import inputs; inputs.SHARD_ROWS = 7"
    code = f"{small}; from persona_bench.cli import main; main()"
    options = ["--model", str(folder), *named, "--input", str(source), "--out", str(target), *more]
    return [sys.executable, "-c", code, "scan", *options]


def test_killed_at_random_moments_loses_and_doubles_nothing(folder: Path, vectors: list[Path], tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", [*some(700), "{broken"])
    scanned(folder, vectors[:1], source, tmp_path / "whole.parquet", measures=("response_minus_prompt",), layers=(2,))
    target, draw = tmp_path / "out.parquet", random.Random(7)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    seen: list[int] = []
    for _ in range(10):
        process = subprocess.Popen(
            command(folder, vectors[:1], source, target), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=environment,
        )  # fmt: skip
        goal = (seen[-1] if seen else 0) + draw.randint(0, 9)
        while process.poll() is None and _finished(target) < goal:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(_finished(target))
    assert not target.exists() and seen == sorted(seen) and seen[-1] > 10
    done = subprocess.run(
        command(folder, vectors[:1], source, target), check=True, capture_output=True, env=environment
    )
    assert b"going on after" in done.stderr
    pd.testing.assert_frame_equal(pd.read_parquet(target), pd.read_parquet(tmp_path / "whole.parquet"))
    assert target.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def _finished(target: Path) -> int:
    return len(list(parts.Parts.folder_of(target).glob("part-*.parquet")))


# -- size ------------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_input(
    folder: Path, vectors: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only passes are left out: what reads, keeps, puts together and summarises is as it is."""

    def no_pass(_engine: Any, chunks: Iterator[Any], unit: Any, layers: Any, _say: Any) -> Iterator[Any]:
        for chunk in chunks:
            for found in chunk:
                yield found, np.ones((len(found.ids), len(unit), len(layers)), np.float32)

    monkeypatch.setattr(measures, "project_transcripts", no_pass)
    monkeypatch.setattr(inputs, "SHARD_ROWS", 200)
    monkeypatch.setattr(table_file, "ROW_GROUP", 1000)
    peaks = []
    made = some(200)
    for times in (3, 10, 100):  # the first imports what is imported late
        source = str(write(tmp_path / f"{times}.jsonl", made * times))
        target = tmp_path / f"{times}.parquet"
        planned = plan_scan(str(folder), vectors[:1], [source], target, Settings(("response",), (2,)))
        tracemalloc.start()
        summary = run_scan(planned)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert summary["n"] == 200 * times
    # Python keeps the memory of some thousand small tuples for itself: 0.3 MB that come and go. Rows weigh far more.
    assert peaks[2] - peaks[1] < 0.25 * (100 - 10) * 200 * sys.getsizeof(
        (0,) * len(columns(("evil",), planned.job.settings))
    )


def test_a_shard_leaves_nothing_in_the_engine(folder: Path, vectors: list[Path], tmp_path: Path) -> None:
    """Keys and values of what its samples begin with would pile up, as the next shard's begin with something else."""
    from persona_bench.models.worker import WORKER

    source = str(write(tmp_path / "in.jsonl", some(30)))
    run_scan(plan_scan(str(folder), vectors[:1], [source], tmp_path / "o.parquet", Settings(("response",), (2,))))
    assert not WORKER.engine(load(str(folder)))._prefixes._held


@pytest.mark.parametrize(("given", "kept"), [(None, "24"), ("128", "24"), ("99", "99")])
def test_a_scan_keeps_few_kernels_unless_told_otherwise(
    given: str | None, kept: str, folder: Path, vectors: list[Path]
) -> None:
    """A dozen for each of two lanes; 128 is what a process of this package has set for those that it starts."""
    pairs = ((str(vectors[0]), PersonaVector.load(vectors[0]).hash),)
    code = (
        "import os\nimport torch\nfrom persona_bench.vectors.scan.local import Job, make_scanner\n"
        "torch.set_num_threads(2)\n"
        "from persona_bench.vectors.scan.measures import Settings\n"
        "before = os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY']\n"
        f"make_scanner(Job({str(folder)!r}, {pairs!r}, Settings(('response',), (2,))))\n"
        "print(before, os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'], os.environ['LRU_CACHE_CAPACITY'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
    if given is not None:
        environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [given or "128", kept, "1"]


# -- summary, figure, page, command ----------------------------------------------------------------------------------


def test_the_summary_is_that_of_the_rows(folder: Path, vectors: list[Path], tmp_path: Path) -> None:
    one, two = (write(tmp_path / f"{n}.jsonl", some(n, seed=n)) for n in (25, 40))
    reference, _ = scanned(folder, vectors, one, tmp_path / "one.parquet")
    table, summary = scanned(folder, vectors, two, tmp_path / "two.parquet", reference=tmp_path / "one.parquet", top=3)
    assert summary == json.loads((tmp_path / "two.parquet.summary.json").read_text())
    for name, found in summary["values"].items():
        values = table[name].astype(float)
        assert (found["n"], found["mean"], found["sd"]) == pytest.approx((40, values.mean(), values.std()))
        assert found["mean_high"] - found["mean"] == pytest.approx(1.96 * values.std() / math.sqrt(40), rel=1e-3)
        assert sum(found["histogram"]["counts"]) == 40 and len(found["histogram"]["counts"]) == BINS
        ranked = values.sort_values(kind="stable")
        assert [entry["row"] for entry in found["lowest"]] == [1 + place for place in ranked.index[:3]]
        assert [entry["value"] for entry in found["highest"]] == pytest.approx(list(ranked[::-1][:3]))
        gap = values.mean() - reference[name].astype(float).mean()
        assert found["difference"] == pytest.approx(gap, abs=1e-6)
        assert found["difference_low"] < gap < found["difference_high"]
    with pytest.raises(DataError) as error:
        scanned(folder, vectors, two, tmp_path / "two.parquet", reference=tmp_path / "nowhere.parquet")
    one_line(error, "nowhere.parquet")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_summary_leaves_ids_what_they_are(folder: Path, vectors: list[Path], tmp_path: Path, suffix: str) -> None:
    for ids in (["000123", "000124"], ["1e5", "2e400"], ["NA", ""], ["", ""]):
        rows = [item("Hi?", "yes" * (place + 1), key=each) for place, each in enumerate(ids)]
        source = write(tmp_path / "x.jsonl", rows)
        _, summary = scanned(folder, vectors, source, tmp_path / f"o.{suffix}", fields=Fields(id="key"))
        for found in summary["values"].values():
            assert sorted(entry["id"] for entry in found["highest"]) == sorted(ids)


def test_the_command_draws_and_shows(folder: Path, vectors: list[Path], tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", [*some(12), item("<b>Hi</b>?", "<script>alert(1)</script>"), "{broken"])
    target = tmp_path / "out.csv"
    more = ["--plot", str(tmp_path / "h.png"), "--page", str(tmp_path / "p.html"), "--layer", "2", "--top", "20"]
    result = CliRunner().invoke(main, command(folder, vectors, source, target, *more)[3:])
    assert result.exit_code == 0, result.output
    assert "13 samples, 1 rows rejected" in result.output and "not JSON" in result.output
    page = (tmp_path / "p.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;alert(1)" in page and page.count("<article") == 4 * 13
    before = (tmp_path / "h.png").read_bytes()
    again = CliRunner().invoke(main, command(folder, vectors, source, target, *more)[3:])
    assert again.exit_code == 0 and "holds this scan already" in again.output
    assert (tmp_path / "h.png").read_bytes() == before
    bad = CliRunner().invoke(main, command(folder, vectors, tmp_path / "gone.jsonl", target)[3:])
    assert bad.exit_code == 2 and bad.output.count("\n") == 1


def test_a_hub_dataset_is_read_from_its_cache(
    folder: Path, vectors: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    hub = tmp_path / "hub"
    home = hub / "datasets--someone--chats"
    snapshot = home / "snapshots" / ("a" * 40)
    (snapshot / "data").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    write(snapshot / "data" / "train.jsonl", some(5))
    (snapshot / "load.py").write_text("raise SystemExit('executed')")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    table, _ = scanned(folder, vectors, "someone/chats", tmp_path / "out.csv")
    assert set(table["file"]) == {"someone/chats/data/train.jsonl"} and len(table) == 5
    write(snapshot / "data" / "test.jsonl", some(2))
    assert [found.name for found in find_sources(["someone/chats:data/test*"])] == ["someone/chats/data/test.jsonl"]
    with pytest.raises(DataError) as nothing:
        find_sources(["someone/chats:other/*.jsonl"])
    one_line(nothing, "someone/chats", "other/*.jsonl")
    with pytest.raises(AssetError) as error:
        scanned(folder, vectors, "someone/else", tmp_path / "other.csv")
    one_line(error, "someone/else", "Hub")
