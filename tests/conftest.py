"""What several test modules share: a tiny tokenizer, a tiny model folder, rollouts, and a cache of the test's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from persona_bench.models.loaded import LoadedModel
from persona_bench.vectors.vector import DIRECTIONS, PersonaVector
from tests.builders import SIZES, tiny

TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings of Inspect's own making that a test cannot mend."""
    for named in ("The 'initial' parameter is deprecated:DeprecationWarning", "Unclosed <Memory:ResourceWarning"):
        config.addinivalue_line("filterwarnings", f"ignore:{named}")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A token a character, as many as the tiny models know; its special ids are those of `tests.builders`."""
    special = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>", "<unk>"]
    characters = ["\n", *map(chr, range(32, 127)), *map(chr, range(0xC0, 0x100))]
    vocabulary = {token: index for index, token in enumerate([*special, *characters][: SIZES["vocab_size"]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def talking(kind: str = "llama", seed: int = 0) -> LoadedModel:
    """A tiny model with the tiny tokenizer."""
    return replace(tiny(kind, seed), tokenizer=tiny_tokenizer())


def tiny_vector(n_layers: int = 4, d_model: int = 32, trait: str = "evil", **changes: Any) -> PersonaVector:
    """A random vector with every direction, of the shape of a tiny model."""
    generator = torch.Generator().manual_seed(5)
    values: dict[str, Any] = {
        "directions": {name: torch.randn(n_layers + 1, d_model, generator=generator) for name in DIRECTIONS},
        "residual_norms": torch.rand(n_layers + 1, generator=generator) + 5,
        "provenance": {"counts": {"positive": {"kept": 9}, "negative": {"kept": 8}}, "warning": ""},
    }
    return PersonaVector(trait, **{**values, **changes})


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, so that nothing reaches the user's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PERSONA_BENCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def _saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny().model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(_saved: Path, own_cache: Path) -> Path:
    """A transformers folder with the tiny Llama and the tiny tokenizer; load it in float32."""
    return _saved


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two threads cost more than they give on tiny models, most of all on a busy machine."""
    before = torch.get_num_threads()
    if not any(request.node.get_closest_marker(name) for name in ("weights", "long")):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mock models count tokens with tiktoken, which downloads its tables."""
    from inspect_ai.model import ModelAPI

    async def count(_self: Any, text: str) -> int:
        return len(text.split())

    monkeypatch.setattr(ModelAPI, "count_text_tokens", count)


def one_line(error: pytest.ExceptionInfo[BaseException], *parts: str) -> None:
    """A message of one line that holds every part."""
    message = str(error.value)
    assert message and "\n" not in message
    for part in parts:
        assert part in message


def first_token(**weights: float) -> Callable[..., Any]:
    """A mock grader: top_logprobs of the first token are `weights` (token -> probability; `_55` for the token 55)."""
    from inspect_ai.model import Logprob, Logprobs, ModelOutput, ModelUsage, TopLogprob

    tokens = {name.removeprefix("_"): value for name, value in weights.items()}

    def output(*_: Any) -> ModelOutput:
        likeliest = max(tokens, key=lambda token: tokens[token])
        made = ModelOutput.from_content("mockllm/model", likeliest)
        made.usage = ModelUsage()
        tops = [TopLogprob(token=token, logprob=math.log(value)) for token, value in tokens.items()]
        made.choices[0].logprobs = Logprobs(
            content=[Logprob(token=likeliest, logprob=math.log(tokens[likeliest]), top_logprobs=tops)]
        )
        return made

    return output
