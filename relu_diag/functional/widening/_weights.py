"""Weights of neurons that are placed: the coordinates in which they are looked for, and how long they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relu_diag.functional.block import ShallowBlock
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.widening.output_lengths import output_length


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Coordinates in which inputs with a constant last column are centred, and that column is as long as they are."""

    mean: Tensor | None
    spread: float

    @classmethod
    def of(cls, X: Tensor) -> Frame:
        """The frame of some inputs; as they are without a constant column."""
        if X.shape[1] < 2 or not bool((X[:, -1] == 1).all()) or len(X) < 2:
            return cls(None, 1.0)
        mean = X[:, :-1].mean(dim=0)
        spread = float((X[:, :-1] - mean).square().sum(dim=1).mean().sqrt())
        return cls(mean, spread) if spread > 0 else cls(None, 1.0)

    def centred(self, X: Tensor) -> Tensor:
        """Inputs in these coordinates."""
        return X if self.mean is None else torch.cat([X[:, :-1] - self.mean, self.spread * X[:, -1:]], dim=1)

    def back(self, V: Tensor) -> Tensor:
        """Input weights, of these coordinates, as those of the inputs."""
        if self.mean is None:
            return V
        bias = self.spread * V[:, -1] - V[:, :-1] @ self.mean
        return torch.cat([V[:, :-1], bias[:, None]], dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """Usual length of input weights, ratio to that of output weights, and the length all of those have, or None."""

    usual: float
    ratio: float
    fixed: float | None

    @classmethod
    def of(cls, block: ShallowBlock, units: Tensor, priced: bool) -> Lengths:
        """Those of the neurons that stay."""
        stay = torch.ones(len(block.W), dtype=torch.bool, device=block.W.device)
        stay[units] = False
        W = block.W.detach().norm(dim=1)
        H = block.H.detach().norm(dim=0)
        living = stay & (W > 0) & (H > 0)
        fixed = output_length(block)
        if not bool(living.any()):
            usual = float(W[W > 0].median()) if bool((W > 0).any()) else 1.0
            return cls(usual, 1.0, fixed)
        usual, out = float(W[living].median()), float(H[living].median())
        return cls(usual, usual / out, out if priced and fixed is None else fixed)

    def weights(self, v: Tensor, o: Tensor, amplitude: Tensor) -> tuple[Tensor, Tensor]:
        """Input weights ``(n, d)`` and output weights ``(J, n)`` of neurons of some amplitudes."""
        silent = amplitude == 0
        if self.fixed is not None:
            w = torch.where(silent, FLOAT64.whisper * self.usual, amplitude / self.fixed)
            return w[:, None] * v, self.fixed * o.T
        w = torch.where(silent, self.usual, (amplitude * self.ratio).sqrt())
        h = torch.where(silent, 0.0, (amplitude / self.ratio).sqrt())
        return w[:, None] * v, (h[:, None] * o).T
