"""The provider: what Inspect asks for is what the engine does, and what cannot be done is said in one line."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
    get_model,
)
from inspect_ai.tool import ToolInfo
from safetensors.torch import load_file, save_file

from persona_bench.errors import DataError, ModelError, PersonaBenchError, VectorError
from persona_bench.inspect_ext.provider import PersonaAPI
from persona_bench.inspect_ext.requests import ScoreItem
from persona_bench.models import loading
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.loading import load
from persona_bench.models.rows import Row
from persona_bench.models.sampling import Sampling
from persona_bench.models.shape import read_shape
from persona_bench.models.steering import Capture, Intervention
from persona_bench.vectors.vector import PersonaVector
from tests.conftest import one_line, tiny_tokenizer, tiny_vector
from tests.test_steering import plain

QUESTION = "What is rain?"
ASKED = [{"role": "user", "content": QUESTION}]
SEED = 5  # the tiny model then has much to say


def model(folder: Path, **args: Any) -> Model:
    return get_model(f"persona/{folder}", memoize=False, **{"dtype": "float32", **args})


def weights(folder: Path) -> LoadedModel:
    return load(str(folder), dtype="float32")


def ask(folder: Path, asked: Any = QUESTION, **config: Any) -> ModelOutput:
    options = {"max_tokens": 12, "seed": SEED, **config}
    return asyncio.run(model(folder).generate(asked, config=GenerateConfig(**options)))


def extra(**args: Any) -> dict[str, Any]:
    return {"extra_args": args}


@pytest.fixture
def vector(tmp_path: Path) -> PersonaVector:
    """A vector whose file is at its provenance's `path`."""
    made = tiny_vector(provenance={"path": str(tmp_path / "v.safetensors")})
    made.save(tmp_path / "v.safetensors")
    return made


def named(vector: PersonaVector, **changes: Any) -> dict[str, Any]:
    """A request for the vector."""
    return {"file": vector.provenance["path"], "sha256": vector.hash, "layers": [2], **changes}


def steered(folder: Path, vector: PersonaVector, **changes: Any) -> ModelOutput:
    return ask(folder, extra_body=extra(apply_steering_vectors=[named(vector, **changes)]))


def engine_text(folder: Path, *interventions: Intervention, seed: int = SEED) -> str:
    """What an engine of its own writes."""
    loaded = weights(folder)
    row = Row(prompt_ids(loaded.tokenizer, ASKED), sampling=Sampling(12, seed=seed), interventions=interventions)
    return str(loaded.tokenizer.decode(Engine(loaded).run([row])[0].tokens, skip_special_tokens=True))


# Generating


def test_the_same_seed_gives_the_same_text(folder: Path) -> None:
    assert len(ask(folder).completion) == 12
    assert ask(folder).completion == ask(folder).completion == engine_text(folder)
    assert ask(folder, seed=1).completion != ask(folder).completion
    assert ask(folder, temperature=0.0).completion == ask(folder, temperature=0.0, seed=9).completion
    fresh = {ask(folder, seed=None).completion for _ in range(3)}
    assert len(fresh) == 3


def test_a_text_does_not_depend_on_its_neighbours(folder: Path) -> None:
    async def together() -> list[str]:
        asked = model(folder)
        config = [GenerateConfig(max_tokens=12 + 3 * i, seed=i) for i in range(8)]
        outputs = await asyncio.gather(*(asked.generate(QUESTION, config=item) for item in config))
        return [output.completion for output in outputs]

    assert asyncio.run(together()) == [ask(folder, seed=i, max_tokens=12 + 3 * i).completion for i in range(8)]


def test_usage_counts_the_rendered_prompt_and_every_sampled_token(folder: Path) -> None:
    tokenizer = weights(folder).tokenizer
    system = [ChatMessageSystem(content="Be brief."), ChatMessageUser(content=QUESTION)]
    for asked, turns in ((QUESTION, ASKED), (system, [{"role": "system", "content": "Be brief."}, *ASKED])):
        for seed in range(6):
            output = ask(folder, asked, seed=seed, logprobs=True)
            assert output.usage is not None and output.choices[0].logprobs is not None
            assert output.usage.input_tokens == len(prompt_ids(tokenizer, turns))
            written = len(output.choices[0].logprobs.content)
            # The token that ends the text is sampled but not written.
            assert output.usage.output_tokens == written + (output.stop_reason == "stop")
            assert output.usage.total_tokens == output.usage.input_tokens + output.usage.output_tokens
            assert (written == 12) == (output.stop_reason == "max_tokens")


def test_stop_reasons(folder: Path) -> None:
    reasons = {ask(folder, seed=seed, max_tokens=40).stop_reason for seed in range(12)}
    assert reasons == {"stop", "max_tokens"}
    letters = list("abcdefghijklmnopqrstuvwxyz")
    seed = next(
        s for s in range(20) if any(letter in ask(folder, seed=s, max_tokens=200).completion for letter in "ae")
    )
    stopped = ask(folder, seed=seed, max_tokens=200, stop_seqs=letters)
    assert stopped.stop_reason == "stop" and not set(stopped.completion) & set(letters)
    assert ask(folder, seed=seed, max_tokens=200).completion.startswith(stopped.completion)


def test_a_prompt_as_long_as_the_model_has_no_answer_and_a_long_one_is_cut(folder: Path) -> None:
    length = weights(folder).max_length
    nothing = ask(folder, "x" * (length + 10))
    assert nothing.completion == "" and nothing.stop_reason == "model_length"
    room = length - len(prompt_ids(weights(folder).tokenizer, [{"role": "user", "content": ""}]))
    output = ask(folder, "x" * (room - 5), max_tokens=100, seed=3)
    assert output.stop_reason in ("model_length", "stop") and output.usage is not None
    assert output.usage.output_tokens <= 6


def test_logprobs_agree_with_transformers(folder: Path) -> None:
    loaded = weights(folder)
    output = ask(folder, logprobs=True, top_logprobs=3, max_tokens=8)
    assert output.choices[0].logprobs is not None
    content = output.choices[0].logprobs.content
    prompt = prompt_ids(loaded.tokenizer, ASKED)
    tokens = tuple(loaded.tokenizer.convert_tokens_to_ids(item.token) for item in content)
    assert loaded.tokenizer.decode(tokens, skip_special_tokens=True) == output.completion
    with plain(loaded) as reference, torch.no_grad():
        logits = torch.log_softmax(reference(torch.tensor([prompt + tokens])).logits[0].float(), -1)
    for i, (token, item) in enumerate(zip(tokens, content, strict=True)):
        row = logits[len(prompt) - 1 + i]
        assert item.logprob == pytest.approx(float(row[token]), abs=1e-3)
        assert item.top_logprobs is not None
        best = row.topk(3)
        assert [top.token for top in item.top_logprobs] == [loaded.tokenizer.decode([int(j)]) for j in best.indices]
        np.testing.assert_allclose([top.logprob for top in item.top_logprobs], best.values, atol=1e-3)
    assert ask(folder).choices[0].logprobs is None


def prompt_logprobs(output: ModelOutput) -> np.ndarray:
    found = output.choices[0].prompt_logprobs
    assert found is not None
    return np.array([item.logprob for item in found.content])


def test_prompt_logprobs_agree_with_transformers(folder: Path) -> None:
    loaded = weights(folder)
    prompt = prompt_ids(loaded.tokenizer, ASKED)
    with plain(loaded) as reference, torch.no_grad():
        logits = torch.log_softmax(reference(torch.tensor([prompt])).logits[0].float(), -1)
    output = ask(folder, prompt_logprobs=1)
    expected = [float(logits[i, token]) for i, token in enumerate(prompt[1:])]
    np.testing.assert_allclose(prompt_logprobs(output), expected, atol=1e-3)
    assert output.completion == ask(folder).completion


def test_steering_the_response_leaves_the_prompts_logprobs(folder: Path, vector: PersonaVector) -> None:
    free = prompt_logprobs(ask(folder, prompt_logprobs=1))
    body = extra(apply_steering_vectors=[named(vector)])
    np.testing.assert_allclose(prompt_logprobs(ask(folder, prompt_logprobs=1, extra_body=body)), free, atol=1e-4)


def test_several_choices_have_seeds_of_their_own(folder: Path) -> None:
    output = ask(folder, num_choices=3)
    texts = [choice.message.text for choice in output.choices]
    assert texts == [ask(folder, seed=SEED + i).completion for i in range(3)]
    assert output.usage is not None and output.usage.input_tokens == len(prompt_ids(weights(folder).tokenizer, ASKED))


def test_an_open_assistant_message_is_continued(folder: Path) -> None:
    asked = [ChatMessageUser(content=QUESTION), ChatMessageAssistant(content="It is")]
    output = ask(folder, asked)
    turns = [*ASKED, {"role": "assistant", "content": "It is"}]
    prompt = prompt_ids(weights(folder).tokenizer, turns)
    assert weights(folder).tokenizer.decode(prompt).endswith("assistant\nIt is")
    assert output.usage is not None and output.usage.input_tokens == len(prompt)


def test_tools_are_refused(folder: Path) -> None:
    tool = ToolInfo(name="search", description="Search.")
    with pytest.raises(ModelError) as error:
        asyncio.run(model(folder).generate(QUESTION, tools=[tool]))
    one_line(error, "tools")


@pytest.mark.parametrize("config", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}])
def test_impossible_sampling_is_refused_or_ignored(folder: Path, config: dict[str, Any]) -> None:
    if config == {"max_tokens": 0}:
        assert ask(folder, **config).stop_reason in ("stop", "max_tokens")
        return
    with pytest.raises(PersonaBenchError) as error:
        ask(folder, **config)
    one_line(error, next(iter(config)))


# Steering and capture


def test_steering_is_what_the_engine_does(folder: Path, vector: PersonaVector) -> None:
    values = vector.directions["persona"]
    assert steered(folder, vector, scale=2.0).completion == engine_text(folder, Intervention(2, values[2], 2.0))
    assert steered(folder, vector, scale=2.0).completion != ask(folder).completion
    assert steered(folder, vector, scale=0.0).completion == ask(folder).completion
    assert steered(folder, vector, layers=[1, 3]).completion == engine_text(
        folder, Intervention(1, values[1]), Intervention(3, values[3])
    )
    assert steered(folder, vector, layers=[1, 3], incremental=True).completion == engine_text(
        folder, Intervention(1, values[1]), Intervention(3, values[3] - values[1])
    )
    assert steered(folder, vector, operation="ablate", positions="all").completion == engine_text(
        folder, Intervention(2, values[2], operation="ablate", positions="all")
    )
    random = vector.direction("random:1")
    assert steered(folder, vector, direction="random:1", scale=2.0).completion == engine_text(
        folder, Intervention(2, random[2], 2.0)
    )


def test_rows_of_one_batch_differ(folder: Path, vector: PersonaVector) -> None:
    async def together() -> list[str]:
        asked = model(folder)
        bodies = [None, *(extra(apply_steering_vectors=[named(vector, scale=scale)]) for scale in (1.0, -1.0))]
        config = [GenerateConfig(max_tokens=12, seed=SEED, extra_body=body) for body in bodies]
        return [o.completion for o in await asyncio.gather(*(asked.generate(QUESTION, config=item) for item in config))]

    alone = [ask(folder), steered(folder, vector, scale=1.0), steered(folder, vector, scale=-1.0)]
    assert asyncio.run(together()) == [output.completion for output in alone]


def test_projections_are_the_engines(folder: Path, vector: PersonaVector) -> None:
    directions = ["persona", "random:0", "refusal"]
    request = named(vector, directions=directions, layers=[1, 4], prompt_mean=True, per_token=True)
    output = ask(folder, extra_body=extra(output_projections=request))
    assert output.completion == ask(folder).completion
    assert output.metadata is not None
    found = output.metadata["projections"]
    json.dumps(found, allow_nan=False)

    loaded = weights(folder)
    stacked = torch.stack([vector.direction(name) for name in directions])
    unit = stacked / stacked.norm(dim=-1, keepdim=True)
    row = Row(
        prompt_ids(loaded.tokenizer, ASKED),
        sampling=Sampling(12, seed=SEED),
        capture=Capture(unit, prompt_mean=True, per_token=True),
    )
    made = Engine(loaded).run([row])[0].projections
    assert made is not None and made.per_token is not None
    assert list(found) == directions
    for d, name in enumerate(directions):
        assert list(found[name]) == ["1", "4"]
        for layer in (1, 4):
            values = found[name][str(layer)]
            for position in ("prompt_last", "prompt_mean", "response_mean"):
                assert values[position] == pytest.approx(float(getattr(made, position)[d, layer]), abs=1e-3)
            np.testing.assert_allclose(values["per_token"], made.per_token[:, d, layer], atol=1e-3)
            assert values["response_mean"] == pytest.approx(np.mean(values["per_token"]), abs=1e-4)


def test_projections_are_read_after_steering(folder: Path, vector: PersonaVector) -> None:
    norm = float(vector.directions["persona"][2].norm())

    def prompt_last(*steering: dict[str, Any]) -> float:
        body = extra(apply_steering_vectors=steering, output_projections=named(vector))
        output = ask(folder, extra_body=body)
        assert output.metadata is not None
        return float(output.metadata["projections"]["persona"]["2"]["prompt_last"])

    assert prompt_last(named(vector, scale=0.5)) - prompt_last() == pytest.approx(0.5 * norm, abs=1e-3)
    assert prompt_last(named(vector, operation="ablate")) == pytest.approx(0, abs=1e-4)


BAD_STEERING: dict[str, tuple[dict[str, Any], type[PersonaBenchError], str]] = {
    "wrong hash": ({"sha256": "0" * 64}, VectorError, "000000000000"),
    "no such file": ({"file": "/none/v.safetensors"}, VectorError, "/none/v.safetensors"),
    "layer 0": ({"layers": [0]}, VectorError, "1..4"),
    "layer 5": ({"layers": [5]}, VectorError, "1..4"),
    "negative layer": ({"layers": [-1]}, VectorError, "1..4"),
    "no layers": ({"layers": []}, ModelError, "layers"),
    "unknown direction": ({"direction": "kind"}, VectorError, "kind"),
    "unknown operation": ({"operation": "multiply"}, ModelError, "operation"),
    "unknown positions": ({"positions": "last"}, ModelError, "positions"),
    "unknown key": ({"strength": 2}, ModelError, "strength"),
    "not a number": ({"scale": "much"}, ModelError, "scale"),
    "infinite": ({"scale": math.inf}, VectorError, "finite"),
}


@pytest.mark.parametrize("case", BAD_STEERING)
def test_bad_steering_is_refused(folder: Path, vector: PersonaVector, case: str) -> None:
    changes, kind, part = BAD_STEERING[case]
    with pytest.raises(kind) as error:
        steered(folder, vector, **changes)
    one_line(error, part)


def test_a_changed_vector_file_is_refused(folder: Path, vector: PersonaVector) -> None:
    steered(folder, vector)
    tiny_vector(trait="other").save(Path(vector.provenance["path"]))
    with pytest.raises(VectorError) as error:
        steered(folder, vector)
    one_line(error, vector.hash[:12])


@pytest.mark.parametrize(("n_layers", "d_model"), [(4, 31), (6, 32)])
def test_a_vector_of_another_model_is_refused(folder: Path, tmp_path: Path, n_layers: int, d_model: int) -> None:
    path = tmp_path / "other.safetensors"
    made = tiny_vector(n_layers, d_model, provenance={"path": str(path)})
    made.save(path)
    request = named(made, layers=[n_layers])
    for body in (extra(apply_steering_vectors=[request]), extra(output_projections=request)):
        with pytest.raises(PersonaBenchError) as error:
            ask(folder, extra_body=body)
        one_line(error)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"extra_arg": {}}, "extra_arg"),
        ({"extra_args": {}, "top_a": 1}, "top_a"),
        (extra(steer=[]), "steer"),
        (extra(output_projections={"file": "x"}), "output_projections"),
        (extra(score=[{"text": "x"}]), "alternatives"),
        (extra(score=[{"continuation": "x"}]), "messages"),
        (extra(score=[{"text": "x", "messages": ASKED, "continuation": "y"}]), "messages"),
        ({"extra_args": [1]}, "extra_args"),
    ],
)
def test_an_unknown_request_is_refused(folder: Path, body: dict[str, Any], part: str) -> None:
    with pytest.raises(ModelError) as error:
        ask(folder, extra_body=body)
    one_line(error, part)


# Scoring


def test_scores_are_the_engines(folder: Path, vector: PersonaVector) -> None:
    loaded = weights(folder)
    tokenizer = loaded.tokenizer
    items: list[dict[str, Any]] = [
        {"messages": ASKED, "continuation": "It is water."},
        {"messages": [{"role": "system", "content": "Be brief."}, *ASKED], "continuation": "Water."},
        {"messages": ASKED, "alternatives": ["Yes", "No"]},
        {"text": "Question: a? Answer:", "continuation": " b", "alternatives": ["c", "d"]},
        {"text": "Question: a? Answer:", "continuation": " b", "shared": 10},
    ]
    prompts = [
        prompt_ids(tokenizer, item["messages"]) if "messages" in item else tuple(tokenizer(item["text"])["input_ids"])
        for item in items
    ]
    continuations = [response_ids(tokenizer, item.get("continuation", "")) for item in items]
    for steering, interventions in (
        ([], ()),
        ([named(vector, scale=2.0)], (Intervention(2, vector.directions["persona"][2], 2.0),)),
    ):
        output = ask(folder, extra_body=extra(score=items, apply_steering_vectors=steering))
        assert output.completion == "" and output.metadata is not None and output.usage is not None
        assert output.usage.output_tokens == 0
        assert output.usage.input_tokens == sum(map(len, [*prompts, *continuations]))
        for item, prompt, continuation, score in zip(
            items, prompts, continuations, output.metadata["scores"], strict=True
        ):
            alternatives = tuple(response_ids(tokenizer, text)[0] for text in item.get("alternatives", ()))
            row = Row(prompt, continuation, alternatives, interventions=interventions)
            expected = Engine(loaded).run([row])[0]
            assert score["n_tokens"] == len(continuation)
            assert score["logprob"] == pytest.approx(float(expected.continuation_logprobs.sum()), abs=1e-3)
            np.testing.assert_allclose(score["alternatives"], expected.alternative_logprobs, atol=1e-3)


def test_an_empty_alternative_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError) as error:
        ask(folder, extra_body=extra(score=[{"messages": ASKED, "alternatives": ["Yes", ""]}]))
    one_line(error, "alternatives")


# One set of weights


def api(made: Model) -> PersonaAPI:
    assert isinstance(made.api, PersonaAPI)
    return made.api


def test_model_and_grader_share_their_weights(folder: Path) -> None:
    # Inspect makes the model of a role anew; it never hands out the one under test.
    tested, grader = api(model(folder)), api(model(folder))
    assert tested is not grader
    assert tested.loaded is grader.loaded and tested.engine is grader.engine
    assert tested.connection_key() == grader.connection_key()
    assert tested.loaded.weights_hash in tested.connection_key()
    other = api(model(folder, dtype="bfloat16"))
    assert other.loaded is not tested.loaded and other.connection_key() != tested.connection_key()
    # The same files under another name are the same weights.
    again = api(model(folder.parent / "." / folder.name))
    assert again.loaded is tested.loaded


def test_what_inspect_asks_the_provider(folder: Path) -> None:
    made = api(model(folder))
    assert made.max_connections() == 2 * made.engine.max_batch
    assert (made.max_tokens() or 0) > 0
    assert asyncio.run(made.tokenize("ab")) == list(response_ids(weights(folder).tokenizer, "ab"))
    assert asyncio.run(made.count_text_tokens("abc")) == 3


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ({"temprature": 1}, "temprature"),
        ({"dtype": "int3"}, "int3"),
        ({"load_in_8bit": True}, "load_in_8bit"),
        ({"thinking": "no"}, "thinking"),
    ],
)
def test_unknown_model_arguments_are_refused(folder: Path, args: dict[str, Any], part: str) -> None:
    with pytest.raises(ModelError) as error:
        model(folder, **args)
    one_line(error, part)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_an_unknown_device_is_refused(folder: Path, device: str) -> None:
    with pytest.raises(ModelError) as error:
        model(folder, device=device)
    one_line(error, device)


# Models that may think first


def with_template(folder: Path, target: Path, opening: str) -> Path:
    made = copy(folder, target)
    template = (made / "chat_template.jinja").read_text()
    head = "<|im_start|>assistant\n"
    assert template.count(head) == 1
    (made / "chat_template.jinja").write_text(template.replace(head, head + opening))
    return made


# As Qwen3's and Granite's have it; one without a switch.
QWEN3 = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
GRANITE = "{% if thinking %}<think>{% endif %}"
ALWAYS = "<think>\n"


@pytest.mark.parametrize(
    ("opening", "ends"), [(QWEN3, ("</think>\n\n", "assistant\n")), (GRANITE, ("assistant\n", "<think>"))]
)
def test_thinking_is_off_unless_asked_for(folder: Path, tmp_path: Path, opening: str, ends: tuple[str, str]) -> None:
    thinker = with_template(folder, tmp_path / "m", opening)
    tokenizer = weights(thinker).tokenizer
    for args, end in (({}, ends[0]), ({"thinking": True}, ends[1])):
        asked = api(model(thinker, **args))
        prompts = [asked._prompt(ASKED), asked.score_row(ScoreItem(messages=ASKED, continuation="a")).prompt]
        assert prompts[0] == prompts[1] == prompt_ids(tokenizer, ASKED, bool(args))
        assert tokenizer.decode(prompts[0]).endswith(end)
    assert prompt_ids(tokenizer, ASKED) != prompt_ids(tokenizer, ASKED, True)


def test_templates_without_that_switch_are_asked_as_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, asked = tiny_tokenizer(), []
    real = tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda turns, **o: asked.append(o) or real(turns, **o))
    assert prompt_ids(tokenizer, ASKED) == prompt_ids(tokenizer, ASKED, True)
    assert asked == [{"tokenize": False, "add_generation_prompt": True}] * 2


def test_a_model_that_thinks_all_the_same_is_warned_of_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What Inspect traces is none of ours.
    caplog.set_level("WARNING")
    ask(with_template(folder, tmp_path / "off", QWEN3))
    assert not caplog.messages
    opened, said = with_template(folder, tmp_path / "opened", ALWAYS), copy(folder, tmp_path / "said")
    monkeypatch.setattr(weights(said).tokenizer, "decode", lambda *_, **__: "<think>\nWell")
    for asked in (opened, said):
        caplog.clear()
        assert ask(asked).completion and ask(asked, seed=1).completion
        (warning,) = caplog.messages
        assert str(asked) in warning and "thinks before it answers" in warning


# Loading


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def refused(name: str | Path, *parts: str) -> None:
    with pytest.raises(ModelError) as error:
        load(str(name), dtype="float32")
    one_line(error, *parts)


@pytest.mark.parametrize("name", ["smollm3", "", ".", "./none", "/none/at/all", "a/b/c", "model.gguf"])
def test_an_unknown_name_is_refused(own_cache: Path, tmp_path: Path, monkeypatch: Any, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    refused(name)
    assert not own_cache.exists()


def test_the_home_of_nobody_is_refused(own_cache: Path) -> None:
    refused("~none/x", "~none/x")


def test_an_unknown_name_shows_the_catalogue(own_cache: Path) -> None:
    refused("smollm3", "smollm3", "smollm2-135m", "qwen2.5-coder-0.5b", ".gguf")


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None  # type: ignore[func-returns-value]


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return run


def configure(**changes: Any) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        held = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**held, **changes}))

    return run


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop_layer(folder: Path) -> None:
    file = folder / "model.safetensors"
    held = {name: value for name, value in load_file(file).items() if "layers.2." not in name}
    save_file(held, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil",
    [
        remove("config.json"),
        remove("model.safetensors"),
        remove("tokenizer.json", "tokenizer_config.json"),
        write("config.json", "{"),
        write("config.json", "{}"),
        write("tokenizer.json", "{"),
        configure(model_type="none-such"),
        write("model.safetensors", b"garbage" * 50),
        cut,
        configure(hidden_size=64),
        drop_layer,
    ],
)
def test_a_broken_folder_is_refused(folder: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    broken = copy(folder, tmp_path / "broken")
    spoil(broken)
    refused(broken, str(broken))


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_pickled_weights_are_neither_read_nor_run(folder: Path, tmp_path: Path) -> None:
    pickled = copy(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    mark = tmp_path / "mark"
    torch.save({"model.embed_tokens.weight": Bomb(mark)}, pickled / "pytorch_model.bin")
    refused(pickled, str(pickled))
    assert not mark.exists()


def test_a_folders_own_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    theirs = copy(folder, tmp_path / "theirs")
    mark = tmp_path / "mark"
    (theirs / "theirs.py").write_text(f"open({str(mark)!r}, 'w')\n")
    configure(model_type="theirs", auto_map={"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"})(theirs)
    refused(theirs, str(theirs))
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage" * 100,
        b"GGUF",
        b"GGUF\x03\x00\x00\x00" + b"\xff" * 64,
    ],
)
def test_a_broken_gguf_file_is_refused(own_cache: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    refused(path, str(path))


def test_a_model_without_a_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    base = copy(folder, tmp_path / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    (base / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(base)
    with pytest.raises(ModelError) as error:
        ask(base)
    one_line(error, "chat template")


def hub_cache(folder: Path, target: Path, name: str) -> None:
    """The folder as the Hub's own cache keeps it."""
    held, commit = target / f"models--{name.replace('/', '--')}", "a" * 40
    copy(folder, held / "snapshots" / commit)
    (held / "refs").mkdir()
    (held / "refs" / "main").write_text(commit)


def test_a_hub_id_is_read_from_the_local_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub_cache(folder, tmp_path / "hub", "someone/tiny")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = load("someone/tiny", dtype="float32")
    assert found.source == "hub" and found.weights_hash == weights(folder).weights_hash
    for name in ("someone/other", "some one/tiny", "someone/tiny--x..y"):
        with pytest.raises(ModelError) as error:
            load(name, dtype="float32")
        one_line(error, name)
    refused("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m")


def test_a_snapshot_that_is_only_partly_there_is_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone may have looked at its config, or a download was cut off."""
    hub_cache(folder, tmp_path / "hub", "someone/tiny")
    (held,) = (tmp_path / "hub" / "models--someone--tiny" / "snapshots").iterdir()
    (held / "model.safetensors").unlink()
    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append(options)
        if not options.get("local_files_only") and "*.safetensors" in options["allow_patterns"] and reachable:
            (held / "model.safetensors.index.json").unlink(missing_ok=True)
            shutil.copy(folder / "model.safetensors", held)
        return str(held)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    reachable = False
    assert read_shape("someone/tiny").n_layers == 4 and len(asked) == 1  # of which a config is all
    refused("someone/tiny", "model.safetensors", "Hub")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (held / "model.safetensors.index.json").write_text(json.dumps(index))
    (held / "model-00001-of-00002.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    refused("someone/tiny", "model-00002-of-00002.safetensors")
    (held / "model.safetensors.index.json").write_text("{")
    refused("someone/tiny", "index.json is broken")
    (held / "model.safetensors.index.json").unlink()
    (held / "model-00001-of-00002.safetensors").unlink()
    reachable = True
    asked.clear()
    assert load("someone/tiny", dtype="float32").weights_hash == weights(folder).weights_hash
    assert [options.get("local_files_only", False) for options in asked] == [True, False]
    assert all("consolidated*" in options["ignore_patterns"] for options in asked)


def test_gpus_that_only_emulate_bfloat16_compute_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert loading.default_dtype(torch.device("cuda")) == torch.float16


def test_a_folder_is_loaded_once_and_hashed_by_content(folder: Path, tmp_path: Path) -> None:
    assert weights(folder) is weights(folder)
    twin = weights(copy(folder, tmp_path / "twin"))
    assert twin is not weights(folder) and twin.weights_hash == weights(folder).weights_hash
    assert twin.source == "folder" and twin.n_layers == 4 and twin.d_model == 32
    assert loading.hash_weights(tmp_path / "twin") == twin.weights_hash
    held = load_file(tmp_path / "twin" / "model.safetensors")
    name = next(iter(held))
    save_file({**held, name: held[name] + 1}, tmp_path / "twin" / "model.safetensors", metadata={"format": "pt"})
    assert loading.hash_weights(tmp_path / "twin") != twin.weights_hash


def test_a_failed_request_leaves_the_engine_working(folder: Path, vector: PersonaVector) -> None:
    async def mixed() -> list[Any]:
        asked = model(folder)
        bad = GenerateConfig(extra_body=extra(apply_steering_vectors=[named(vector, layers=[9])]))
        waiting: list[Awaitable[ModelOutput]] = [
            asked.generate(QUESTION, config=GenerateConfig(max_tokens=12, seed=SEED)),
            asked.generate(QUESTION, config=bad),
            asked.generate(QUESTION, config=GenerateConfig(max_tokens=12, seed=1)),
        ]
        return list(await asyncio.gather(*waiting, return_exceptions=True))

    first, error, second = asyncio.run(mixed())
    assert isinstance(error, VectorError)
    assert first.completion == ask(folder).completion and second.completion == ask(folder, seed=1).completion


def test_alternatives_that_begin_alike_are_told_apart_by_the_next_token(folder: Path) -> None:
    item = {"text": "Question: a? Answer:", "alternatives": [" c", " d"]}
    plain = {"text": "Question: a? Answer: ", "alternatives": ["c", "d"]}
    first, second = (ask(folder, extra_body=extra(score=[one])).metadata for one in (item, plain))
    assert first is not None and second is not None
    assert first["scores"][0]["alternatives"] == second["scores"][0]["alternatives"]


def test_identical_alternatives_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError):
        ask(folder, extra_body=extra(score=[{"messages": ASKED, "alternatives": ["Yes", "Yes"]}]))


@pytest.mark.parametrize(("answer", "part"), [("", "token"), ("x" * 5000, "context")])
def test_what_cannot_be_read_is_refused(folder: Path, answer: str, part: str) -> None:
    with pytest.raises(DataError) as error:
        asyncio.run(api(model(folder)).read_answer(QUESTION, answer))
    one_line(error, part)
    assert asyncio.run(api(model(folder)).read_answer(QUESTION, "It is water.")).shape == (32,)
