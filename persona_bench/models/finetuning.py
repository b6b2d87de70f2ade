"""LoRA finetuning, with interventions on the residual stream that are there while training and gone afterwards.

The loop is written out so that every number of it is a function of its arguments: the batches follow from the seed,
nothing is drawn while training, and a training that was interrupted goes on exactly where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from persona_bench.errors import DataError, ModelError, TrainingError, VectorError, first_line
from persona_bench.files import atomic_path, file_lock, write_atomic
from persona_bench.models.adapters import attach, hash_adapter, own_copy, save_adapter, trained_parameters
from persona_bench.models.capturing import DeepEnoughError, end_at
from persona_bench.models.loaded import LoadedModel, find_blocks
from persona_bench.models.steering import Intervention, ResidualHooks
from persona_bench.models.training_data import Batch, Example, collate, draw_order

CHECKPOINT, RECORD, HISTORY = "checkpoint.safetensors", "training.json", "training.csv"
FORMAT = "persona-bench-training/1"
PROJECTION = "projection:"

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the defaults are the paper's (section on finetuning; its appendix on training).

    Attributes:
        rank: of the LoRA matrices.
        alpha: their scale is alpha / sqrt(rank).
        learning_rate: the highest; it rises over the warm-up steps and falls to 0 linearly.
        batch_size: conversations in one pass.
        accumulation: passes in one optimizer step.
        epochs: passes over the data.
        warmup_steps: optimizer steps.
        max_grad_norm: gradients are scaled down to this norm (paper: not found; transformers' default).
        weight_decay: of AdamW (paper: not found).
        seed: of the adapter's initial values and of the order of the data.
        log_every: optimizer steps.
        checkpoint_every: optimizer steps.
    """

    rank: int = 32
    alpha: int = 64
    learning_rate: float = 1e-5
    batch_size: int = 2
    accumulation: int = 8
    epochs: int = 1
    warmup_steps: int = 5
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0
    log_every: int = 1
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        for name in ("rank", "batch_size", "accumulation", "epochs", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name.replace('_', ' ')} is {getattr(self, name)}; it must be at least 1")
        for name in ("alpha", "learning_rate", "max_grad_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise TrainingError(f"{name.replace('_', ' ')} is {getattr(self, name)}; it must be over 0 and finite")
        if self.warmup_steps < 0 or not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise TrainingError("warm-up steps and weight decay must not be negative")

    def rate(self, step: int, n_steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = (step + 1) / max(self.warmup_steps, 1)
        falling = (n_steps - step) / max(n_steps - self.warmup_steps, 1)
        return self.learning_rate * min(rising, falling, 1.0)


@dataclass(frozen=True, eq=False)
class Penalty:
    """A term of the loss: `weight` times the mean, over conversations, of the squared shift of their projection.

    The shift is the scalar product of `direction`, used as given, with the mean residual stream of the response's
    tokens, minus the same of the model before training. Divide a unit direction by the mean norm of the residual
    stream, and a weight means the same on every model and layer.
    """

    layer: int
    direction: Tensor
    weight: float


@dataclass(frozen=True, eq=False)
class Probe:
    """What is watched while training: prompts, projected at their last token without any intervention.

    Attributes:
        prompts: token ids.
        directions: name -> (1-based layer, `(d_model,)` float32 used as given: pass unit vectors).
    """

    prompts: tuple[tuple[int, ...], ...]
    directions: Mapping[str, tuple[int, Tensor]]


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        folder: the adapter's.
        adapter_hash: sha256 of the adapter.
        history: a row a logged step, as in `training.csv`; step 0 is the model before
            training.
        made: whether it was trained now, and not found finished.
    """

    folder: Path
    adapter_hash: str
    history: tuple[dict[str, float], ...]
    made: bool = field(compare=False, default=True)


def finetune(
    loaded: LoadedModel,
    examples: Sequence[Example],
    out: Path,
    settings: TrainingSettings,
    *,
    interventions: Sequence[Intervention] = (),
    penalties: Sequence[Penalty] = (),
    probe: Probe | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train an adapter into a folder that plain peft and `persona/<weights>+<folder>` load.

    The loss is the mean over the trained tokens of an optimizer step, whatever batches they came in. Interventions act
    on every forward pass of training and leave nothing behind. The folder also gets `training.json` (what was trained
    how) and `training.csv` (loss, learning rate and projections by step); with the same arguments a finished
    training is taken as it is, and an interrupted one goes on to the same result, bit for bit on CPU.

    Args:
        loaded: the model; it stays as it is.
        examples: what to train on.
        out: the adapter's folder.
        settings: how.
        interventions: changes to the residual stream while training.
        penalties: further terms of the loss.
        probe: what to watch.
        provenance: further facts for `training.json`.
        progress: told (step, steps, row of the history).

    Raises:
        ModelError, VectorError: an intervention does not fit the model, or its dtype cannot be trained in.
        TrainingError: a loss or gradient that is not finite; `out` holds another training.
        DataError: nothing to train on, or the folder cannot be written.
    """
    if not examples or not any(example.n_trained for example in examples):
        raise DataError("there is no response to train on; give at least one conversation with an assistant message")
    if loaded.dtype == torch.float16:
        raise ModelError("gradients underflow in float16; load the model in bfloat16 or float32 (--dtype)")
    watched = list((probe.directions if probe else {}).values())
    for value in [item.direction for item in penalties] + [direction for _, direction in watched]:
        if value.shape != (loaded.d_model,) or not bool(torch.isfinite(value).all()):
            raise VectorError(f"a direction to project on must be finite and of shape ({loaded.d_model},)")
    described = describe(loaded, examples, settings, interventions, penalties, probe)
    with file_lock(out.with_name(f".{out.name}.lock")):
        held = _finished(out, described["fingerprint"])
        if held is not None:
            return held
        run = _Training(loaded, examples, out, settings, interventions, penalties, probe, described["fingerprint"])
        history = run.go(progress)
        save_adapter(run.adapted, out)
        _write_history(out / HISTORY, history)
        record = {**described, "provenance": dict(provenance or {}), "history": history}
        write_atomic(out / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
        (out / CHECKPOINT).unlink(missing_ok=True)
        return Trained(out, hash_adapter(out), tuple(history))


def describe(
    loaded: LoadedModel,
    examples: Sequence[Example],
    settings: TrainingSettings,
    interventions: Sequence[Intervention] = (),
    penalties: Sequence[Penalty] = (),
    probe: Probe | None = None,
) -> dict[str, Any]:
    """Everything that decides the result of a training, with the hash of it as `fingerprint`."""
    said: dict[str, Any] = {
        "format": FORMAT,
        "model": loaded.name,
        "weights_hash": loaded.weights_hash,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "settings": asdict(settings),
        "n_examples": len(examples),
        "n_trained_tokens": sum(example.n_trained for example in examples),
        "examples_hash": hashlib.sha256(repr([(e.ids, e.spans) for e in examples]).encode()).hexdigest(),
        "interventions": [
            [item.operation, item.layer, item.coefficient, item.positions, _digest(item.vector)]
            for item in interventions
        ],
        "penalties": [[item.layer, item.weight, _digest(item.direction)] for item in penalties],
        "probe": None
        if probe is None
        else [
            hashlib.sha256(repr(probe.prompts).encode()).hexdigest(),
            {name: [layer, _digest(value)] for name, (layer, value) in sorted(probe.directions.items())},
        ],
    }
    deciding = {key: value for key, value in said.items() if key != "model"}
    return {**said, "fingerprint": hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()}


def _digest(value: Tensor) -> str:
    return hashlib.sha256(value.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()


def _finished(out: Path, fingerprint: str) -> Trained | None:
    """The training that the folder holds, if it is this one and done.

    Raises:
        TrainingError: the folder holds another.
    """
    if not (out / RECORD).exists():
        # With a checkpoint, what else there is was being written when the training was cut off.
        found = sorted(path.name for path in out.iterdir()) if out.is_dir() and not (out / CHECKPOINT).exists() else []
        if found:
            raise TrainingError(f"{out} holds {found[0]}, which is of no training; choose another --out")
        return None
    held = json.loads((out / RECORD).read_text(encoding="utf-8"))
    if held.get("fingerprint") != fingerprint:
        raise TrainingError(f"{out} holds an adapter that was trained otherwise; choose another --out or remove it")
    return Trained(out, hash_adapter(out), tuple(held["history"]), made=False)


def _write_history(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    columns = list(history[-1])
    lines = [",".join(columns)]
    lines += [",".join(f"{row[name]:.6g}" if name in row else "" for name in columns) for row in history]
    write_atomic(path, "\n".join(lines) + "\n")


class _Training:
    """The state of one training, and how it moves on."""

    def __init__(
        self,
        loaded: LoadedModel,
        examples: Sequence[Example],
        out: Path,
        settings: TrainingSettings,
        interventions: Sequence[Intervention],
        penalties: Sequence[Penalty],
        probe: Probe | None,
        fingerprint: str,
    ) -> None:
        self.loaded, self.examples, self.out, self.settings = loaded, examples, out, settings
        self.penalties, self.probe, self.fingerprint = penalties, probe, fingerprint
        lengths = [len(example.ids) for example in examples]
        longest = max((*lengths, *map(len, probe.prompts if probe else ())))
        self.adapted = attach(loaded, settings.rank, settings.alpha, settings.seed, longest)
        self.watched = _Watched(self.adapted.get_base_model(), loaded, settings.batch_size, interventions)
        self.before = _Watched(own_copy(loaded, longest), loaded, settings.batch_size) if penalties else None
        self.parameters = trained_parameters(self.adapted)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.steps = [
            batches[start : start + settings.accumulation]
            for epoch in range(settings.epochs)
            for batches in [draw_order(lengths, settings.batch_size, settings.accumulation, settings.seed, epoch)]
            for start in range(0, len(batches), settings.accumulation)
        ]

    def go(self, progress: Progress | None) -> list[dict[str, float]]:
        done, history = self._resume()
        if not history:
            history.append({"step": 0, **self._projections()})
        for number in range(done, len(self.steps)):
            try:
                row = self._step(number)
            except TrainingError:
                self._save(number, history)
                raise
            if (number + 1) % self.settings.log_every == 0 or number + 1 == len(self.steps):
                history.append(row | self._projections())
                if progress is not None:
                    progress(number + 1, len(self.steps), history[-1])
            if (number + 1) % self.settings.checkpoint_every == 0:
                self._save(number + 1, history)
        self._save(len(self.steps), history)
        return history

    def _step(self, number: int) -> dict[str, float]:
        """One optimizer step; nothing changes where it fails."""
        batches = [[self.examples[i] for i in batch] for batch in self.steps[number]]
        n_tokens = sum(example.n_trained for batch in batches for example in batch)
        n_examples = sum(map(len, batches))
        loss = penalty = 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for examples in batches:
            batch = collate(examples, self.loaded.device)
            hidden, seen = self.watched.forward(batch, [item.layer for item in self.penalties])
            likelihood = self._negative_log_likelihood(hidden, batch) / n_tokens
            extra = self._penalty(batch, seen) / n_examples
            (likelihood + extra).backward()  # type: ignore[no-untyped-call]
            loss += float(likelihood.detach())
            penalty += float(extra.detach())
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(penalty) and math.isfinite(norm)):
            raise TrainingError(
                f"step {number + 1} of {len(self.steps)}: loss {loss:g}, penalty {penalty:g}, gradient norm {norm:g}; "
                f"stopped before it. {self.out / CHECKPOINT} keeps the {number} good steps; train anew with a lower "
                "learning rate or a smaller coefficient"
            )
        rate = self.settings.rate(number, len(self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        row = {"step": number + 1, "learning_rate": rate, "loss": loss, "grad_norm": norm}
        return row | ({"penalty": penalty} if self.penalties else {})

    def _negative_log_likelihood(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Sum over the trained tokens; only their logits are computed."""
        predicting = batch.trained[:, 1:]
        logits = self.loaded.head(hidden[:, :-1][predicting])
        return nn.functional.cross_entropy(logits, batch.ids[:, 1:][predicting], reduction="sum")

    def _penalty(self, batch: Batch, seen: Mapping[int, Tensor]) -> Tensor:
        total = torch.zeros((), device=self.loaded.device, dtype=torch.float32)
        if self.before is None:
            return total
        with torch.no_grad():
            _hidden, reference = self.before.forward(batch, [item.layer for item in self.penalties], deeper=False)
        weights = batch.trained / batch.trained.sum(1, keepdim=True)
        for item in self.penalties:
            moved = ((seen[item.layer] - reference[item.layer]) * weights[:, :, None]).sum(1)
            total = total + item.weight * (moved @ item.direction.to(moved)).square().sum()
        return total

    @torch.no_grad()
    def _projections(self) -> dict[str, float]:
        """The probe's prompts at their last token, mean over the prompts, as the model is without interventions."""
        if self.probe is None:
            return {}
        layers = sorted({layer for layer, _ in self.probe.directions.values()})
        last: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for start in range(0, len(self.probe.prompts), self.settings.batch_size):
            prompts = self.probe.prompts[start : start + self.settings.batch_size]
            batch = collate([Example(ids, ()) for ids in prompts], self.loaded.device)
            _hidden, seen = self.watched.forward(batch, layers, intervene=False, deeper=False)
            for layer in layers:
                last[layer] += [seen[layer][row, len(ids) - 1] for row, ids in enumerate(prompts)]
        return {
            f"{PROJECTION}{name}": float((torch.stack(last[layer]) @ value.to(self.loaded.device)).mean())
            for name, (layer, value) in self.probe.directions.items()
        }

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _save(self, step: int, history: Sequence[Mapping[str, float]]) -> None:
        from safetensors.torch import save

        tensors = {}
        for name, parameter in self.parameters.items():
            tensors[f"value.{name}"] = parameter.detach().cpu().contiguous()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value.detach().cpu().contiguous()
        header = {"fingerprint": self.fingerprint, "step": str(step), "history": json.dumps(list(history))}
        with atomic_path(self.out / CHECKPOINT) as temporary:
            temporary.write_bytes(save(tensors, metadata=header))

    def _resume(self) -> tuple[int, list[dict[str, float]]]:
        """(steps done, history) of the checkpoint, whose values are taken over; (0, []) without one.

        Raises:
            TrainingError: it is of another training, or broken.
        """
        from safetensors import SafetensorError, safe_open

        path = self.out / CHECKPOINT
        if not path.exists():
            return 0, []
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("fingerprint") != self.fingerprint:
                    raise TrainingError(f"{path} is of another training; choose another --out or remove it")
                held = set(file.keys())
                for name, parameter in self.parameters.items():
                    parameter.data.copy_(file.get_tensor(f"value.{name}"))
                    if f"step.{name}" in held:  # the optimizer knows no parameter that never had a gradient
                        state = {key: file.get_tensor(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
                        moments = {key: value.to(parameter.device) for key, value in state.items() if key != "step"}
                        self.optimizer.state[parameter] = {"step": state["step"], **moments}
            return int(header["step"]), list(json.loads(header["history"]))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise TrainingError(f"cannot read {path}: {first_line(error)}; remove it to start anew") from error


class _Watched:
    """A model with the engine's own hooks, which keep the graph that gradients need.

    The first half of the slots holds the interventions, the other half none. Nothing is moved between them, as
    the backward pass reads their buffers.
    """

    def __init__(
        self, model: Any, loaded: LoadedModel, n_rows: int, interventions: Sequence[Intervention] = ()
    ) -> None:
        self.decoder = model.get_decoder()
        self.n_rows = n_rows
        self.hooks = ResidualHooks(list(find_blocks(model)), loaded.d_model, 2 * n_rows, loaded.device)
        self.hooks.check(interventions)
        for slot in range(n_rows):
            self.hooks.occupy(slot, tuple(interventions))

    def forward(
        self, batch: Batch, layers: Sequence[int], *, intervene: bool = True, deeper: bool = True
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Final hidden states `(rows, tokens, d_model)`, and float32 residual streams at the layers asked for.

        With `deeper` false the pass ends at the last of these layers, and there are no final states.
        """
        seen: dict[int, Tensor] = {}

        def keep(layer: int, hidden: Tensor) -> None:
            if layer in layers:
                seen[layer] = hidden.float()
            if not deeper:
                end_at(max(layers), layer, hidden)

        low = 0 if intervene else self.n_rows
        self.hooks.begin(low, low + len(batch.ids), batch.position_masks, None)
        self.hooks.reader = keep if layers else None
        try:
            hidden = self.decoder(input_ids=batch.ids, use_cache=False).last_hidden_state
        except DeepEnoughError:
            hidden = torch.empty(0)
        finally:
            self.hooks.end()
        return hidden, seen
