"""Target functions that a config can name."""

from __future__ import annotations

import torch
from torch import Tensor

from relu_diag.nn import ShallowNet, small_init_


class Affine:
    """``slope x + intercept``, entry by entry.

    Args:
        slope: Slope.
        intercept: Intercept.

    Example:
        >>> Affine(2.0, 1.0)(torch.tensor([0.0, 1.0]))
        tensor([1., 3.])
    """

    def __init__(self, slope: float = 1.0, intercept: float = 0.0) -> None:
        self.slope = slope
        self.intercept = intercept

    def __call__(self, x: Tensor) -> Tensor:
        """The values.

        Args:
            x: Inputs, any shape.

        Returns:
            Values, shape of ``x``.
        """
        return self.slope * x + self.intercept


class Sine:
    """``sin(frequency x)``, entry by entry.

    Args:
        frequency: Radians per unit of input.

    Example:
        >>> Sine(0.0)(torch.ones(2))
        tensor([0., 0.])
    """

    def __init__(self, frequency: float = 1.0) -> None:
        self.frequency = frequency

    def __call__(self, x: Tensor) -> Tensor:
        """The values.

        Args:
            x: Inputs, any shape.

        Returns:
            Values, shape of ``x``.
        """
        return torch.sin(self.frequency * x)


class Teacher:
    """A random ReLU network, which a student of the same width can learn exactly.

    Args:
        inputs: Number of inputs.
        width: Number of hidden neurons.
        seed: Seed of its weights. The global generator is left alone.

    Example:
        >>> Teacher(inputs=3, width=2)(torch.ones(5, 3)).shape
        torch.Size([5, 1])
    """

    def __init__(self, inputs: int, width: int, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            self.net = ShallowNet(inputs, width, hidden_bias=True).requires_grad_(False)
        small_init_(self.net, scale=1.0, generator=torch.Generator().manual_seed(seed))

    def __call__(self, x: Tensor) -> Tensor:
        """The values.

        Args:
            x: Inputs, shape ``(N, inputs)``.

        Returns:
            Values, shape ``(N, 1)``.
        """
        out: Tensor = self.net.to(x)(x)
        return out
