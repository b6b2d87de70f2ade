"""Projection: equal to a plain pass whatever runs beside it, no deeper than asked, by message and token, any size."""

from __future__ import annotations

import csv
import json
import math
import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_bench.analysis.figures import traces
from persona_bench.analysis.figures.traces import save_trace
from persona_bench.cli import main
from persona_bench.errors import DataError, ModelError, VectorError
from persona_bench.files import read_jsonl
from persona_bench.models import assets
from persona_bench.models.chat import head_ids, locate, prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.loading import load
from persona_bench.vectors import projection, table_file, transcripts
from persona_bench.vectors.beginnings import shared_beginnings
from persona_bench.vectors.projection import BY, COLUMNS, TRACE_COLUMNS, Projected, project_file, trace_layer
from persona_bench.vectors.table_file import Column
from persona_bench.vectors.transcripts import read_transcripts, transcript
from tests.builders import CONFIGS, DTYPE, only_x86
from tests.conftest import one_line, talking, tiny_tokenizer, tiny_vector
from tests.test_reading import in_its_dtype, passes
from tests.test_steering import reference_states

WORDS = "rain snow river stone bread light paper green seven window".split()
MODES = {
    "transcript": ["prompt_last", "prompt_avg", "response_avg"],
    "message": ["message", "role", "n_tokens", "mean", "last", "before"],
    "token": ["message", "role", "position", "token", "projection"],
}
LONG = {"messages": [{"role": "user", "content": "x" * 3000}, {"role": "assistant", "content": "y"}]}


def written(path: Path, items: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def conversation(i: int) -> dict[str, Any]:
    """One or two turns, some with a system message; they fit a context of 256."""
    turns = [{"role": "system", "content": "Be brief."}] if i % 2 else []
    for turn in range(1 + i // 2 % 2):
        turns.append({"role": "user", "content": f"What is {WORDS[(i + turn) % 10]}?"})
        answer = " ".join(WORDS[(i + j) % 10] for j in range(1 + (3 * i) % 5))
        turns.append({"role": "assistant", "content": f"It is {answer}, number {i}."})
    return {"messages": turns}


def cells(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def in_use(kind: str = "llama") -> LoadedModel:
    return replace(in_its_dtype(kind), tokenizer=tiny_tokenizer())


# The numbers


def plain_pass(loaded: LoadedModel, item: dict[str, Any], direction: torch.Tensor) -> tuple[int, np.ndarray]:
    """Length of the prompt, and `(n_tokens, n_layers + 1)` projections by plain hooks in a pass over one transcript."""
    *prompt, last = item["messages"]
    ids = prompt_ids(loaded.tokenizer, prompt)
    states = torch.stack(reference_states(loaded, ids + response_ids(loaded.tokenizer, last["content"]))).double()
    unit = (direction / direction.norm(dim=1, keepdim=True)).double()
    return len(ids), torch.einsum("ltd,ld->tl", states, unit).numpy()


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_projections_are_those_of_a_plain_pass(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcripts, "CHUNK", 4)
    loaded, made = talking(kind), tiny_vector()
    items = [conversation(i) for i in range(6)]
    source, target = written(tmp_path / "in.jsonl", items), tmp_path / "deep" / "out.csv"
    assert project_file(Engine(loaded), made, source, target) == Projected(len(items))
    rows = cells(target)
    assert tuple(rows[0]) == COLUMNS
    assert [(int(row["index"]), int(row["layer"])) for row in rows] == [(i, j) for i in range(6) for j in range(1, 5)]
    for row in rows:
        n, values = plain_pass(loaded, items[int(row["index"])], made.directions["persona"])
        at = values[:, int(row["layer"])]
        for column, expected in zip(COLUMNS[2:], (at[n - 1], at[:n].mean(), at[n:].mean()), strict=True):
            assert float(row[column]) == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.skipif(DTYPE is not torch.bfloat16, reason="this processor does not compute in bfloat16")
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt_neox", "gpt2"])
def test_projections_are_right_to_bfloat16_s_accuracy(kind: str, tmp_path: Path) -> None:
    """As near to the float32 pass as transformers' own bfloat16 pass is, a projection being at most |h| long."""
    loaded, exact, made = in_use(kind), talking(kind), tiny_vector()
    items = [conversation(i) for i in range(8)]
    project_file(Engine(loaded), made, written(tmp_path / "in.jsonl", items), tmp_path / "o.csv", by="token")
    ours = pd.read_csv(tmp_path / "o.csv")
    off, reference_off, size = [], [], []
    for i, item in enumerate(items):
        _n, truth = plain_pass(exact, item, made.directions["persona"])
        _n, theirs = plain_pass(loaded, item, made.directions["persona"])
        for layer in range(1, 5):
            found = ours[(ours["index"] == i) & (ours["layer"] == layer)]["projection"].to_numpy()
            off.append(np.abs(found - truth[:, layer]).mean())
            reference_off.append(np.abs(theirs[:, layer] - truth[:, layer]).mean())
            size.append(np.abs(truth[:, layer]).mean())
    assert np.mean(off) <= 1.3 * np.mean(reference_off) and np.mean(off) < 0.05 * np.mean(size)


@only_x86
@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_alone_and_batched_are_bit_equal(kind: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "in.jsonl", [conversation(i) for i in range(12)])
    loaded, found = in_use(kind), []
    for chunk in (1, 5, 512):
        monkeypatch.setattr(transcripts, "CHUNK", chunk)
        project_file(Engine(loaded), tiny_vector(), source, tmp_path / "o.parquet", by=by)
        found.append(pq.read_table(tmp_path / "o.parquet"))
    assert found[0].equals(found[1]) and found[0].equals(found[2])


@pytest.mark.weights
@only_x86
def test_real_weights_agree_with_a_plain_pass(tmp_path: Path) -> None:
    loaded = load("smollm2-135m", dtype=str(DTYPE).removeprefix("torch."), device="cpu")
    made = tiny_vector(loaded.n_layers, loaded.d_model)
    items = [conversation(i) for i in (1, 5)]
    engine = Engine(loaded)
    project_file(engine, made, written(tmp_path / "in.jsonl", items), tmp_path / "o.csv", [2, 15, 30])
    for row in cells(tmp_path / "o.csv"):
        n, values = plain_pass(loaded, items[int(row["index"])], made.directions["persona"])
        at = values[:, int(row["layer"])]
        # The first token is an outlier a hundred times as large: means over the prompt are judged by its size.
        for column, expected, size in (
            ("prompt_last", at[n - 1], np.abs(at[1:]).max()),
            ("prompt_avg", at[:n].mean(), np.abs(at).mean()),
            ("response_avg", at[n:].mean(), np.abs(at[n:]).max()),
        ):
            assert float(row[column]) == pytest.approx(expected, abs=0.05 * size)
    engine.hooks.remove()


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_passes_end_at_the_last_layer_asked_for(layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = talking()
    source = written(tmp_path / "in.jsonl", [conversation(i) for i in range(20)])
    for by in BY:
        with passes(loaded, monkeypatch) as counted:
            project_file(Engine(loaded, max_batch=8), tiny_vector(), source, tmp_path / "o.csv", (layer, 1), by=by)
        assert set(counted) == {str(each) for each in range(1, layer + 1)}
        assert len(set(counted.values())) == 1


def test_all_layers_still_run_no_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = talking()
    with passes(loaded, monkeypatch) as counted:
        project_file(
            Engine(loaded), tiny_vector(), written(tmp_path / "i.jsonl", [conversation(0)]), tmp_path / "o.csv"
        )
    assert counted == {str(layer): 1 for layer in range(1, 5)}


def test_a_common_beginning_is_passed_once(tmp_path: Path) -> None:
    """By any system message and question: each beginning that two or more have costs one pass, and no other."""
    loaded = talking()
    tokenizer = loaded.tokenizer
    items = [conversation(2 * i) for i in range(10)]
    systems = [None] * 5 + ["Be brief."] * 3 + ["Be long."] * 2
    for item, system in zip(items, systems, strict=True):
        item["messages"] = [*([{"role": "system", "content": system}] if system else []), *item["messages"]]
    source = written(tmp_path / "in.jsonl", items)
    engine = Engine(loaded)
    project_file(engine, tiny_vector(), source, tmp_path / "o.csv", 2)
    (chunk,) = read_transcripts(source, tokenizer, located=False)
    none, brief, long = (len(head_ids(tokenizer, system)) for system in (None, "Be brief.", "Be long."))
    assert none == len(["<s>", "<|im_start|>", *"user\n"]) and brief > len("system\nBe brief.\nuser\n")
    assert [item.n_head for item in chunk] == [none] * 5 + [brief] * 3 + [long] * 2
    found = shared_beginnings([item.ids for item in chunk])
    assert all(len(own) >= item.n_head for own, item in list(zip(found.of, chunk, strict=True))[5:])
    own = sum(len(item.ids) - len(one) for one, item in zip(found.of, chunk, strict=True))
    assert engine.prefill_tokens == own + sum(len(one) - len(below) for one, below in found.stands_on.items())
    assert engine.prefill_tokens <= sum(len(item.ids) for item in chunk) - 2 * brief - long
    alone = Engine(loaded)
    for i, item in enumerate(items):
        project_file(alone, tiny_vector(), written(tmp_path / "one.jsonl", [item]), tmp_path / "one.csv", 2)
        ours, theirs = cells(tmp_path / "o.csv")[i], cells(tmp_path / "one.csv")[0]
        for name in COLUMNS[2:]:
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4, abs=1e-4)


def test_transcripts_of_like_length_share_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = talking()
    engine = Engine(loaded, token_budget=1000)
    items = [conversation(i) for i in range(60)]
    padded = 0
    forward = loaded.decoder.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal padded
        padded += kwargs["input_ids"].numel()
        return forward(*args, **kwargs)

    monkeypatch.setattr(loaded.decoder, "forward", counting)
    with passes(loaded, monkeypatch) as counted:
        project_file(engine, tiny_vector(), written(tmp_path / "in.jsonl", items), tmp_path / "o.csv", 1)
    assert counted["1"] < len(items) / 3 and padded < 1.15 * engine.prefill_tokens


# Which rows and columns


def test_one_layer_is_that_part_of_all(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [conversation(i) for i in range(3)])
    engine, made = Engine(talking()), tiny_vector()
    project_file(engine, made, source, tmp_path / "all.csv")
    project_file(engine, made, source, tmp_path / "two.csv", layer=2)
    project_file(engine, made, source, tmp_path / "some.csv", [3, 1, 3])
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert (tmp_path / "two.csv").read_text().splitlines() == [lines[0], *lines[2::4]]
    some = [line for i in range(3) for line in (lines[4 * i + 3], lines[4 * i + 1])]
    assert (tmp_path / "some.csv").read_text().splitlines() == [lines[0], *some]


def test_a_layer_where_the_vector_is_zero_has_no_projections(tmp_path: Path) -> None:
    whole = tiny_vector()
    persona = torch.zeros_like(whole.directions["persona"])
    persona[3] = whole.directions["persona"][3]
    one = tiny_vector(directions={**whole.directions, "persona": persona})
    source, engine = written(tmp_path / "in.jsonl", [conversation(i) for i in range(3)]), Engine(talking())
    project_file(engine, whole, source, tmp_path / "whole.csv", 3)
    done = project_file(engine, one, source, tmp_path / "all.csv", trace=1)
    assert cells(tmp_path / "all.csv") == cells(tmp_path / "whole.csv")
    assert {row[-2] for row in done.trace} == {"persona"} and trace_layer(one, (1, 2, 3, 4)) == 3
    assert all(math.isfinite(float(row[-1] or "nan")) for row in done.trace)
    project_file(engine, one, source, tmp_path / "two.csv", directions=("persona", "refusal"))
    for row in cells(tmp_path / "two.csv"):
        assert (row["response_avg"] == "") == (row["direction"] == "persona" and row["layer"] != "3")
    for asked in (2, (3, 2)):
        with pytest.raises(VectorError) as error:
            project_file(engine, one, source, tmp_path / "no.csv", asked)
        one_line(error, "zero at layer 2", "another layer")
    nothing = tiny_vector(directions={"persona": torch.zeros_like(persona)})
    with pytest.raises(VectorError) as error:
        project_file(engine, nothing, source, tmp_path / "no.csv")
    one_line(error, "zero at every layer")
    assert not (tmp_path / "no.csv").exists()


def test_several_directions_are_each_as_alone(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [conversation(i) for i in range(3)])
    engine, made = Engine(talking()), tiny_vector()
    names = ("refusal", "persona", "random:3", "refusal")
    for by, own in MODES.items():
        target = tmp_path / "o.csv"
        project_file(engine, made, source, target, (2, 4), directions=names, by=by)
        rows = cells(target)
        assert list(rows[0]) == ["index", "layer", "direction", *own]
        order = [(row["index"], row["layer"], row["direction"]) for row in rows]
        wanted = [(str(i), layer, name) for i in range(3) for layer in "24" for name in names[:3]]
        assert list(dict.fromkeys(order)) == wanted
        for name in names[:3]:
            project_file(engine, made, source, target, (2, 4), directions=(name,), by=by)
            alone = cells(target)
            assert list(alone[0]) == ["index", "layer", *own]
            assert alone == [
                {k: v for k, v in row.items() if k != "direction"} for row in rows if row["direction"] == name
            ]


def test_tokens_are_those_of_the_conversation(tmp_path: Path) -> None:
    loaded, item = talking(), conversation(1)
    project_file(
        Engine(loaded), tiny_vector(), written(tmp_path / "i.jsonl", [item]), tmp_path / "o.csv", 2, by="token"
    )
    rows = cells(tmp_path / "o.csv")
    *prompt, last = item["messages"]
    text = loaded.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) + last["content"]
    assert "".join(row["token"] for row in rows) == text
    assert [int(row["position"]) for row in rows] == list(range(len(rows)))
    for number, message in enumerate(item["messages"]):
        own = [row for row in rows if row["message"] == str(number)]
        assert "".join(row["token"] for row in own) == message["content"]
        assert {row["role"] for row in own} == {message["role"]}
    assert all(row["role"] == "" for row in rows if row["message"] == "")
    n, values = plain_pass(loaded, item, tiny_vector().directions["persona"])
    np.testing.assert_allclose([float(row["projection"]) for row in rows], values[:, 2], rtol=1e-3, atol=1e-3)


def test_messages_are_the_means_of_their_tokens(tmp_path: Path) -> None:
    engine, made = Engine(talking()), tiny_vector()
    items = [conversation(i) for i in range(6)]
    source = written(tmp_path / "in.jsonl", items)
    found = {}
    for by in BY:
        project_file(engine, made, source, tmp_path / "o.parquet", (1, 4), by=by)
        found[by] = pd.read_parquet(tmp_path / "o.parquet")
    tokens = found["token"]
    assert len(found["message"]) == 2 * sum(len(item["messages"]) for item in items)
    for row in found["message"].itertuples():
        message = items[row.index]["messages"][row.message]
        one = tokens[(tokens["index"] == row.index) & (tokens["layer"] == row.layer)]
        own = one[one["message"] == row.message]
        assert row.role == message["role"] and row.n_tokens == len(own) == len(message["content"])
        assert row.mean == pytest.approx(own["projection"].mean(), rel=1e-5, abs=1e-5)
        assert row.last == own["projection"].iloc[-1]
        if row.role == "assistant":
            before = one[one["position"] == own["position"].iloc[0] - 1]
            assert row.before == before["projection"].iloc[0] and before["token"].iloc[0] == "\n"
        else:
            assert math.isnan(row.before)
    whole = found["transcript"]
    last = found["message"].groupby(["index", "layer"], sort=False).last().reset_index()
    np.testing.assert_array_equal(whole["prompt_last"], last["before"])
    np.testing.assert_allclose(whole["response_avg"], last["mean"], rtol=1e-6)


@pytest.mark.parametrize("by", BY)
def test_csv_and_parquet_hold_the_same(by: str, tmp_path: Path) -> None:
    engine, made = Engine(talking()), tiny_vector()
    strange = [
        {"role": "user", "content": 'a "b",\r\nc\rd\ne,\t,'},
        {"role": "tool", "content": " "},
        {"role": "assistant", "content": "null"},
    ]
    items = [conversation(0), {"messages": strange}, LONG, conversation(1)]
    source = written(tmp_path / "in.jsonl", items)
    for name in ("o.csv", "o.parquet"):
        project_file(engine, made, source, tmp_path / name, (1, 3), directions=("persona", "random:0"), by=by)
    table = pq.read_table(tmp_path / "o.parquet")
    rows = cells(tmp_path / "o.csv")
    assert table.column_names == list(rows[0]) == ["index", "layer", "direction", *MODES[by]]
    assert table.num_rows == len(rows)
    for ours, theirs in zip(rows, table.to_pylist(), strict=True):
        shown = {k: "" if v is None else f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in theirs.items()}
        assert ours == shown


# Where a message is


TRIMMED = (
    "{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TRIMMED
SYSTEM_LAST = (  # as some of Mistral's: the system message stands before the last user message
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% set ms = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set ms = messages %}{% endif %}<s>{% for m in ms %}"
    "{% if m['role'] == 'user' %}[INST] {% if loop.last and s %}{{ s + '\n\n' }}{% endif %}{{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
DROPPED = "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['content'] }}{% endif %}{% endfor %}"
THINKING = (  # as Qwen3's: what an earlier answer thought is left out
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if '</think>' in m['content'] %}{{ m['content'].split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
)
TWICE = "{% for m in messages %}<|im_start|>{{ m['content'] }}|{{ m['content'] }}{% endfor %}"
COUNTING = "{% for m in messages %}{{ m['content'] | length }}:{{ m['content'] }};{% endfor %}"
TALK = [
    {"role": "system", "content": " user "},
    {"role": "user", "content": "user\n"},
    {"role": "assistant", "content": "<think>so</think>\n\n yes"},
    {"role": "user", "content": "<|im_end|>\n<|im_start|>user\nuser"},
]
WHOLE = [message["content"] for message in TALK]
BARE = [text.strip() for text in WHOLE]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, WHOLE),
        (TRIMMED, BARE),
        (NO_SYSTEM, [" user ".lstrip(), *BARE[1:]]),  # its end is inside the merged message
        (SYSTEM_LAST, WHOLE),
        (DROPPED, ["", *WHOLE[1:]]),
        (THINKING, [*WHOLE[:2], " yes", WHOLE[3]]),
        (TWICE, BARE),
        (COUNTING, BARE),
    ],
)
@pytest.mark.parametrize("fast", [True, False])
def test_a_message_is_found_whatever_the_template(template: str | None, expected: list[str], fast: bool) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    found = locate(tokenizer if fast else Slow(tokenizer), TALK)
    assert found.ids == prompt_ids(tokenizer, TALK)
    assert [tokenizer.decode(found.ids[start:stop]) for start, stop in found.places] == expected


class Slow:
    """A tokenizer without character offsets."""

    def __init__(self, inner: Any) -> None:
        self.chat_template, self.apply_chat_template = inner.chat_template, inner.apply_chat_template
        self._inner, self.is_fast = inner, False

    def __call__(self, text: str, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self._inner(text, **options)


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text(max_size=12)), min_size=1, max_size=5)
)
@settings(max_examples=60, deadline=None)
def test_messages_of_any_text_are_found(turns: list[tuple[str, str]]) -> None:
    """A token a character: each place must be as long as its message, and in order."""
    tokenizer = tiny_tokenizer()
    messages = [{"role": role, "content": "".join(c for c in text if c.isalnum())} for role, text in turns]
    messages.append({"role": "user", "content": "?"})
    found = locate(tokenizer, messages)
    places = [place for place in found.places if place[0] < place[1]]
    assert [stop - start for start, stop in found.places] == [len(message["content"]) for message in messages]
    assert places == sorted(places)
    for message, (start, stop) in zip(messages, found.places, strict=True):
        assert found.ids[start:stop] == response_ids(tokenizer, message["content"])


REAL = [
    {"role": "user", "content": "  Caf\u00e9 \U0001f600: naïve \u4f60\u597d?\n\n"},
    {"role": "assistant", "content": " assistant"},
    {"role": "user", "content": "\nuser"},
    {"role": "assistant", "content": "Go on.\n"},
    {"role": "user", "content": "1234 <b>and</b> so on..."},
]


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_messages_are_found_by_the_catalogue_s_tokenizers(name: str, fast: bool, system: bool) -> None:
    from transformers import AutoTokenizer

    if name not in {item.name for item in assets.status() if item.cached}:
        pytest.skip(f"{name} is not cached")
    tokenizer = AutoTokenizer.from_pretrained(assets.fetch_weights(name), local_files_only=True)
    messages = [{"role": "system", "content": "Be brief."}, *REAL] if system else REAL
    found = locate(tokenizer if fast else Slow(tokenizer), messages)
    assert found.ids == prompt_ids(tokenizer, messages)
    for message, (start, stop) in zip(messages, found.places, strict=True):
        text, content = tokenizer.decode(found.ids[start:stop]), message["content"]
        # White space at the start may be one token with the line feed of the template's header.
        assert text == content or (content[0].isspace() and text == "\n" + content)


def test_what_a_template_leaves_out_is_counted(tmp_path: Path) -> None:
    loaded = talking()
    loaded.tokenizer.chat_template = DROPPED
    source = written(tmp_path / "in.jsonl", [conversation(i) for i in range(4)])
    assert project_file(Engine(loaded), tiny_vector(), source, tmp_path / "o.csv", 1, by="message").unplaced == 2
    rows = [row for row in cells(tmp_path / "o.csv") if row["role"] == "system"]
    assert rows and all((row["n_tokens"], row["mean"], row["last"]) == ("0", "", "") for row in rows)


@pytest.mark.parametrize("turns", [["system", "assistant"], ["system", "user", "user"], ["user", "user"]])
def test_a_conversation_the_template_refuses_is_named(turns: list[str], tmp_path: Path) -> None:
    loaded = talking()
    loaded.tokenizer.chat_template = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must\n alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
    )
    item = {"messages": [{"role": role, "content": "a"} for role in (*turns, "assistant")]}
    source = written(tmp_path / "in.jsonl", [{"messages": conversation(0)["messages"]}, item])
    for by in BY:
        with pytest.raises(DataError) as error:
            project_file(Engine(loaded), tiny_vector(), source, tmp_path / "o.csv", by=by)
        one_line(error, f"{source}, line 2", "roles must alternate")
    loaded.tokenizer.chat_template = None
    with pytest.raises(ModelError, match="chat template"):
        prompt_ids(loaded.tokenizer, item["messages"])
    assert not (tmp_path / "o.csv").exists()


# Sizes


def test_a_file_is_read_a_chunk_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    source = written(tmp_path / "in.jsonl", [conversation(i) for i in range(20)])
    monkeypatch.setattr(transcripts, "CHUNK", 8)
    chunks = list(read_transcripts(source, tokenizer, located=False))
    assert [len(chunk) for chunk in chunks] == [8, 8, 4]
    assert [item.index for chunk in chunks for item in chunk] == list(range(20))
    monkeypatch.setattr(transcripts, "CHUNK_CHARACTERS", 100)
    for chunk in read_transcripts(source, tokenizer, located=False):
        assert len(chunk) == 1 or sum(len(item.ids) for item in chunk[:-1]) < 100 + 8 * 40
    with source.open("a") as file:
        file.write("broken\n")
    assert len(list(islice(read_transcripts(source, tokenizer, located=False), 2))) == 2, "what comes later is unread"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_memory_does_not_grow_with_the_file(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcripts, "CHUNK", 8)
    monkeypatch.setattr(table_file, "ROW_GROUP", 256)
    engine, made = Engine(talking(), max_batch=8), tiny_vector()

    def peak(n: int) -> int:
        source = written(tmp_path / f"{n}.jsonl", (conversation(i % 9) for i in range(n)))
        tracemalloc.start()
        try:
            project_file(engine, made, source, tmp_path / f"o.{suffix}", by="token")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(8)
    few, lots = peak(16), peak(120)
    rows = (
        len(cells(tmp_path / "o.csv")) if suffix == "csv" else pq.ParquetFile(tmp_path / "o.parquet").metadata.num_rows
    )
    assert rows > 30_000 and lots - few < 200_000, (few, lots)
    if suffix == "parquet":
        assert pq.ParquetFile(tmp_path / "o.parquet").num_row_groups == math.ceil(rows / 256)


def test_what_does_not_fit_the_context_is_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "NAMED", 2)
    engine, made = Engine(talking()), tiny_vector()
    items = [conversation(0), LONG, LONG, conversation(1), LONG]
    source = written(tmp_path / "in.jsonl", items)
    for by in BY:
        project_file(engine, made, written(tmp_path / "fit.jsonl", [items[0], items[3]]), tmp_path / "fit.csv", by=by)
        done = project_file(engine, made, source, tmp_path / "o.csv", by=by)
        assert done.n == 5 and done.overlong == 3
        n = len(prompt_ids(engine.loaded.tokenizer, LONG["messages"][:1])) + 1
        assert done.named == (f"{source}, line 2 ({n} tokens)", f"{source}, line 3 ({n} tokens)")
        rows = cells(tmp_path / "o.csv")
        fitting = [{**row, "index": str(int(row["index"]) // 3)} for row in rows if row["index"] in "03"]
        assert fitting == cells(tmp_path / "fit.csv")
        over = [row for row in rows if row["index"] == "2"]
        assert len(over) == 4 * {"transcript": 1, "message": 2, "token": n}[by]
        numbers = {"prompt_last", "prompt_avg", "response_avg", "mean", "last", "before", "projection"}
        assert all(row[name] == "" for row in over for name in numbers & set(row))


def test_a_file_of_nothing_that_fits(tmp_path: Path) -> None:
    done = project_file(Engine(talking()), tiny_vector(), written(tmp_path / "i.jsonl", [LONG]), tmp_path / "o.csv")
    assert (done.n, done.overlong) == (1, 1) and len(cells(tmp_path / "o.csv")) == 4


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "in.jsonl", [conversation(i) for i in range(20)])
    monkeypatch.setattr(transcripts, "CHUNK", 8)
    told: list[str] = []
    project_file(Engine(talking()), tiny_vector(), source, tmp_path / "o.csv", 1, progress=told.append)
    assert told == ["8 transcripts", "16 transcripts", "20 transcripts"]
    monkeypatch.setattr(projection, "SAY_SECONDS", 0.0)
    told.clear()
    project_file(Engine(talking(), max_batch=2), tiny_vector(), source, tmp_path / "o.csv", 1, progress=told.append)
    numbers = [int(text.split()[0]) for text in told]
    assert len(numbers) > 6 and numbers == sorted(numbers) and numbers[-1] == 20


# What is refused


GOOD = json.dumps(conversation(0))


def test_blank_lines_are_skipped_and_lines_counted(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('\n{"a": 1}\n\n  \n{"a": 2}\n')
    assert list(read_jsonl(path)) == [(2, {"a": 1}), (5, {"a": 2})]


@pytest.mark.parametrize("by", ["transcript", "token"])
@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "empty"),
        ("\n  \n", "empty"),
        (f"{GOOD}\n{{broken\n", "line 2"),
        (f"{GOOD}\n[1]\n", "line 2"),
        (f'{GOOD}\n{{"n": {"1" * 5000}}}\n', "line 2"),
        (f"{GOOD}\n{'[' * 100_000}\n", "line 2"),
        (f"{GOOD}\n\n3\n", "line 3"),
        ('{"text": "x"}\n', "messages"),
        ('{"messages": []}\n', "messages"),
        ('{"messages": "x"}\n', "messages"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}\n', "messages"),
        ('{"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}\n', "content"),
        ('{"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "x"}]}\n', "content"),
        ('{"messages": ["x", "y"]}\n', "content"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}\n', "assistant"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}\n', "assistant"),
        (
            '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "x"}]}\n',
            "surrogate",
        ),
        (GOOD + "\n" + GOOD[:-3], "line 2"),
    ],
)
def test_broken_transcripts_leave_no_file(tmp_path: Path, content: str, part: str, by: str) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out" / "out.parquet"
    source.write_text(content)
    with pytest.raises(DataError) as error:
        project_file(Engine(talking()), tiny_vector(), source, target, by=by)
    one_line(error, str(source), part)
    assert not target.parent.exists() or not list(target.parent.iterdir())


def test_unreadable_transcripts_leave_no_file(tmp_path: Path) -> None:
    target = tmp_path / "out" / "out.csv"
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe{}")
    for source in (tmp_path / "none.jsonl", tmp_path, tmp_path / "binary.jsonl"):
        with pytest.raises(DataError) as error:
            project_file(Engine(talking()), tiny_vector(), source, target)
        one_line(error, str(source))
        assert not target.exists() and not list(tmp_path.glob("out/*"))


def test_an_older_file_survives_a_broken_input(tmp_path: Path) -> None:
    for name in ("out.csv", "out.parquet"):
        target = tmp_path / name
        target.write_text("older")
        source = tmp_path / "in.jsonl"
        source.write_text(f"{GOOD}\nbroken\n")
        with pytest.raises(DataError):
            project_file(Engine(talking()), tiny_vector(), source, target)
        assert target.read_text() == "older"
        assert sorted(item.name for item in tmp_path.iterdir()) == ["in.jsonl", name]
        target.unlink()


@pytest.mark.parametrize(("n_layers", "d_model"), [(4, 31), (3, 32), (5, 32)])
def test_a_vector_of_another_model_is_refused(tmp_path: Path, n_layers: int, d_model: int) -> None:
    source = written(tmp_path / "in.jsonl", [conversation(0)])
    with pytest.raises(VectorError) as error:
        project_file(Engine(talking()), tiny_vector(n_layers, d_model), source, tmp_path / "out.csv")
    one_line(error, str(n_layers), str(d_model), "another model")
    with pytest.raises(VectorError) as error:
        project_file(Engine(talking()), tiny_vector(), source, tmp_path / "out.csv", layer=5)
    one_line(error, "layer 5")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("options", "kind", "parts"),
    [
        ({"layer": (1, 0)}, VectorError, ("layer 0", "1..4")),
        ({"directions": ("persona", "kindness")}, VectorError, ("'kindness'", "random:K")),
        ({"by": "word"}, DataError, ("'word'", "transcript, message, token")),
        ({"target": "o.txt"}, DataError, ("o.txt", ".csv or .parquet")),
        ({"target": "csv"}, DataError, ("csv", ".csv or .parquet")),
        ({"target": "folder.csv"}, DataError, ("folder.csv", "folder")),
        ({"trace": 1}, DataError, ("no transcript 1", "holds 1")),
        ({"trace": -1}, DataError, ("no transcript -1",)),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    kind: type[Exception],
    parts: Sequence[str],
) -> None:
    source, engine = written(tmp_path / "in.jsonl", [conversation(0)]), Engine(talking())
    (tmp_path / "folder.csv").mkdir()
    monkeypatch.setattr(engine, "run", lambda *_: pytest.fail("nothing is to be run"))
    target = tmp_path / options.pop("target", "o.csv")
    with pytest.raises(kind) as error:
        project_file(engine, tiny_vector(), source, target, **options)
    one_line(error, *parts)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["folder.csv", "in.jsonl"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["user", "assistant"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries({"role": st.text() | JSON, "content": st.text() | JSON})
ITEM = st.dictionaries(st.sampled_from(["messages", "text"]), JSON | st.lists(MESSAGE, max_size=3))


@given(ITEM)
@settings(max_examples=200, deadline=None)
def test_a_transcript_is_right_or_a_data_error(item: dict[str, Any]) -> None:
    try:
        prompt, response = transcript(item, "in.jsonl, line 7")
    except DataError as error:
        assert str(error).startswith("in.jsonl, line 7: ") and "\n" not in str(error)
        return
    assert prompt and response == item["messages"][-1]["content"]


@given(st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text(max_size=20)}), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_whatever_is_a_transcript_can_be_projected(tmp_path_factory: pytest.TempPathFactory, messages: Any) -> None:
    folder = tmp_path_factory.mktemp("any")
    item = {"messages": [*messages, {"role": "assistant", "content": "x"}]}
    project_file(ENGINE, tiny_vector(), written(folder / "in.jsonl", [item]), folder / "o.parquet", 1, by="token")
    table = pq.read_table(folder / "o.parquet")
    assert table.column("token").null_count == 0 and table.column("projection").null_count == 0
    owners = table.column("message").to_pylist()
    for number, message in enumerate(messages):
        assert owners.count(number) == len(response_ids(ENGINE.loaded.tokenizer, message["content"]))


ENGINE = Engine(talking())


# The table's file


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.tuples(st.integers(-9, 9) | st.none(), TEXT | st.none(), st.floats(width=32) | st.none())))
@settings(max_examples=60, deadline=None)
def test_a_table_holds_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
    folder = tmp_path_factory.mktemp("table")
    columns = [Column("a", "integer"), Column("b", "text"), Column("c", "number")]
    for name in ("t.csv", "T.PARQUET"):
        with table_file.table_file(folder / name, columns) as write:
            write(rows[:2])
            write(iter(rows[2:]))
    with (folder / "t.csv").open(newline="", encoding="utf-8") as file:
        head, *found = list(csv.reader(file))
    assert head == ["a", "b", "c"] and len(found) == len(rows)
    stored = pq.read_table(folder / "T.PARQUET").to_pylist()
    for (a, b, c), ours, theirs in zip(rows, found, stored, strict=True):
        assert ours == ["" if a is None else str(a), b or "", "" if c is None or math.isnan(c) else f"{c:.6g}"]
        assert theirs["a"] == a and theirs["b"] == b
        assert theirs["c"] == (None if c is None or math.isnan(c) else c)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_table_that_cannot_be_finished_leaves_nothing(tmp_path: Path, name: str) -> None:
    def rows() -> Iterable[tuple[int]]:
        yield (1,)
        raise DataError("the second row is broken")

    with (
        pytest.raises(DataError, match="second row"),
        table_file.table_file(tmp_path / name, [Column("a", "integer")]) as w,
    ):
        w(rows())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_table_larger_than_the_disk_is_said_so(tmp_path: Path, name: str) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with (
            pytest.raises(DataError) as error,
            table_file.table_file(tmp_path / name, [Column("a", "number")]) as write,
        ):
            write((float(i % 997) / 7,) for i in range(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    one_line(error, name)
    assert not list(tmp_path.iterdir())


# The figure


def traced(folder: Path, **options: Any) -> tuple[Projected, pd.DataFrame]:
    source = written(folder / "in.jsonl", [conversation(i) for i in range(4)])
    done = project_file(ENGINE, tiny_vector(), source, folder / "o.parquet", **options)
    return done, pd.DataFrame(done.trace, columns=list(TRACE_COLUMNS))


@pytest.mark.parametrize(("asked", "layer"), [(None, 2), ((3, 1), 3), (4, 4), ((1, 2, 3, 4), 2)])
def test_a_trace_holds_the_tokens_of_one_transcript(tmp_path: Path, asked: Any, layer: int) -> None:
    for by in BY:
        _done, trace = traced(tmp_path, layer=asked, directions=("persona", "refusal"), by=by, trace=3)
        assert trace_layer(tiny_vector(), (asked,) if isinstance(asked, int) else asked or (1, 2, 3, 4)) == layer
        for name in ("persona", "refusal"):
            traced(tmp_path, layer=layer, directions=(name,), by="token")
            table = pd.read_parquet(tmp_path / "o.parquet")
            expected = table[table["index"] == 3].drop(columns=["index", "layer"]).reset_index(drop=True)
            found = trace[trace["direction"] == name].drop(columns="direction").reset_index(drop=True)
            pd.testing.assert_frame_equal(
                found[list(expected.columns)], expected, check_dtype=False, rtol=1e-4, atol=1e-4
            )
    assert traced(tmp_path)[0].trace == ()


def test_a_trace_of_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [conversation(0), LONG])
    with pytest.raises(DataError) as error:
        project_file(ENGINE, tiny_vector(), source, tmp_path / "o.csv", trace=1)
    one_line(error, f"{source}, line 2", "plot")
    assert not (tmp_path / "o.csv").exists()


def test_a_figure_has_the_same_bytes_for_the_same_tokens(tmp_path: Path) -> None:
    _done, trace = traced(tmp_path, layer=2, directions=("persona", "random:1"), trace=1)
    for suffix, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        paths = [tmp_path / "deep" / f"{i}{suffix}" for i in range(2)]
        for path in paths:
            save_trace(trace, path, "model: $trait_x$, layer 2", "model · 20 tokens")
        assert paths[0].read_bytes() == paths[1].read_bytes() and paths[0].read_bytes().startswith(start)
        assert len(list((tmp_path / "deep").iterdir())) == (2 if suffix == ".png" else 4)


def drawn(tokens: pd.DataFrame) -> Any:
    return traces.trace_figure(tokens, "title", "note")


def test_a_figure_shades_messages_and_marks_what_comes_before_a_response(tmp_path: Path) -> None:
    _done, trace = traced(tmp_path, layer=2, directions=("persona", "random:1"), trace=3)
    axes = drawn(trace).axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert set(labels) == {"system", "user", "assistant", "persona", "random:1", "before a response"}
    assert len(axes.patches) == 5, "one for each message"
    circles = [line for line in axes.lines if line.get_marker() == "o"]
    places = trace.drop_duplicates("position").set_index("position")
    for position in circles[0].get_xdata():
        assert places["role"][position + 1] == "assistant" and places["message"].isna()[position]
    lone = drawn(trace[trace["direction"] == "persona"]).axes[0].get_legend_handles_labels()[1]
    assert "persona" not in lone


def test_an_outlier_of_the_template_does_not_set_the_scale(tmp_path: Path) -> None:
    _done, trace = traced(tmp_path, layer=2, trace=0)
    low, high = drawn(trace).axes[0].get_ylim()
    assert low < trace["projection"].min() and trace["projection"].max() < high
    trace.loc[0, "projection"] = -5000.0
    figure = drawn(trace)
    assert figure.axes[0].get_ylim()[0] > -500
    assert "1 tokens that the template adds lie off the scale" in figure.get_supxlabel()
    nothing = trace.assign(message=None, role=None)
    assert drawn(nothing).axes[0].get_ylim()[0] < -5000
    assert drawn(trace.assign(projection=1.0)).axes[0].get_ylim() == (0.0, 2.0)


@pytest.mark.parametrize("name", ["f.svg", "f", "folder.png"])
def test_a_figure_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError) as error:
        save_trace(pd.DataFrame(), tmp_path / name, "", "")
    one_line(error, name, "--plot")


# The command


@pytest.fixture
def here(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    tiny_vector().save(home / "v.safetensors")
    written(home / "in.jsonl", [conversation(0), conversation(1), LONG])
    return home


def project(folder: Path, *more: str) -> Result:
    arguments = ["project", "--model", folder, "--vector", "v.safetensors", "--input", "in.jsonl", *more]
    return CliRunner().invoke(main, [str(item) for item in arguments])


def test_the_command_writes_table_and_figure(here: Path, folder: Path) -> None:
    more = ("--by", "message", "--layer", "3", "--layer", "1", "--direction", "persona", "--direction", "random:1")
    result = project(folder, *more, "--out", "o.parquet", "--plot", "deep/f.png", "--transcript", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["o.parquet: 3 transcripts", "deep/f.png: transcript 1"]
    table = pd.read_parquet("o.parquet")
    assert list(dict.fromkeys(table["layer"])) == [3, 1]
    assert list(dict.fromkeys(table["direction"])) == ["persona", "random:1"]
    assert (here / "deep" / "f.png").read_bytes().startswith(b"\x89PNG")
    line = next(line for line in result.stderr.splitlines() if line.startswith("warning: "))
    assert "1 transcripts do not fit" in line and "in.jsonl, line 3" in line and "2048" in line
    assert any("3 transcripts" in line for line in result.stderr.splitlines())


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (("--out", "o.txt"), "o.txt"),
        (("--out", "o.csv", "--by", "line"), "'line'"),
        (("--out", "o.csv", "--direction", "kind"), "'kind'"),
        (("--out", "o.csv", "--layer", "1", "--layer", "9"), "layer 9"),
        (("--out", "o.csv", "--plot", "f.gif"), "f.gif"),
        (("--out", "o.csv", "--plot", "f.png", "--transcript", "3"), "transcript 3"),
        (("--out", "o.csv", "--plot", "f.png", "--transcript", "2"), "line 3"),
    ],
)
def test_the_command_refuses_in_one_line_and_leaves_nothing(
    here: Path, folder: Path, more: tuple[str, ...], part: str
) -> None:
    result = project(folder, *more)
    assert result.exit_code == 2 and "Traceback" not in result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("persona-bench: ") and part in last
    assert {item.name for item in here.iterdir()} == {"v.safetensors", "in.jsonl"}


def test_the_command_s_help_shows_defaults() -> None:
    shown = CliRunner().invoke(main, ["project", "--help"], terminal_width=200).stdout
    for part in ("[default: all]", "[default: persona]", "[default: transcript]", "[default: 0]", "--plot"):
        assert part in shown
