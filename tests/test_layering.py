"""The house stands: imports run downward only, and what Inspect reads on every run stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A module may import those of its own room and of every room before it.
ROOMS = (
    ("persona_bench.errors",),
    ("persona_bench.files",),
    ("persona_bench.definitions",),
    ("persona_bench.models",),
    ("persona_bench.vectors",),
    ("persona_bench.inspect_ext",),
    ("persona_bench._registry", "persona_bench.analysis"),
    ("evals",),
    ("persona_bench.pipeline",),
    ("persona_bench.checking",),
    ("persona_bench.publishing",),
    ("persona_bench.cli",),
)
FIRST_WITH_INSPECT = 5
HEAVY = ("torch", "transformers", "matplotlib", "scipy", "sklearn", "pandas")


def room(module: str) -> int | None:
    """The room of a module; None for the bare package, which holds nothing, and for what is not ours."""
    for index, names in enumerate(ROOMS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return index
    return None


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in ("persona_bench", "evals"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module imported anywhere in a file, within functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            # `from persona_bench import pipeline` imports a module, not a name.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = dict(modules())


def test_every_module_has_a_room() -> None:
    assert [name for name in MODULES if room(name) is None] == ["persona_bench"]
    assert not [name for name in imported(MODULES["persona_bench"]) if room(name) is not None]


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) is not None])
def test_imports_run_downward(name: str) -> None:
    own = room(name)
    assert own is not None
    upward = [other for other in imported(MODULES[name]) if (room(other) or 0) > own]
    assert not upward, f"{name} imports {upward}"


@pytest.mark.parametrize("name", [name for name in MODULES if (room(name) or 0) < FIRST_WITH_INSPECT])
def test_nothing_below_the_inspect_layer_imports_inspect(name: str) -> None:
    assert not [other for other in imported(MODULES[name]) if other.split(".")[0] == "inspect_ai"]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("persona_bench.definitions")])
def test_definitions_import_no_torch(name: str) -> None:
    assert not [other for other in imported(MODULES[name]) if other.split(".")[0] in HEAVY]


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in `sys.modules` after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("persona_bench._registry", HEAVY),
        ("persona_bench.definitions.traits", (*HEAVY, "inspect_ai")),
        ("persona_bench.vectors.vector", ("inspect_ai", "pandas", "scipy", "matplotlib")),
        ("persona_bench.cli", (*HEAVY, "inspect_ai")),
    ],
)
def test_start_up_is_light(module: str, without: tuple[str, ...]) -> None:
    assert not loaded_by(f"import {module}") & set(without)


def test_provider_is_registered_under_the_package_s_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entry = project["entry-points"]["inspect_ai"]
    assert list(entry) == ["persona_bench"]
    assert entry["persona_bench"].split(".")[0] == "persona_bench"
    assert project["name"].replace("-", "_") == "persona_bench"


def test_registry_holds_provider_and_scorer() -> None:
    from inspect_ai._util.registry import registry_find, registry_info

    import persona_bench._registry as registry

    # Prefixed by the package where that is installed, bare in a plain checkout.
    assert registry_info(registry.trait_judge).name.split("/")[-1] == "trait_judge"
    assert registry_find(lambda info: info.type == "modelapi" and info.name.split("/")[-1] == "persona")
