"""The place of a block in a module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class BlockLocation:
    """The place of a block in a module.

    Attributes:
        hidden: Qualified name of the first Linear.
        output: Qualified name of the second one.
        slopes: Slopes ``(s-, s+)`` of the activation between them, as traced.
        prelu: Qualified name of the ``nn.PReLU`` between them, whose slope is trained; None if the slopes are fixed.

    Example:
        >>> location = BlockLocation("0", "2", slopes=(0.0, 1.0))
        >>> print(location)
        0 -> 2
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> location.linears(net)
        (Linear(in_features=2, out_features=3, bias=True), Linear(in_features=3, out_features=1, bias=True))
    """

    hidden: str
    output: str
    slopes: tuple[float, float]
    prelu: str | None = None

    def __str__(self) -> str:
        return f"{self.hidden or 'module'} -> {self.output}"

    def linears(self, module: nn.Module) -> tuple[nn.Linear, nn.Linear]:
        """The two layers of the block.

        Args:
            module: The module that holds it.

        Returns:
            Hidden and output layer.

        Raises:
            ValueError: If the module has no such layers.
        """
        layers = dict(module.named_modules())
        hidden = layers.get(self.hidden)
        output = layers.get(self.output)
        if not (isinstance(hidden, nn.Linear) and isinstance(output, nn.Linear)):
            raise ValueError(f"{type(module).__name__} has no Linear layers {self}; find its blocks with find_blocks.")
        return hidden, output

    def slopes_now(self, module: nn.Module) -> tuple[float, float]:
        """The slopes at the module's current parameters.

        Args:
            module: The module that holds the block.

        Returns:
            ``(s-, s+)``: as traced, or with the current slope of an ``nn.PReLU``.
        """
        if self.prelu is None:
            return self.slopes
        weight = module.get_submodule(self.prelu).weight
        assert isinstance(weight, nn.Parameter)
        return (float(weight.detach()), 1.0)
