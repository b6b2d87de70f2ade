"""A GGUF file -> a folder of bfloat16 safetensors, config and tokenizer, as the original has them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from persona_bench.errors import AssetError, first_line
from persona_bench.files import write_atomic
from persona_bench.models.assets.cache import is_disk_full
from persona_bench.models.assets.catalogue import WeightsAsset

# Two quantisations of one matrix differ by their rounding (0.044 of the norm in the 0.5B), two matrices by about 1.4.
_SAME_MATRIX = 0.2
# How the file was read, and the name the quantiser gave it: neither is true of the folder that is written.
_NOT_IN_CONFIG = frozenset({"_model_name_or_path", "_name_or_path", "quantization_config"})


def convert(asset: WeightsAsset, gguf: Path, folder: Path) -> None:
    """Write the GGUF's weights as bfloat16 safetensors, with config and tokenizer, into `folder`.

    transformers reads a GGUF in 15-80 s, and a folder of safetensors in one or two.

    Raises:
        AssetError: If transformers cannot read the file, or the tokenizer does not come over whole.
    """
    try:
        _convert_model(asset, gguf, folder)
        _convert_tokenizer(asset, gguf, folder)
    except Exception as error:  # readers and writers in Rust raise what they like
        if isinstance(error, AssetError):
            raise
        if is_disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise AssetError(
            f"{asset.name}: {gguf.name} could not be converted: {first_line(error)}; check that transformers and gguf "
            "have the versions in requirements.lock"
        ) from error


def _convert_model(asset: WeightsAsset, gguf: Path, folder: Path) -> None:
    import torch
    import transformers
    from safetensors.torch import save_file

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        # Without it, versions that can compute on packed blocks may hand those out instead of weights.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **options
    )
    state = dict(model.state_dict())
    # The originals share one matrix between embedding and output. Where the GGUF holds it twice, the output's
    # copy is the finer one (Q8_0 against Q5_0 in the 0.5B); one matrix again is what the architecture is, and
    # it keeps fine-tuning and memory as they are with the original.
    head, embedding = state.pop("lm_head.weight"), state["model.embed_tokens.weight"]
    gap = float(torch.linalg.vector_norm(head - embedding, dtype=torch.float32)) / float(
        torch.linalg.vector_norm(head, dtype=torch.float32)
    )
    if gap > _SAME_MATRIX:
        raise AssetError(
            f"{asset.name}: {gguf.name} has an output matrix of its own; only tied models can be converted"
        )
    state["model.embed_tokens.weight"] = head
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the writer makes it private, and a cache may be shared

    config = model.config
    config.tie_word_embeddings = True
    config.architectures = [type(model).__name__]
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")  # stored as float32: 9.99999974e-06 is 1e-05
    entries = {key: value for key, value in config.to_diff_dict().items() if key not in _NOT_IN_CONFIG}
    write_atomic(folder / "config.json", json.dumps(entries, indent=2, sort_keys=True) + "\n")


def _convert_tokenizer(asset: WeightsAsset, gguf: Path, folder: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if asset.digits_apart:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer.model_max_length = config["max_position_embeddings"]
    stops = [tokenizer.convert_tokens_to_ids(token) for token in asset.stop_tokens]
    if tokenizer.chat_template is None or stops[0] != tokenizer.eos_token_id:
        raise AssetError(f"{asset.name}: {gguf.name} has no chat template, or another end of turn than expected")
    tokenizer.save_pretrained(folder)
    generation = {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": stops if len(stops) > 1 else stops[0],
        "pad_token_id": tokenizer.pad_token_id,
        "transformers_version": config["transformers_version"],
    }
    write_atomic(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
