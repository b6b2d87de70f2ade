"""A finished run -> results/<model>/<preset>/: small, anonymous, and every number of it traceable to a log.

What stands there is what a reader, the figures and the pages need: tables, claims, report.md, run.json, vectors, and
the headers of the logs. Responses, figures (`paper_figures/` has them) and adapters stay where the run was made.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from persona_bench.analysis.report.content import make_report
from persona_bench.analysis.report.markdown import markdown_text
from persona_bench.analysis.runs import read_run
from persona_bench.errors import RunError
from persona_bench.files import model_folder, scope, write_atomic
from persona_bench.publishing.anonymous import Anonymous
from persona_bench.vectors.tensor_bytes import with_metadata
from persona_bench.vectors.vector import PersonaVector

HEADERS = "log_headers"
"""Not `logs`: what resumes a run looks there for samples, and git ignores full logs."""
KEPT = ("notes.md", "rejudged", "compared")
"""What a new version of a run keeps of the old one: a person's notes, another grader's word, and other runs beside."""
FIGURES = "paper_figures"
SMALL = "quick"


@dataclass(frozen=True)
class Published:
    """What publishing did.

    Attributes:
        folder: of the curated run.
        changed: False where it was there already, byte by byte.
        sizes: bytes by kind of file.
    """

    folder: Path
    changed: bool
    sizes: Mapping[str, int]

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {size / 1e6:.2f}" for kind, size in sorted(self.sizes.items()))
        done = "written" if self.changed else "held this already"
        return f"{self.folder}: {done}, {sum(self.sizes.values()) / 1e6:.2f} MB ({kinds})"


def publish(source: Path, out: Path, allow_quick: bool = False, part: str = "") -> Published:
    """Write the curated form of a finished run, whole or not at all.

    Args:
        source: the folder of the run, OUT/<model>/<preset>.
        out: the results folder; a run that another grader judged again goes beside the run whose responses they are,
            <model>/<preset>/rejudged/<grader>.
        allow_quick: also runs of preset quick.
        part: its name beside a run of the same model and preset that has other traits or evals, <preset>-<part>.

    Raises:
        RunError: the folder holds no finished run, or the target one that is not curated.
        DataError: a table or log cannot be read, or nothing can be written.
    """
    if part and not re.fullmatch(r"[a-z0-9_]{1,30}", part):
        raise RunError(f"cannot call a part {part!r}: up to 30 of a-z, 0-9 and _ name its folder")
    held = _finished(source)
    if held["preset"] == SMALL and not allow_quick:
        raise RunError(
            f"{source} is a quick run: its intervals decide little, and git ignores results/*/quick; publish a run of "
            "preset standard or paper, or try it out with --allow-quick"
        )
    clean = Anonymous(source)
    told = clean.value(held)
    if part:
        told["part"] = part
    target = out / model_folder(told["model"]) / scope(told, "-")
    if told.get("rejudged"):
        target = _beside(target, told)
    _check_target(source, target)
    with _replaced(target) as new:
        _write_headers(source, held, told, new, clean)
        for path in sorted([*source.glob("tables/*.csv"), *source.glob("*.csv")]):
            write_atomic(new / path.relative_to(source), clean.text(path.read_text(encoding="utf-8")))
        for path in sorted(source.glob("vectors/*.safetensors")):
            _copy_vector(path, new / "vectors" / path.name, clean)
        told |= {"published": True, "pages": []}
        write_run(new, told)
        write_atomic(new / "report.md", _report(new, target, out, told))
        files = sorted(str(path.relative_to(new)) for path in new.rglob("*") if path.is_file())
        write_run(new, {**told, "files": [name for name in files if name != "run.json"]})
        changed = not _same(new, target)
        sizes = _sizes(new)
    return Published(target, changed, sizes)


def write_run(folder: Path, told: Mapping[str, Any]) -> None:
    """Write a folder's run.json."""
    write_atomic(folder / "run.json", json.dumps(told, indent=1, sort_keys=True) + "\n")


def _finished(source: Path) -> dict[str, Any]:
    """The run.json of a finished run that is not curated already."""
    path = source / "run.json"
    if not path.is_file():
        raise RunError(f"{source} holds no finished run: no run.json; name a folder OUT/<model>/<preset> that "
                       "`persona-bench run` finished")  # fmt: skip
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        names = [*held["files"], *(entry["file"] for entry in held["logs"].values())]
        read_run(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"cannot read {path}: {type(error).__name__}: {error}; run the same command again") from error
    if held.get("published"):
        raise RunError(f"{source} is a curated run already; name the folder of the run that it was made from")
    missing = [name for name in names if not (source / name).is_file()]
    if missing:
        raise RunError(f"{source} is no finished run: {missing[0]} is missing; run the same command again")
    return dict(held)


def _beside(target: Path, told: Mapping[str, Any]) -> Path:
    """Where a run judged again goes: within the curated run that it judges."""
    path = target / "run.json"
    base = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    here = {name: entry["eval_id"] for name, entry in base.get("logs", {}).items()}
    if here != told["rejudged"]["logs"]:
        raise RunError(
            f"{target} does not hold the run whose responses were judged again (graded by "
            f"{told['rejudged']['grader']}); publish that one first"
        )
    return target / "rejudged" / model_folder(told["grader"])


def _check_target(source: Path, target: Path) -> None:
    path = target / "run.json"
    if not target.exists() or (path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("published")):
        return
    if not path.is_file() and not any(item.name not in KEPT for item in target.iterdir()):
        return
    where = "the run itself" if source.resolve() == target.resolve() else "files that are no curated run"
    raise RunError(f"{target} holds {where}, which publishing would replace; choose another --out")


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """An empty folder that takes the target's place when the block ends well, unless both hold the same."""
    new, old = (target.with_name(f".{target.name}.{what}-{os.getpid()}") for what in ("new", "old"))
    try:
        new.mkdir(parents=True)
        yield new
        for name in KEPT:
            if (target / name).exists():
                _copy(target / name, new / name)
        if not _same(new, target):
            if target.exists():
                target.rename(old)
            new.rename(target)
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, but for what is kept."""

    def files(folder: Path) -> dict[str, Path]:
        found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        return {name: path for name, path in found.items() if Path(name).parts[0] not in KEPT}

    ours, theirs = files(one), files(other)
    return ours.keys() == theirs.keys() and all(
        path.read_bytes() == theirs[name].read_bytes() for name, path in ours.items()
    )


def _write_headers(source: Path, held: Mapping[str, Any], told: dict[str, Any], new: Path, clean: Anonymous) -> None:
    """The logs without samples, as JSON: text that git compares and `grep` finds an eval id in."""
    from inspect_ai.log import write_eval_log

    for name, entry in held["logs"].items():
        log = header(source / entry["file"], clean)
        path = Path(HEADERS, *Path(entry["file"]).parts[1:]).with_suffix(".json")
        (new / path).parent.mkdir(parents=True, exist_ok=True)
        write_eval_log(log, str(new / path), format="json")
        told["logs"][clean.text(name)] = {"file": str(path), "eval_id": entry["eval_id"]}


def header(path: Path, clean: Anonymous) -> Any:
    """A log's header without sample scores and without what tells of the maker's machine."""
    from inspect_ai.log import EvalLog, read_eval_log

    try:
        log = read_eval_log(str(path), header_only=True)
    except Exception as error:
        # Readers raise errors of zip, zstd, JSON and pydantic alike.
        raise RunError(f"cannot read log {path}: {type(error).__name__}; run the same command again") from error
    log.reductions = log.samples = None
    log.eval.model_base_url = None
    if log.eval.revision is not None:
        log.eval.revision.origin = ""
    for bound in (log.eval.model_roles or {}).values():
        for model in bound if isinstance(bound, list) else [bound]:
            model.base_url = None
    return EvalLog.model_validate(clean.value(log.model_dump(mode="json", exclude_none=True)))


def _copy_vector(source: Path, target: Path, clean: Anonymous) -> None:
    """Copy a vector file; where its provenance names paths, that alone is written anew, the same each time."""
    from safetensors import safe_open

    provenance = PersonaVector.load(source).provenance
    told, data = clean.value(dict(provenance)), source.read_bytes()
    if told != provenance:
        with safe_open(source, framework="pt") as file:
            data = with_metadata(data, {**file.metadata(), "provenance": json.dumps(told, sort_keys=True)})
    write_atomic(target, data)


def _report(new: Path, target: Path, out: Path, told: Mapping[str, Any]) -> str:
    """The report from the curated tables; its pictures are those that `persona-bench figures` draws of this run."""
    run = read_run(new / "run.json")
    names = [] if told.get("rejudged") else [Path(name) for name in told["files"] if Path(name).parts[0] == "figures"]
    report = make_report(told, run.tables, run.tables["claims"], [new / name for name in names])
    drawn = Path(os.path.relpath(out.parent / FIGURES, target)).as_posix()
    # Text within the report cannot hold this: its brackets are escaped.
    return markdown_text(report, new).replace("](figures/", f"]({drawn}/{quote(run.stem)}-")


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes by kind of file."""
    sizes: Counter[str] = Counter()
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[0] not in KEPT:
            sizes[parts[0] if len(parts) > 1 else path.suffix.lstrip(".")] += path.stat().st_size
    return dict(sizes)
