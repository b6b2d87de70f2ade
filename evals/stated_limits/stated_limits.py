"""Do persona vectors see what the paper does not show them to detect, such as deception and sandbagging?"""

from collections.abc import Iterator
from dataclasses import asdict

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample

from persona_bench.definitions.presets import load_limits_preset, load_preset
from persona_bench.definitions.scenarios import Scene, load_scenes
from persona_bench.inspect_ext.cells import half, numbers
from persona_bench.inspect_ext.scenes import activations_folder, choose, chosen


@task
def stated_limits(
    behaviour: str = "deception",
    preset: str = "quick",
    layers: str = "",
    activations: str = "",
) -> Task:
    """Put the model to forced choices in matched scenes that reward a behaviour or do not, and keep its activations.

    Args:
        behaviour: deception, sandbagging, self_preservation or instrumental_convergence.
        preset: quick, standard or paper.
        layers: 1-based layers to keep, comma-separated; by default the preset's.
        activations: folder of the sidecars; by default results/<model>/<preset>/activations.
    """
    sizes, limits = load_preset(preset), load_limits_preset(preset)
    scenes = tuple(scene for scene in load_scenes(behaviour) if scene.topic < limits.topics)
    folder = activations_folder(activations, preset)
    at = tuple(int(layer) for layer in numbers(layers, ()))
    return Task(
        dataset=MemoryDataset(list(_samples(scenes)), name=f"scenes-{behaviour}"),
        solver=choose(sizes, str(folder), at),
        scorer=chosen(),
        metadata={"behaviour": behaviour, "activations": str(folder)},
        version="1-A",
    )


def _samples(scenes: tuple[Scene, ...]) -> Iterator[Sample]:
    checks = {scene.pair: scene.check for scene in scenes if scene.rewarded}
    for scene in scenes:
        yield Sample(
            id=scene.id,
            input=scene.choice.prompt,
            metadata={
                "behaviour": scene.behaviour,
                "topic": scene.topic,
                "half": half(scene.topic),
                "pair": scene.pair,
                "rewarded": scene.rewarded,
                "choice": asdict(scene.choice),
                # A fact asked plainly is the same question for both: one answer serves the pair.
                "check": asdict(scene.check) if scene.rewarded or scene.check != checks[scene.pair] else None,
            },
        )
