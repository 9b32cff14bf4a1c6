"""A network and its data as plain arrays, the loss from its definition, and the way to a file and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relu_diag import ShallowBlock

Array = NDArray[Any]
Slopes = tuple[float, float]


@dataclass(frozen=True)
class Problem:
    """Weights ``W`` (I, d), ``H`` (J, I), inputs ``X`` (N, d), targets ``Y`` (N, J), output bias ``b`` (J,) or None."""

    W: Array
    H: Array
    X: Array
    Y: Array
    slopes: Slopes = (0.0, 1.0)
    b: Array | None = None
    reduction: str = "sum"
    float32: bool = False
    family: str = ""

    @property
    def factor(self) -> float:
        return {"mean": 2.0 / self.Y.size, "sum": 2.0, "half_sum": 1.0}[self.reduction]

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.float32 else torch.float64

    def tensor(self, value: Array) -> torch.Tensor:
        return torch.as_tensor(np.array(value, dtype=np.float64)).to(self.dtype)

    def block(self) -> ShallowBlock:
        bias = None if self.b is None else self.tensor(self.b)
        return ShallowBlock(self.tensor(self.W), self.tensor(self.H), self.slopes, bias)

    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tensor(self.X), self.tensor(self.Y)

    def rounded(self) -> Problem:
        """The same in numbers of float32."""
        cast = {name: _single(getattr(self, name)) for name in ("W", "H", "X", "Y")}
        return replace(self, **cast, b=None if self.b is None else _single(self.b), float32=True)

    def save(self, path: Path, **notes: str) -> None:
        bias = np.empty(0) if self.b is None else self.b
        words = {"reduction": self.reduction, "family": self.family, **notes}
        np.savez(
            path, W=self.W, H=self.H, X=self.X, Y=self.Y, b=bias, slopes=self.slopes, float32=self.float32, **words
        )

    @staticmethod
    def load(path: Path) -> Problem:
        with np.load(path) as stored:
            bias = stored["b"] if stored["b"].size else None
            slopes = (float(stored["slopes"][0]), float(stored["slopes"][1]))
            words = {"reduction": str(stored["reduction"]), "family": str(stored["family"])}
            arrays = {name: stored[name] for name in ("W", "H", "X", "Y")}
            return Problem(**arrays, slopes=slopes, b=bias, float32=bool(stored["float32"]), **words)

    def __str__(self) -> str:
        """Python that builds it."""
        parts = [f"{name} = t({getattr(self, name).tolist()!r})" for name in ("W", "H", "X", "Y")]
        bias = "None" if self.b is None else f"t({self.b.tolist()!r})"
        kind = "float32" if self.float32 else "float64"
        start = f"import torch, relu_diag.functional as F\nt = lambda a: torch.tensor(a, dtype=torch.{kind})\n"
        return start + "\n".join(parts) + f"\nblock = F.ShallowBlock(W, H, {self.slopes}, {bias})"


def rho(Z: Array, slopes: Slopes) -> Array:
    return np.where(Z > 0, slopes[1] * Z, slopes[0] * Z)


def outputs(problem: Problem) -> Array:
    """In long double."""
    W, H, X = (np.asarray(value, dtype=np.longdouble) for value in (problem.W, problem.H, problem.X))
    out = rho(X @ W.T, problem.slopes) @ H.T
    return out if problem.b is None else out + problem.b


def loss(problem: Problem) -> np.longdouble:
    """In long double."""
    return np.longdouble(problem.factor) / 2 * np.square(outputs(problem) - problem.Y).sum()


def with_targets(problem: Problem, E: Array) -> Problem:
    """The problem whose residuals at its weights are ``E``, up to rounding."""
    return replace(problem, Y=np.asarray(outputs(problem) - E, dtype=np.float64))


def _single(value: Array) -> Array:
    return value.astype(np.float32).astype(np.float64)
