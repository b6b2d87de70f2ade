"""What rows take from the residual streams of a prefill: projections, means, products; and where they are steered."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from persona_bench.models.rows import Job
from persona_bench.models.steering import Capture, ResidualHooks, project


class DeepEnoughError(Exception):
    """Ends a pass at the last layer that its rows need; caught where the pass was begun."""


def end_at(depth: int, layer: int, _hidden: Tensor) -> None:
    """In the place of a reader, where nothing is read: end the pass after a layer."""
    if layer == depth:
        raise DeepEnoughError


@dataclass(frozen=True, eq=False)
class Captured:
    """Tokens of one prefill that are projected on one set of directions.

    Attributes:
        captures: (row of the pass, job, what it asks for).
        lengths: how many tokens of each, in the same order.
        rows, tokens: of each captured token, where it is in the pass, `(n_tokens,)`.
        directions: `(n_directions, n_layers + 1, d_model)`.
        values: `(n_tokens, n_directions, n_layers + 1)`, on the model's device; one transfer brings all of a pass.
    """

    captures: list[tuple[int, Job, Capture]]
    lengths: list[int]
    rows: Tensor
    tokens: Tensor
    directions: Tensor
    values: Tensor


class PrefillReader:
    """Takes what rows asked for from the residual streams of one prefill."""

    def __init__(self, jobs: list[Job], starts: list[int], hooks: ResidualHooks, device: torch.device) -> None:
        self.jobs, self.starts, self.n_layers, self.device = jobs, starts, hooks.n_layers, device
        self.captures = [(index, job, job.row.capture) for index, job in enumerate(jobs) if job.row.capture is not None]
        self.means = [(index, job) for index, job in enumerate(jobs) if job.row.hidden_means]
        self.readings = [(index, job, job.row.reading) for index, job in enumerate(jobs) if job.row.reading is not None]
        every = range(self.n_layers + 1) if self.captures or self.means else ()
        self._layers = {*every, *(layer for _index, _job, reading in self.readings for layer in reading.layers)}
        self.wanted = bool(self._layers)
        self.depth = jobs[0].depth if len({job.depth for job in jobs}) == 1 else 0
        # Named, because loading other weights changes the default dtype of the process for a while.
        zeros = partial(torch.zeros, dtype=torch.float32, device=device)
        self._read = {
            index: torch.zeros(
                len(reading.spans), len(reading.layers), hooks.d_model, dtype=torch.float32, device=device
            )
            for index, _job, reading in self.readings
        }
        self._shared = self._sharing(device)
        self._products: dict[tuple[int, int], Tensor] = {}
        self._captured = self._capturing(zeros)
        self._hidden = {index: zeros(3, self.n_layers + 1, hooks.d_model) for index, _ in self.means}
        self._norms = {index: zeros(self.n_layers + 1) for index, _ in self.means}

    def _sharing(self, device: torch.device) -> list[tuple[Tensor, set[int], list[int]]]:
        """(directions, layers, rows of the pass) of each set of directions that readings hold."""
        shared: dict[int, tuple[Tensor, set[int], list[int]]] = {}
        for index, _job, reading in self.readings:
            if reading.directions is not None:
                held = shared.setdefault(id(reading.directions), (reading.directions.to(device), set(), []))
                held[1].update(reading.layers)
                held[2].append(index)
        return list(shared.values())

    def _capturing(self, zeros: Callable[..., Tensor]) -> list[Captured]:
        """The tokens that are captured, by set of directions."""
        sets: dict[int, list[tuple[int, Job, Capture]]] = {}
        for item in self.captures:
            sets.setdefault(id(item[2].directions), []).append(item)
        found = []
        for items in sets.values():
            spans = [self._span(index, job, capture) for index, job, capture in items]
            places = [(index, at) for (index, _, _), span in zip(items, spans, strict=True) for at in range(*span)]
            rows, tokens = torch.tensor(places, device=self.device).unbind(1)
            directions = items[0][2].directions.to(self.device)
            values = zeros(len(places), len(directions), self.n_layers + 1).fill_(math.nan)
            found.append(Captured(items, [last - first for first, last in spans], rows, tokens, directions, values))
        return found

    def _span(self, index: int, job: Job, capture: Capture) -> tuple[int, int]:
        prompt = len(job.row.prompt) - self.starts[index]
        return 0 if capture.prompt_mean else prompt - 1, len(job.given) - self.starts[index]

    def __call__(self, layer: int, hidden: Tensor) -> None:
        """Read the residual stream `(rows, tokens, d_model)` after a layer; 0 is the embedding.

        Raises:
            DeepEnoughError: no row needs a deeper one.
        """
        if layer in self._layers:
            self._read_layer(layer, hidden.float())
        if layer and layer == self.depth:
            raise DeepEnoughError

    def _read_layer(self, layer: int, hidden: Tensor) -> None:
        if layer:
            for item in self._captured:
                item.values[:, :, layer] = project(hidden[item.rows, item.tokens], item.directions[:, layer])
        for index, job in self.means:
            prompt, total = len(job.row.prompt), len(job.given)
            out = self._hidden[index]
            out[0, layer] = hidden[index, prompt - 1]
            out[1, layer] = hidden[index, :prompt].mean(0)
            if total > prompt:
                out[2, layer] = hidden[index, prompt:total].mean(0)
                self._norms[index][layer] = hidden[index, prompt:total].norm(dim=-1).mean()
        for index, _job, reading in self.readings:
            if layer in reading.layers:
                shift = self.starts[index]
                for place, (first, last) in enumerate(reading.spans):
                    mean = hidden[index, first - shift : last - shift].mean(0)
                    self._read[index][place, reading.layers.index(layer)] = mean
        for place, (directions, layers, rows) in enumerate(self._shared):
            if layer in layers:
                whole = len(rows) == len(hidden)
                self._products[place, layer] = project(hidden if whole else hidden[rows], directions[:, layer])

    def deliver(self) -> None:
        """Hand every job what was read for it."""
        for item in self._captured:
            everything, first = item.values.cpu().numpy(), 0
            for (_index, job, capture), n in zip(item.captures, item.lengths, strict=True):
                values, first = everything[first : first + n], first + n
                # The span starts at the row's first token for a mean over the prompt, else at the prompt's last one.
                prompt = n - len(job.row.continuation)
                job.prompt_last = values[prompt - 1].copy()  # a result outlives its pass
                if capture.prompt_mean:
                    job.prompt_mean = values[:prompt].mean(0)
                if capture.response_mean or capture.per_token:
                    job.response += list(values[prompt:])
        for index, job in self.means:
            job.hidden = self._hidden[index].cpu().numpy()
            job.norms = self._norms[index].cpu().numpy()
        for index, job, _reading in self.readings:
            job.read = self._read[index].cpu().numpy()
        for place, (_directions, layers, rows) in enumerate(self._shared):
            order = sorted(layers)
            # `(rows, tokens, n_directions, n_layers)`
            products = torch.stack([self._products[place, layer] for layer in order], -1).cpu().numpy()
            for index, values in zip(rows, products, strict=True):
                job, reading = self.jobs[index], self.jobs[index].row.reading
                assert reading is not None
                first, last = job.row.shared_prefix - self.starts[index], len(job.given) - self.starts[index]
                job.products = values[first:last, :, [order.index(layer) for layer in reading.layers]]


def no_embedding(values: np.ndarray) -> np.ndarray:
    """Projections `(n_directions, n_layers + 1)` with NaN for the embedding, which is never read."""
    out = values.copy()
    out[:, 0] = np.nan
    return out


def position_masks(jobs: list[Job], starts: list[int], width: int) -> Tensor:
    """`(3, rows, width, 1)` float32: where `response`, `prompt` and `all` interventions act."""
    position = torch.tensor(starts)[:, None] + torch.arange(width)
    prompts = torch.tensor([len(job.row.prompt) for job in jobs])[:, None]
    totals = torch.tensor([len(job.given) for job in jobs])[:, None]
    valid = position < totals
    return torch.stack([valid & (position >= prompts - 1), position < prompts, valid]).float()[..., None]
