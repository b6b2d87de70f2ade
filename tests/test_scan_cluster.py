"""The scan on a real Ray cluster of two nodes: the same bytes as in one process, though a worker is killed halfway."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from persona_bench.errors import RunError
from persona_bench.vectors.scan import inputs, run
from persona_bench.vectors.scan.measures import Settings
from persona_bench.vectors.scan.parts import Parts
from persona_bench.vectors.scan.run import Cluster, plan_scan, run_scan
from tests.conftest import tiny_vector
from tests.test_scan import some, write

ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from ray.cluster_utils import Cluster as LocalCluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    nodes = {"num_cpus": 2, "object_store_memory": 80 * 2**20}
    cluster = LocalCluster(initialize_head=True, head_node_args={**nodes, "include_dashboard": False})
    cluster.add_node(**nodes)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def workers() -> list[int]:
    """The processes of actors that hold a model."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if command.startswith(b"ray::MapWorker"):
            found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.filterwarnings("ignore")
def test_two_nodes_give_the_bytes_of_one_process(
    two_nodes: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "SHARD_ROWS", 7)
    vector = tmp_path / "evil.safetensors"
    tiny_vector().save(vector)
    (tmp_path / "in").mkdir()
    for number in range(3):
        write(tmp_path / "in" / f"{number}.jsonl", [*some(300, seed=number), "{broken"])

    def scan(name: str, **more: Any) -> Path:
        settings = Settings(("response_minus_prompt",), (1, 2, 3, 4))
        target = tmp_path / name
        run_scan(plan_scan(str(folder), [vector], [str(tmp_path / "in")], target, settings), **more)
        return target

    whole = scan("whole.parquet")
    killed: list[int] = []

    keep = Parts.write

    def keep_and_kill(self: Parts, part: Any) -> None:
        keep(self, part)
        if len(self.keys) == 3:
            killed.append(workers()[0])
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Parts, "write", keep_and_kill)
    out = scan("out.parquet", engine="ray", cluster=Cluster(two_nodes.address, actors=2))
    assert killed and killed[0] not in workers()
    assert out.read_bytes() == whole.read_bytes()
    for kind in ("rejected.jsonl", "summary.json"):
        ours, theirs = (path.with_name(f"{path.name}.{kind}").read_bytes() for path in (out, whole))
        assert ours == theirs
    assert sum(json.loads(out.with_name(f"{out.name}.summary.json").read_text())["rejected"].values()) == 3


def test_without_ray_the_way_out_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    vector = tmp_path / "evil.safetensors"
    tiny_vector().save(vector)
    source = write(tmp_path / "x.jsonl", some(3))
    planned = plan_scan(str(folder), [vector], [str(source)], tmp_path / "out.csv", Settings(("response",), (2,)))
    with pytest.raises(RunError, match=r"persona-bench\[cluster\]"):
        run_scan(planned, engine="ray")
    assert run.Parts.folder_of(tmp_path / "out.csv").exists() and not (tmp_path / "out.csv").exists()
