"""Tiny random models of every supported architecture, and other small things tests build."""

from __future__ import annotations

import platform
from typing import Any

import pytest
import torch
import transformers

from persona_bench.models.attention import ATTENTION_NAME, register
from persona_bench.models.loaded import LoadedModel, prepare
from persona_bench.models.loading import default_dtype

DTYPE = default_dtype(torch.device("cpu"))
"""What this processor computes in, bfloat16 or float32: of it the engine promises that rows do not hang on others."""
only_x86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the promise is for processors of this kind"
)

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, **HEADS, **SPECIAL),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, **HEADS, **SPECIAL),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, **HEADS, **SPECIAL, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**SIZES, **HEADS, **SPECIAL, sliding_window=8),
    "gemma2": lambda: transformers.Gemma2Config(**SIZES, **HEADS, **SPECIAL, head_dim=8, sliding_window=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, **HEADS, **SPECIAL, head_dim=8, sliding_window=8),
    "phi3": lambda: transformers.Phi3Config(**SIZES, **HEADS, **SPECIAL),
    "olmo": lambda: transformers.OlmoConfig(**SIZES, **HEADS, **SPECIAL),
    "olmo2": lambda: transformers.Olmo2Config(**SIZES, **HEADS, **SPECIAL),
    "cohere": lambda: transformers.CohereConfig(**SIZES, **HEADS, **SPECIAL, logit_scale=0.0625),
    "granite": lambda: transformers.GraniteConfig(**SIZES, **HEADS, **SPECIAL, logits_scaling=8.0),
    "hyperclovax": lambda: transformers.HyperCLOVAXConfig(**SIZES, **HEADS, **SPECIAL, logits_scaling=0.125),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SIZES, **HEADS, **SPECIAL, head_dim=8, sliding_window=8, num_local_experts=2, num_experts_per_tok=2
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES, num_attention_heads=4, **SPECIAL),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=128, n_positions=256, **SPECIAL),
}


def tiny(kind: str = "llama", seed: int = 0) -> LoadedModel:
    """A random float32 model of 4 blocks and width 32, the same for the same seed."""
    register()
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind](), attn_implementation=ATTENTION_NAME)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return prepare(model, None, name=f"tiny-{kind}", weights_hash="0" * 64)
