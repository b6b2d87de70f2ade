"""Adapters, with a vector at work while training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from persona_bench.cli.base import SHOWN, main, say, tell
from persona_bench.errors import DataError


@main.command()
@click.option("--model", default="smollm2-135m", help="Catalogue name, Hub id, folder or .gguf file.", **SHOWN)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="JSONL with `messages`.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The adapter's folder.")
@click.option("--steer", type=click.Path(path_type=Path), help="Vector file to add while training.")
@click.option("--ablate", type=click.Path(path_type=Path), help="Vector file to project out while training (CAFT).")
@click.option("--penalise", type=click.Path(path_type=Path), help="Vector file whose shift the loss penalises.")
@click.option("--layer", "layers", type=int, multiple=True, help="1-based; may be repeated.  [default: middle; all]")
@click.option("--coef", default=1.0, help="Multiples of the raw vector, for --steer.", **SHOWN)
@click.option("--weight", default=1.0, help="Of the penalty.", **SHOWN)
@click.option("--positions", default="all", help="all, response or prompt.", **SHOWN)
@click.option("--direction", default="persona", help="One the vector file holds, or random:K.", **SHOWN)
@click.option("--incremental", is_flag=True, help="At each --layer add v minus v of the layer before.")
@click.option("--system", help="A system message for training only.")
@click.option(
    "--watch", type=click.Path(path_type=Path), multiple=True, help="Vector file to project on while training."
)
@click.option("--rank", default=32, help="Of the LoRA.", **SHOWN)
@click.option("--alpha", default=64, help="Its scale is alpha / sqrt(rank).", **SHOWN)
@click.option("--lr", default=1e-5, help="Highest learning rate.", **SHOWN)
@click.option("--batch", default=2, help="Conversations in a pass.", **SHOWN)
@click.option("--accumulation", default=8, help="Passes in a step.", **SHOWN)
@click.option("--epochs", default=1, help="Passes over the data.", **SHOWN)
@click.option("--warmup", default=5, help="Steps.", **SHOWN)
@click.option("--seed", default=0, help="Of the adapter's initial values and the order of the data.", **SHOWN)
@click.option("--checkpoint-every", default=50, help="Steps; an interrupted training goes on from there.", **SHOWN)
@click.option("--dtype", default="auto", help="bfloat16, float32 or auto.", **SHOWN)
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw loss and projections, as .png and .pdf.")
def finetune(
    model: str,
    data: Path,
    out: Path,
    steer: Path | None,
    ablate: Path | None,
    penalise: Path | None,
    layers: tuple[int, ...],
    coef: float,
    weight: float,
    positions: Any,
    direction: str,
    incremental: bool,
    system: str | None,
    watch: tuple[Path, ...],
    rank: int,
    alpha: int,
    lr: float,
    batch: int,
    accumulation: int,
    epochs: int,
    warmup: int,
    seed: int,
    checkpoint_every: int,
    dtype: str,
    plot: Path | None,
) -> None:
    """Train a LoRA adapter, with a persona vector at work while training if asked for.

    The defaults are the paper's. OUT loads in peft and as `persona/MODEL+OUT`; nothing of the vector is left in it.
    """
    from persona_bench.models.finetuning import TrainingSettings
    from persona_bench.models.loading import load
    from persona_bench.models.training_data import read_conversations
    from persona_bench.vectors import arms
    from persona_bench.vectors.vector import PersonaVector

    if plot is not None and plot.suffix not in (".png", ".pdf"):
        raise DataError(f"{plot}: figures are .png or .pdf; give --plot such a name")
    if incremental and (steer is None or len(layers) < 2):
        raise DataError("--incremental needs --steer and at least two --layer")
    settings = TrainingSettings(
        rank=rank,
        alpha=alpha,
        learning_rate=lr,
        batch_size=batch,
        accumulation=accumulation,
        epochs=epochs,
        warmup_steps=warmup,
        seed=seed,
        checkpoint_every=checkpoint_every,
    )
    conversations = read_conversations(data)
    vectors = {path: PersonaVector.load(path) for path in (steer, ablate, penalise, *watch) if path is not None}
    loaded = load(model, dtype=dtype)
    for vector in vectors.values():
        arms.check_model(vector, loaded)
    middle = (round(loaded.n_layers / 2),)
    acting: list[Any] = []
    if steer is not None:
        acting += arms.interventions(
            vectors[steer],
            layers or middle,
            coef,
            positions=positions,
            direction=direction,
            incremental=incremental,
        )
    if ablate is not None:
        everywhere = tuple(range(1, loaded.n_layers + 1))
        acting += arms.interventions(
            vectors[ablate],
            layers or everywhere,
            operation="ablate",
            positions=positions,
            direction=direction,
        )
    held = [arms.penalty(vectors[penalise], layer, weight) for layer in layers or middle] if penalise else []
    trained = arms.train(
        loaded,
        conversations,
        out,
        settings,
        arms.Arm(tuple(acting), tuple(held), system),
        watched={vector.trait: (vector, (layers or middle)[0]) for vector in vectors.values()},
        provenance={"data": data.name},
        progress=lambda step, steps, row: say(
            f"step {step} of {steps}: loss {row['loss']:.3f}"
            + "".join(f", {key} {value:.3g}" for key, value in row.items() if key.startswith("projection:"))
        ),
    )
    if plot is not None:
        from persona_bench.analysis.figures.training import save_training

        note = f"{model} · {len(conversations)} conversations · seed {seed}"
        save_training(trained.history, plot, f"Training: {data.stem}", note)
    tell(f"{out}: {'trained' if trained.made else 'held this training already'}; use it as persona/{model}+{out}")
