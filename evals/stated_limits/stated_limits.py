"""Do persona vectors see what the paper does not show them to detect, such as deception and sandbagging?"""

from collections.abc import Iterator
from dataclasses import asdict

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample

from persona_bench.definitions.evasion import EVASION
from persona_bench.definitions.outcomes import Method
from persona_bench.definitions.presets import load_limits_preset, load_preset
from persona_bench.definitions.scenarios import Scene, load_scenes
from persona_bench.definitions.traits import load_trait
from persona_bench.inspect_ext.caller import paths_from_caller
from persona_bench.inspect_ext.cells import find_vector, half, numbers
from persona_bench.inspect_ext.evasion import evasion_samples
from persona_bench.inspect_ext.judge import trait_judge
from persona_bench.inspect_ext.scene_judge import scene_judge
from persona_bench.inspect_ext.scenes import activations_folder, choose, chosen
from persona_bench.inspect_ext.solvers import respond


@task
@paths_from_caller
def stated_limits(
    behaviour: str = "deception",
    preset: str = "quick",
    trait: str = "evil",
    vector: str = "",
    vector_sha256: str = "",
    layers: str = "",
    activations: str = "",
    method: Method = "auto",
    seed: int = 0,
) -> Task:
    """Put the model to what the paper does not show its vectors to detect.

    A behaviour: forced choices in matched scenes that reward it or do not, with the activations before each choice; a
    grader, where the role `grader` holds one, says of each whether the answer shows it.
    Evasion: responses under system prompts that may bring a trait out without its vector telling, judged and projected.

    Args:
        behaviour: deception, sandbagging, self_preservation, instrumental_convergence or evasion.
        preset: quick, standard or paper.
        trait: of evasion; behaviours are about none.
        vector: of evasion, the vector file; by default the one a run of the same model and preset left in results/.
        vector_sha256: its content hash, if it must be exactly that one.
        layers: 1-based layers to read, comma-separated; by default the preset's, of evasion the middle one of those.
        activations: of behaviours, folder of the sidecars; by default results/<model>/<preset>/activations.
        method: how the grader judges; of behaviours local ones are read off their Yes and No, whatever it says.
        seed: of evasion, of the run.
    """
    at = tuple(int(layer) for layer in numbers(layers, ()))
    if behaviour == EVASION:
        return _evasion(preset, trait, vector, vector_sha256, at, method, seed)
    sizes, limits = load_preset(preset), load_limits_preset(preset)
    scenes = tuple(scene for scene in load_scenes(behaviour) if scene.topic < limits.topics)
    folder = activations_folder(activations, preset)
    return Task(
        dataset=MemoryDataset(list(_samples(scenes)), name=f"scenes-{behaviour}"),
        solver=choose(sizes, str(folder), at),
        scorer=[chosen(), scene_judge(behaviour, method)],
        metadata={"behaviour": behaviour, "activations": str(folder)},
        version="1-A",
    )


def _evasion(
    preset: str, trait: str, vector: str, sha256: str, layers: tuple[int, ...], method: Method, seed: int
) -> Task:
    sizes, limits, loaded = load_preset(preset), load_limits_preset(preset), load_trait(trait)
    file = find_vector(vector, loaded.name, preset, sha256)
    swept = layers or sizes.layers(file.vector.n_layers)
    samples = evasion_samples(loaded, limits, sizes.evaluation_questions, file, swept[len(swept) // 2])
    return Task(
        dataset=MemoryDataset(list(samples), name=f"evasion-{loaded.name}"),
        solver=respond(sizes.temperature, sizes.max_tokens, seed),
        scorer=trait_judge(trait, method),
        epochs=limits.evasion_rollouts,
        metadata={"behaviour": EVASION, "trait": loaded.name, "vector_hash": file.vector.hash},
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
