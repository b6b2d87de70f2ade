"""What a vector is made of, question by question: enough to see how it would turn with other questions.

Nothing of a response is kept but its part of a sum over the question's kept responses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from persona_bench.errors import VectorError, first_line
from persona_bench.files import write_atomic
from persona_bench.vectors.tensor_bytes import tensor_bytes

SIDES = ("positive", "negative")


class QuestionSums:
    """Sums of responses' mean residual streams by question and side.

    Attributes:
        hash: of the vector that they make.
    """

    def __init__(self, vector_hash: str = "") -> None:
        self.hash = vector_hash
        self._sums: dict[int, dict[str, np.ndarray]] = {}
        self._counts: dict[int, dict[str, int]] = {}

    def add(self, question: int, side: str, value: np.ndarray) -> None:
        """Add a kept response, `(n_layers + 1, d_model)`."""
        sums, counts = self._sums.setdefault(question, {}), self._counts.setdefault(question, dict.fromkeys(SIDES, 0))
        sums[side] = sums.get(side, 0.0) + value.astype(np.float64)
        counts[side] += 1

    def left_out(self) -> np.ndarray:
        """`(n_questions, n_layers + 1, d_model)`: the vector without each question, NaN where a side would be empty.

        Questions are in the order of their ids.
        """
        sums, counts = self._arrays()
        rest, others = sums.sum(axis=1, keepdims=True) - sums, counts.sum(axis=1, keepdims=True) - counts
        means = rest / np.where(others > 0, others, np.nan)[:, :, None, None]
        difference: np.ndarray = means[0] - means[1]
        return difference

    @property
    def n_questions(self) -> int:
        """Questions that the side with fewer of them has responses to."""
        return min(sum(counts[side] > 0 for counts in self._counts.values()) for side in SIDES)

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums `(2, n_questions, n_layers + 1, d_model)` and counts `(2, n_questions)`, positive first."""
        questions = sorted(self._sums)
        shape = next(iter(self._sums[questions[0]].values())).shape
        sums = [[self._sums[question].get(side, np.zeros(shape)) for question in questions] for side in SIDES]
        counts = [[self._counts[question][side] for question in questions] for side in SIDES]
        return np.array(sums), np.array(counts)

    def save(self, path: Path) -> None:
        """Write the file atomically, sums in float32.

        Raises:
            DataError: the file cannot be written.
        """
        sums, counts = self._arrays()
        tensors = {
            "sums": torch.tensor(sums, dtype=torch.float32),
            "counts": torch.tensor(counts),
            "questions": torch.tensor(sorted(self._sums)),
        }
        write_atomic(path, tensor_bytes(tensors, {"vector": self.hash}))

    @classmethod
    def load(cls, path: Path) -> QuestionSums:
        """Read a file written by `save`; nothing in it is executed.

        Raises:
            VectorError: not such a file, or broken.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                made = cls((file.metadata() or {})["vector"])
                sums, counts, questions = (file.get_tensor(name).numpy() for name in ("sums", "counts", "questions"))
            for place, question in enumerate(questions.tolist()):
                made._sums[question] = {side: sums[i, place].astype(np.float64) for i, side in enumerate(SIDES)}
                made._counts[question] = {side: int(counts[i, place]) for i, side in enumerate(SIDES)}
        except (SafetensorError, KeyError, OSError, IndexError) as error:
            raise VectorError(f"cannot read {path}: {first_line(error)}; remove it and run again") from error
        return made
