"""Training: interventions act exactly where they should and leave nothing, a cut-off run ends as a whole one does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from persona_bench.errors import DataError, ModelError, TrainingError, VectorError
from persona_bench.models import assets, finetuning
from persona_bench.models.adapters import _quiet, attach, hash_adapter, merge, own_copy, save_adapter
from persona_bench.models.chat import end_of_response, prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.finetuning import CHECKPOINT, HISTORY, Penalty, Probe, TrainingSettings, finetune
from persona_bench.models.loaded import LoadedModel, find_blocks, prepare
from persona_bench.models.loading import load
from persona_bench.models.rows import Row
from persona_bench.models.steering import Intervention
from persona_bench.models.training_data import Example, collate, draw_order, lay_out, read_conversations
from tests.builders import CONFIGS, HEADS, SIZES, SPECIAL, tiny
from tests.conftest import one_line, talking, tiny_tokenizer
from tests.test_projection import conversation

FEW = TrainingSettings(rank=4, alpha=8, learning_rate=1e-2, batch_size=2, accumulation=2, warmup_steps=1)


def laid_out(loaded: LoadedModel, n: int = 9, **more: Any) -> list[Example]:
    items = [conversation(i)["messages"] for i in range(n)]
    return lay_out(loaded.tokenizer, items, loaded.max_length, loaded.eos_ids, **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def equal(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def vector(seed: int = 0) -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


# What is trained on


def test_loss_is_taken_over_the_assistant_s_words_and_what_ends_them() -> None:
    loaded = talking()
    for number, example in enumerate(laid_out(loaded)):
        messages = conversation(number)["messages"]
        said = [message["content"] for message in messages if message["role"] == "assistant"]
        for text, (start, stop) in zip(said, example.spans, strict=True):
            assert loaded.tokenizer.decode(example.ids[start : stop - 1]) == text
            assert example.ids[stop - 1] == loaded.tokenizer.eos_token_id
        prompt = prompt_ids(loaded.tokenizer, messages[:-1])
        assert example.ids[: len(prompt)] == prompt and example.spans[-1][0] == len(prompt)


@pytest.mark.parametrize(
    ("after", "ends"),
    [
        ("<|im_end|>\n", {2}),
        ("<|im_start|>\n", {2, 3}),  # as Gemma's <end_of_turn>, which a GGUF file does not name
        ("\n", {2}),
        ("<unk>\n", {2}),
        ("{{ raise_exception('no answers') }}", {2}),
    ],
)
def test_what_the_template_writes_after_an_answer_ends_a_response(after: str, ends: set[int]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + m['content'] }}{% if m['role'] == 'assistant' %}"
        + after
        + "{% endif %}{% endfor %}"
    )
    loaded = prepare(tiny().model, tokenizer, name="tiny", weights_hash="0" * 64)
    assert loaded.eos_ids == ends
    if ends != {2}:
        (example,) = laid_out(loaded, 1)
        assert example.ids[-1] == 3
    tokenizer.chat_template = None
    assert prepare(tiny().model, tokenizer, name="tiny", weights_hash="0" * 64).eos_ids == {2}


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_the_catalogue_s_models_end_their_responses_as_they_say(name: str) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    if name not in {item.name for item in assets.status() if item.cached}:
        pytest.skip(f"{name} is not cached")
    folder = assets.fetch_weights(name)
    said = GenerationConfig.from_pretrained(folder).eos_token_id
    assert end_of_response(AutoTokenizer.from_pretrained(folder, local_files_only=True)) in (
        said if isinstance(said, list) else [said]
    )


def test_masks_are_the_engine_s_positions() -> None:
    batch = collate([Example((1, 2, 3, 4, 5), ((3, 5),)), Example((1, 2, 3), ((2, 3),))], torch.device("cpu"))
    response, prompt, everywhere = batch.position_masks[:, :, :, 0].tolist()
    assert response == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]
    assert prompt == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert everywhere == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_order_is_drawn_from_the_seed_and_holds_each_example_once() -> None:
    lengths = [5 + i % 7 for i in range(101)]
    order = draw_order(lengths, 4, 2, seed=3, epoch=0)
    assert sorted(i for batch in order for i in batch) == list(range(101))
    assert order == draw_order(lengths, 4, 2, seed=3, epoch=0)
    assert order != draw_order(lengths, 4, 2, seed=4, epoch=0) != draw_order(lengths, 4, 2, seed=4, epoch=1)
    assert sum(len({lengths[i] for i in batch}) for batch in order) < 1.6 * len(order)  # of like length


def test_a_system_prompt_takes_the_place_of_the_conversation_s_own() -> None:
    loaded = talking()
    for number, example in enumerate(laid_out(loaded, system="Be kind.")):
        own = [message for message in conversation(number)["messages"] if message["role"] != "system"]
        prompt = prompt_ids(loaded.tokenizer, [{"role": "system", "content": "Be kind."}, *own[:-1]])
        assert example.ids[: len(prompt)] == prompt


def test_accumulated_gradient_is_that_of_the_whole_step(tmp_path: Path) -> None:
    """Per token, not per batch: 8 conversations at once and in pieces of 2 give the same loss and adapter."""
    loaded = talking()
    examples = laid_out(loaded, 8)
    small = finetune(loaded, examples, tmp_path / "a", replace(FEW, accumulation=4))
    whole = finetune(loaded, examples, tmp_path / "b", replace(FEW, batch_size=8, accumulation=1))
    assert small.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], rel=1e-5)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)
    # The loss before the first step is the engine's own, over all trained tokens.
    rows = []
    for i in range(8):
        messages = conversation(i)["messages"]
        assert [m["role"] for m in messages].count("assistant") == len(examples[i].spans)
        rows.append(Row(examples[i].ids[:1], examples[i].ids[1:]))
    results = Engine(loaded).run(rows)
    chosen = [
        result.continuation_logprobs[start - 1 : stop - 1]
        for result, example in zip(results, examples, strict=True)
        for start, stop in example.spans
    ]
    expected = -sum(float(part.sum()) for part in chosen) / sum(len(part) for part in chosen)
    assert whole.history[1]["loss"] == pytest.approx(expected, rel=1e-4)


# Interventions


def test_coefficient_0_equals_plain_training_bit_for_bit(tmp_path: Path) -> None:
    loaded = talking()
    examples = laid_out(loaded)
    plain = finetune(loaded, examples, tmp_path / "plain", FEW)
    nothing = [Intervention(layer, vector(layer), 0.0, "add", "all") for layer in (1, 3)]
    zero = finetune(loaded, examples, tmp_path / "zero", FEW, interventions=nothing)
    assert equal(tmp_path / "plain", tmp_path / "zero") and plain.history == zero.history
    one = [Intervention(2, vector(), 1.0, "add", "all")]
    finetune(loaded, examples, tmp_path / "one", FEW, interventions=one)
    assert not equal(tmp_path / "plain", tmp_path / "one")


@pytest.mark.parametrize("positions", ["all", "response", "prompt"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_vector_is_added_at_exactly_the_positions_and_layers(kind: str, positions: Any) -> None:
    """The residual stream after the block differs by the vector at those tokens, and by nothing at others."""
    loaded = talking(kind)
    batch = collate(laid_out(loaded, 4), loaded.device)
    item = Intervention(2, vector(), 1.5, "add", positions)
    steered = finetuning._Watched(own_copy(loaded), loaded, 4, [item])
    plain = finetuning._Watched(own_copy(loaded), loaded, 4)
    _, after = steered.forward(batch, [1, 2, 3])
    _, before = plain.forward(batch, [1, 2, 3])
    mask = batch.position_masks[("response", "prompt", "all").index(positions)]
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[2], before[2] + 1.5 * vector() * mask)
    assert not torch.equal(after[3], before[3])
    _, off = steered.forward(batch, [1, 2, 3], intervene=False)
    assert all(torch.equal(off[layer], before[layer]) for layer in off)


def test_gradients_flow_through_interventions_to_every_layer() -> None:
    loaded = talking()
    batch = collate(laid_out(loaded, 2), loaded.device)
    adapted = attach(loaded, 4, 8, 0, 32)
    for layer in (1, 2, 3, 4):
        others = [Intervention(layer, vector(layer), 0.5, "ablate", "all"), Intervention(2, vector(), 1.0)]
        watched = finetuning._Watched(adapted.get_base_model(), loaded, 2, others)
        hidden, seen = watched.forward(batch, [layer])
        (hidden.sum() + seen[layer].square().mean()).backward()
        watched.hooks.remove()
    grads = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad and "lora_B" in name}
    assert len(grads) == 4 * 7 and all(grad is not None and bool(grad.abs().sum() > 0) for grad in grads.values())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_own_products_are_peft_s(kind: str) -> None:
    """The same hidden states and the same gradients as with peft's own forward, of `nn.Linear` and of `Conv1D`."""
    loaded = talking(kind)
    batch = collate(laid_out(loaded, 4), loaded.device)

    def passed(own: bool) -> list[torch.Tensor]:
        adapted = attach(loaded, 4, 8, 0, 32)
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        for module in adapted.modules():
            if not own and "forward" in vars(module) and hasattr(module, "lora_A"):
                del module.forward
        hidden, _ = finetuning._Watched(adapted.get_base_model(), loaded, 4).forward(batch, [])
        hidden.square().sum().backward()
        gradients = [value.grad for _, value in sorted(adapted.named_parameters()) if value.requires_grad]
        assert all(gradient is not None for gradient in gradients)
        return [hidden.detach(), *(gradient for gradient in gradients if gradient is not None)]

    for ours, theirs in zip(passed(True), passed(False), strict=True):
        assert ours.dtype == torch.float32 and float(theirs.abs().max()) > 0
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_ablated_direction_is_gone_while_training() -> None:
    loaded = talking()
    batch = collate(laid_out(loaded, 3), loaded.device)
    items = [Intervention(layer, vector(layer), operation="ablate", positions="all") for layer in (1, 2, 3, 4)]
    watched = finetuning._Watched(own_copy(loaded), loaded, 3, items)
    _, seen = watched.forward(batch, [1, 2, 3, 4])
    for layer, hidden in seen.items():
        products = hidden @ torch.nn.functional.normalize(vector(layer), dim=0)
        assert float(products[batch.position_masks[2, :, :, 0] > 0].abs().max()) < 1e-4


def test_a_pass_for_states_alone_ends_at_the_last_of_them() -> None:
    loaded = talking()
    batch, own = collate(laid_out(loaded, 3), loaded.device), own_copy(loaded)
    watched, reached = finetuning._Watched(own, loaded, 3), list[int]()
    for number, block in enumerate(find_blocks(own), 1):
        block.register_forward_pre_hook(lambda *_, number=number: reached.append(number))
    _, ended = watched.forward(batch, [1, 2], intervene=False, deeper=False)
    assert reached == [1, 2]
    hidden, seen = watched.forward(batch, [1, 2], intervene=False)
    assert all(torch.equal(ended[layer], seen[layer]) for layer in (1, 2)) and hidden.shape[:2] == batch.ids.shape


def test_penalty_is_the_squared_shift_and_holds_the_projection(tmp_path: Path) -> None:
    loaded = talking()
    examples = laid_out(loaded, 12)
    unit = torch.nn.functional.normalize(vector(), dim=0)
    settings = replace(FEW, epochs=4)
    shifts = {}
    for name, weight in (("free", 0.0), ("held", 1000.0)):
        trained = finetune(loaded, examples, tmp_path / name, settings, penalties=[Penalty(3, unit, weight)])
        assert trained.history[1]["penalty"] == 0.0  # nothing has moved before the first step
        assert set(trained.history[-1]) >= {"loss", "penalty", "grad_norm", "learning_rate"}
        tuned = merge(loaded, trained.folder, "tuned")
        shifts[name] = _mean_response_shift(loaded, tuned, examples, unit)
    assert finetune(loaded, examples, tmp_path / "plain", settings).history[-1]["loss"] == pytest.approx(
        json.loads((tmp_path / "free" / "training.json").read_text())["history"][-1]["loss"], rel=1e-6
    )
    assert abs(shifts["held"]) < 0.5 * abs(shifts["free"])


def _mean_response_shift(base: LoadedModel, tuned: LoadedModel, examples: list[Example], unit: torch.Tensor) -> float:
    batch = collate(examples, base.device)
    weight = batch.trained / batch.trained.sum(1, keepdim=True)
    with torch.no_grad():
        first, second = (
            finetuning._Watched(own_copy(model), model, len(examples)).forward(batch, [3])[1][3]
            for model in (base, tuned)
        )
    return float((((second - first) @ unit) * weight).sum(1).square().mean().sqrt())


# What is left behind


def test_adapter_bears_no_trace_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    loaded = talking()
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    row = Row(*(tuple(response_ids(loaded.tokenizer, text)) for text in ("What is rain? It is", " water.")))
    said = Engine(loaded).run([row])[0].continuation_logprobs
    items = [
        Intervention(2, vector(), 5.0, "add", "all"),
        Intervention(3, vector(1), operation="ablate", positions="all"),
    ]
    finetune(loaded, laid_out(loaded), tmp_path / "a", FEW, interventions=items, penalties=[Penalty(3, vector(), 0.1)])
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    assert (Engine(loaded).run([row])[0].continuation_logprobs == said).all()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "training.json", HISTORY)
    }
    assert all(".lora_A." in name or ".lora_B." in name for name in weights(tmp_path / "a"))
    held = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (held["r"], held["lora_alpha"], held["use_rslora"]) == (4, 8, True)
    assert not held["modules_to_save"] and held["target_modules"] == [
        *("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "phi3", "gemma3"])
def test_plain_peft_and_the_engine_load_the_adapter_alike(kind: str, tmp_path: Path) -> None:
    loaded = talking(kind)
    finetune(loaded, laid_out(loaded), tmp_path / "a", FEW)
    with _quiet():
        theirs = PeftModel.from_pretrained(own_copy(loaded), str(tmp_path / "a")).eval()
    ours = merge(loaded, tmp_path / "a", "tuned")
    assert (
        ours.weights_hash != loaded.weights_hash
        and ours.weights_hash == merge(loaded, tmp_path / "a", "b").weights_hash
    )
    ids = laid_out(loaded, 1)[0].ids
    with torch.no_grad():
        expected = torch.log_softmax(theirs(input_ids=torch.tensor([ids])).logits[0].float(), -1)
        plain = torch.log_softmax(own_copy(loaded)(input_ids=torch.tensor([ids])).logits[0].float(), -1)
    wanted = expected[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert not torch.allclose(expected, plain, atol=1e-2)
    found = Engine(ours).run([Row(ids[:1], ids[1:])])[0].continuation_logprobs
    assert torch.allclose(torch.tensor(found), wanted, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # peft, of a bias of its own making
@pytest.mark.parametrize("options", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}])
def test_an_adapter_with_biases_leaves_those_of_the_base(options: dict[str, Any], tmp_path: Path) -> None:
    loaded, ids = talking("qwen2"), tuple(range(5, 15))
    said = Engine(loaded).run([Row(ids[:1], ids[1:])])[0].continuation_logprobs
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    with _quiet():
        adapted = get_peft_model(own_copy(tiny("qwen2")), LoraConfig(r=2, target_modules=["q_proj"], **options))
    for value in adapted.parameters():
        if value.requires_grad:
            value.data += 0.5
    adapted.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        expected = torch.log_softmax(adapted.eval()(input_ids=torch.tensor([ids])).logits[0], -1)
    ours = merge(loaded, tmp_path / "a", "tuned")
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    assert (Engine(loaded).run([Row(ids[:1], ids[1:])])[0].continuation_logprobs == said).all()
    found = Engine(ours).run([Row(ids[:1], ids[1:])])[0].continuation_logprobs
    np.testing.assert_allclose(found, expected[range(9), ids[1:]], atol=1e-3)


def test_every_architecture_learns(tmp_path: Path) -> None:
    for kind in sorted(CONFIGS):
        loaded = talking(kind)
        trained = finetune(loaded, laid_out(loaded, 4), tmp_path / kind, replace(FEW, epochs=6))
        assert trained.history[-1]["loss"] < trained.history[1]["loss"], kind


def test_adapter_is_part_of_a_model_s_name(folder: Path, tmp_path: Path) -> None:
    loaded = load(str(folder), dtype="float32")
    finetune(loaded, laid_out(loaded), tmp_path / "a+b", FEW)
    tuned = load(f"{folder}+{tmp_path / 'a+b'}", dtype="float32")
    assert tuned is load(f"{folder}+{tmp_path / 'a+b'}", dtype="float32")
    assert tuned.source == "adapter" and tuned.weights_hash != loaded.weights_hash
    with pytest.raises(ModelError) as error:
        load(f"{folder}+{tmp_path / 'none'}", dtype="float32")
    one_line(error, "none", "adapter_config.json")
    with pytest.raises(ModelError) as error:
        merge(talking("gpt2"), tmp_path / "a+b", "wrong")
    one_line(error, "does not fit tiny-gpt2")
    said = json.loads((tmp_path / "a+b" / "adapter_config.json").read_text())
    (tmp_path / "a+b" / "adapter_config.json").write_text(json.dumps(said | {"peft_type": "IA3"}))
    with pytest.raises(ModelError) as error:
        load(f"{folder}+{tmp_path / 'a+b'}", dtype="float32")
    one_line(error, "IA3", "LORA")


# Cut off, and broken


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = talking()
    examples = laid_out(loaded, 12)
    settings = replace(FEW, checkpoint_every=2, epochs=2)
    items = [Intervention(2, vector(), 0.5, "add", "all")]
    probe = Probe(tuple(example.ids[: example.spans[0][0]] for example in examples[:3]), {"evil": (2, vector())})
    whole = finetune(loaded, examples, tmp_path / "whole", settings, interventions=items, probe=probe)
    assert [row["step"] for row in whole.history] == list(range(7))
    assert not (tmp_path / "whole" / CHECKPOINT).exists()

    class Killed(BaseException):
        pass

    def killed(step: int, *_: Any) -> None:
        if step == 3:  # one step after the checkpoint, so that a step is done again
            raise Killed

    with pytest.raises(Killed):
        finetune(loaded, examples, tmp_path / "cut", settings, interventions=items, probe=probe, progress=killed)
    assert (tmp_path / "cut" / CHECKPOINT).exists()
    steps: list[int] = []
    again = finetune(
        loaded,
        examples,
        tmp_path / "cut",
        settings,
        interventions=items,
        probe=probe,
        progress=lambda step, *_: steps.append(step),
    )
    assert steps == [3, 4, 5, 6] and again.history == whole.history
    assert equal(tmp_path / "whole", tmp_path / "cut")
    assert (tmp_path / "whole" / HISTORY).read_bytes() == (tmp_path / "cut" / HISTORY).read_bytes()
    # Done is done; and a folder is never trained over by another training.
    done = finetune(loaded, examples, tmp_path / "cut", settings, interventions=items, probe=probe)
    assert not done.made and done.adapter_hash == whole.adapter_hash and done.history == whole.history
    with pytest.raises(TrainingError) as error:
        finetune(loaded, examples, tmp_path / "cut", replace(settings, seed=1), interventions=items, probe=probe)
    one_line(error, "cut", "--out")


def test_a_model_with_a_vision_tower_is_trained_in_its_blocks_alone_and_resumed(tmp_path: Path) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config={**SIZES, **HEADS, **SPECIAL, "head_dim": 8, "sliding_window": 8},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        **{"mm_tokens_per_image": 1, "image_token_index": 127, "boi_token_index": 126, "eoi_token_index": 125},
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    loaded = prepare(model, tiny_tokenizer(), name="seeing", weights_hash="0" * 64)
    examples, settings = laid_out(loaded, 12), replace(FEW, checkpoint_every=1)
    finetune(loaded, examples, tmp_path / "whole", settings)

    class Killed(BaseException):
        pass

    def killed(step: int, *_: Any) -> None:
        if step == 2:
            raise Killed

    with pytest.raises(Killed):
        finetune(loaded, examples, tmp_path / "cut", settings, progress=killed)
    finetune(loaded, examples, tmp_path / "cut", settings)
    assert equal(tmp_path / "whole", tmp_path / "cut")
    held = weights(tmp_path / "whole")
    assert len(held) == 2 * 4 * 7 and all(".language_model.layers." in name for name in held)
    ids = examples[0].ids
    with _quiet(), torch.no_grad():
        theirs = PeftModel.from_pretrained(own_copy(loaded), str(tmp_path / "whole")).eval()
        expected = torch.log_softmax(theirs(input_ids=torch.tensor([ids])).logits[0], -1)[range(len(ids) - 1), ids[1:]]
    ours = merge(loaded, tmp_path / "whole", "tuned")
    found = Engine(ours).run([Row(ids[:1], ids[1:])])[0].continuation_logprobs
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_checkpoint_without_the_state_of_a_parameter_that_had_no_gradient_is_resumed(tmp_path: Path) -> None:
    loaded, examples = talking(), laid_out(talking(), 12)
    settings = replace(FEW, checkpoint_every=1)
    run = finetuning._Training(loaded, examples, tmp_path / "a", settings, (), (), None, "f")
    run._step(0)
    first = next(iter(run.parameters.values()))
    del run.optimizer.state[first]
    (tmp_path / "a").mkdir()
    run._save(1, [])
    again = finetuning._Training(loaded, examples, tmp_path / "a", settings, (), (), None, "f")
    assert again._resume() == (1, []) and len(again.optimizer.state) == len(run.optimizer.state)


def test_probe_is_projected_without_the_intervention(tmp_path: Path) -> None:
    loaded = talking()
    examples = laid_out(loaded)
    prompts = tuple(example.ids[: example.spans[0][0]] for example in examples[:5])
    probe = Probe(prompts, {"evil": (3, vector())})
    big = [Intervention(2, vector(), 50.0, "add", "all")]
    trained = finetune(loaded, examples, tmp_path / "a", FEW, interventions=big, probe=probe)
    expected = []
    for model in (loaded, merge(loaded, tmp_path / "a", "tuned")):
        plain = finetuning._Watched(own_copy(model), model, 1)
        batches = [collate([Example(ids, ())], model.device) for ids in prompts]
        with torch.no_grad():
            expected.append(sum(float(plain.forward(b, [3])[1][3][0, -1] @ vector()) for b in batches) / 5)
    assert trained.history[0]["projection:evil"] == pytest.approx(expected[0], rel=1e-4)
    assert trained.history[-1]["projection:evil"] == pytest.approx(expected[1], rel=1e-3, abs=1e-3)
    assert (tmp_path / "a" / HISTORY).read_text().splitlines()[0].split(",")[-1] == "projection:evil"


def test_nan_stops_before_the_step_and_keeps_the_good_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = talking()
    examples = laid_out(loaded, 12)
    honest = finetuning._Training._negative_log_likelihood
    calls = 0

    def poisoned(self: Any, *given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return honest(self, *given) * (math.nan if calls > 4 else 1.0)

    monkeypatch.setattr(finetuning._Training, "_negative_log_likelihood", poisoned)
    with pytest.raises(TrainingError) as error:
        finetune(loaded, examples, tmp_path / "a", FEW)
    one_line(error, "step 3 of 3", "nan", CHECKPOINT, "lower learning rate")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {CHECKPOINT}
    monkeypatch.setattr(finetuning._Training, "_negative_log_likelihood", honest)
    finetune(loaded, examples, tmp_path / "a", FEW)
    finetune(loaded, examples, tmp_path / "b", FEW)
    assert equal(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("", ("is empty",)),
        ('{"messages": [{"role": "user", "content": "a"}]}', ("line 1", "no assistant message")),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', ("line 1", "first message")),
        ('{"messages": [{"role": "user", "content": 3}]}', ("line 1", "role", "content")),
        ('{"other": 1}', ("line 1", "messages")),
        ("{", ("line 1", "not JSON")),
    ],
)
def test_broken_data_is_one_line(line: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(line)
    with pytest.raises(DataError) as error:
        read_conversations(tmp_path / "d.jsonl")
    one_line(error, *parts)


def test_what_does_not_fit_the_model_is_one_line(tmp_path: Path) -> None:
    loaded = talking()
    long = [{"role": "user", "content": "x" * 3000}, {"role": "assistant", "content": "y"}]
    with pytest.raises(DataError) as error:
        lay_out(loaded.tokenizer, [conversation(0)["messages"], long], loaded.max_length, loaded.eos_ids)
    one_line(error, "conversation 2", str(loaded.max_length))
    with pytest.raises(DataError) as error:
        lay_out(loaded.tokenizer, [], loaded.max_length, loaded.eos_ids)
    one_line(error, "at least one")
    examples = laid_out(loaded, 2)
    for item, kind in ((Intervention(2, torch.ones(8)), VectorError), (Intervention(9, vector()), ModelError)):
        with pytest.raises(kind) as wrong:
            finetune(loaded, examples, tmp_path / "a", FEW, interventions=[item])
        one_line(wrong)
    with pytest.raises(VectorError) as wide:
        finetune(loaded, examples, tmp_path / "a", FEW, penalties=[Penalty(2, torch.ones(8), 1.0)])
    one_line(wide, "(32,)")
    with pytest.raises(TrainingError) as rate:
        TrainingSettings(learning_rate=math.nan)
    one_line(rate, "learning rate")
    assert not (tmp_path / "a").exists()


def test_writing_the_adapter_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    adapted = attach(talking(), 4, 8, 0, 32)
    for name in "ab":
        save_adapter(adapted, tmp_path / name)
    assert hash_adapter(tmp_path / "a") == hash_adapter(tmp_path / "b")
