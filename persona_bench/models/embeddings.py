"""Texts -> sentence embeddings by all-MiniLM-L6-v2, on the CPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona_bench.errors import ModelError, first_line
from persona_bench.models import assets

_log = logging.getLogger(__name__)

ASSET = "all-minilm-l6-v2"
"""Name of the weights in the catalogue."""
MAX_WORD_PIECES = 256
"""Where a text is cut, [CLS] and [SEP] included (sentence_bert_config.json of the model)."""
_BATCH = 32

_loaded: dict[Path, tuple[Any, Any]] = {}
# For the computation too: a fast tokenizer is not to be set up and used at the same time.
_one_at_a_time = threading.Lock()


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Sentence embeddings: the mean of the last hidden states over a text's word pieces, of length 1.

    As on the model card, https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2; a text of more than 256
    word pieces is cut there. The weights are fetched at the first call if they are not cached, and loaded once
    a process. What else is in `texts` moves an embedding by no more than the rounding of float32 (about 1e-7).

    Args:
        texts: The texts, of any length.

    Returns:
        (n, 384) float32, a row a text in the order of `texts`; the dot product of two rows is their cosine.

    Raises:
        AssetError: If the weights cannot be had.
        ModelError: If the folder they are in is broken.
    """
    import torch
    from torch.nn.functional import normalize
    from torch.nn.utils.rnn import pad_sequence

    with _one_at_a_time, torch.inference_mode():
        folder = assets.fetch_weights(ASSET, progress=_log.info)
        if folder not in _loaded:
            _loaded[folder] = _load(folder)
        model, tokenizer = _loaded[folder]
        # Both said, as tokenizer.json would cut and fill up at 128.
        pieces = [
            torch.tensor(tokenizer(text, truncation=True, max_length=MAX_WORD_PIECES, padding=False)["input_ids"])
            for text in texts
        ]
        embeddings = np.empty((len(texts), model.config.hidden_size), np.float32)
        by_length = sorted(range(len(pieces)), key=lambda index: len(pieces[index]))
        for start in range(0, len(by_length), _BATCH):
            rows = by_length[start : start + _BATCH]
            tokens = pad_sequence([pieces[row] for row in rows], True, tokenizer.pad_token_id)
            lengths = torch.tensor([[len(pieces[row])] for row in rows])
            mask = (torch.arange(tokens.shape[1]) < lengths).long()
            hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state
            embeddings[rows] = normalize((hidden * mask[..., None]).sum(1) / lengths, dim=1).numpy()
    return embeddings


def _load(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a folder, in float32."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    local = {"local_files_only": True, "trust_remote_code": False}
    way_out = f"remove the folder and run `persona-bench assets fetch {ASSET}`"
    try:
        model, report = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    except Exception as error:  # transformers, safetensors and tokenizers raise errors of their own kinds
        first = first_line(error)
        raise ModelError(f"cannot load {ASSET} from {folder}: {first}; {way_out}") from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{folder} lacks {len(missing)} of the weights, the first {missing[0]}; {way_out}")
    return model.eval().requires_grad_(False), tokenizer
