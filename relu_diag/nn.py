"""Modules: ReLU-like activations, the shallow network, and its small initialisations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from relu_diag.functional import rho
from relu_diag.functional.guarantee import smooth_leaky_relu


class ReLULike(nn.Module):
    """The activation ``s+ z`` for ``z >= 0`` and ``s- z`` below.

    Args:
        s_minus: Slope on the negative side.
        s_plus: Slope on the positive side.

    Raises:
        ValueError: If the slopes are not finite or equal.

    Example:
        >>> ReLULike(s_minus=-1.0)(torch.tensor([-2.0, 3.0]))  # the absolute value
        tensor([2., 3.])
    """

    def __init__(self, s_minus: float = 0.0, s_plus: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(s_minus) and math.isfinite(s_plus)) or s_minus == s_plus:
            raise ValueError(f"The slopes must be finite and differ; got s-={s_minus!r}, s+={s_plus!r}.")
        self.s_minus = float(s_minus)
        self.s_plus = float(s_plus)

    def forward(self, z: Tensor) -> Tensor:
        """Apply the activation.

        Args:
            z: Pre-activations, any shape.

        Returns:
            Activations, same shape.
        """
        return rho(z, (self.s_minus, self.s_plus))

    def extra_repr(self) -> str:
        """Arguments, for ``repr``.

        Returns:
            The two slopes.
        """
        return f"s_minus={self.s_minus}, s_plus={self.s_plus}"


class SmoothLeakyReLU(nn.Module):
    """The smooth activation ``a z + (1 - a) log(1 + e^z)``, with slope ``a`` at ``-inf`` and 1 at ``+inf``.

    Source: Chatterjee, section 4.

    Args:
        slope: ``a``, strictly between 0 and 1.
        centred: Whether to subtract the value at 0, so that 0 stays 0.

    Raises:
        ValueError: If the slope is not in (0, 1).

    Example:
        >>> SmoothLeakyReLU(0.5)(torch.tensor([0.0])), SmoothLeakyReLU(0.5, centred=True)(torch.tensor([0.0]))
        (tensor([0.3466]), tensor([0.]))
    """

    def __init__(self, slope: float = 0.1, centred: bool = False) -> None:
        super().__init__()
        if not 0.0 < slope < 1.0:
            raise ValueError(f"`slope` must lie strictly between 0 and 1; got {slope!r}.")
        self.slope = float(slope)
        self.centred = centred

    def forward(self, z: Tensor) -> Tensor:
        """Apply the activation.

        Args:
            z: Pre-activations, any shape.

        Returns:
            Activations, same shape.
        """
        return smooth_leaky_relu(z, self.slope, self.centred)

    def extra_repr(self) -> str:
        """Arguments, for ``repr``.

        Returns:
            The slope, and whether it is centred.
        """
        return f"slope={self.slope}" + (", centred=True" if self.centred else "")


class ShallowNet(nn.Module):
    """One hidden layer: ``output(activation(hidden(x)))``.

    Args:
        in_features: Number of inputs.
        width: Number of hidden neurons.
        out_features: Number of outputs.
        slopes: ``(s-, s+)`` of the activation.
        hidden_bias: Whether the hidden layer has a bias. Data with a constant column need none.
        output_bias: Whether the output layer has one.
        init_scale: Standard deviation of normal initial weights (`small_init_`); None keeps torch's default.

    Example:
        >>> net = ShallowNet(in_features=2, width=50, init_scale=50**-3)
        >>> net(torch.ones(5, 2)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        out_features: int = 1,
        slopes: tuple[float, float] = (0.0, 1.0),
        hidden_bias: bool = False,
        output_bias: bool = False,
        init_scale: float | None = None,
    ) -> None:
        super().__init__()
        # Torch's default draw must not advance the generator: the small weights are drawn from the user's seed.
        with torch.random.fork_rng(devices=[], enabled=init_scale is not None):
            self.hidden = nn.Linear(in_features, width, bias=hidden_bias)
            self.activation = ReLULike(*slopes)
            self.output = nn.Linear(width, out_features, bias=output_bias)
        if init_scale is not None:
            small_init_(self, init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network.

        Args:
            x: Inputs, shape ``(N, in_features)``.

        Returns:
            Outputs, shape ``(N, out_features)``.
        """
        out: Tensor = self.output(self.activation(self.hidden(x)))
        return out


def small_init_(net: ShallowNet, scale: float, generator: torch.Generator | None = None) -> None:
    """Draw all weights from a normal law: input weights and hidden bias first, then output weights and bias.

    With ``torch.manual_seed(12)``, 50 neurons and no biases this is the draw of Wu et al., section 4.1.1, at
    ``scale = 50**-3``. The numbers are drawn in float32 on the CPU whatever the network's dtype and device, so a seed
    means one network.

    Args:
        net: The network, changed in place.
        scale: Standard deviation.
        generator: Source of randomness on the CPU; None: torch's global one.

    Raises:
        ValueError: If the scale is negative or not finite.

    Example:
        >>> net = ShallowNet(in_features=2, width=50)
        >>> small_init_(net, scale=50**-3, generator=torch.Generator().manual_seed(12))
        >>> net.hidden.weight.abs().max() < 1e-4
        tensor(True)
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"`scale` must be a finite standard deviation >= 0; got {scale!r}.")
    with torch.no_grad():
        for layer in (net.hidden, net.output):
            for parameter in layer.parameters():
                draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
                parameter.copy_(draw.to(parameter.dtype) * scale)


def balance_(net: ShallowNet) -> None:
    """Rescale each neuron to ``||w_i|| = ||h_i||`` without changing the function (Wu et al., Fact 4.6).

    A neuron with ``w_i = 0`` or ``h_i = 0`` cannot be rescaled and stays as it is.

    Args:
        net: The network, changed in place.

    Example:
        >>> net = ShallowNet(in_features=2, width=3)
        >>> balance_(net)
        >>> torch.allclose(net.hidden.weight.norm(dim=1), net.output.weight.norm(dim=0))
        True
    """
    with torch.no_grad():
        inputs = [net.hidden.weight] if net.hidden.bias is None else [net.hidden.weight, net.hidden.bias[:, None]]
        w_norm = torch.cat(inputs, dim=1).norm(dim=1)
        h_norm = net.output.weight.norm(dim=0)
        factor = torch.where((w_norm > 0) & (h_norm > 0), (h_norm / w_norm).sqrt(), 1.0)
        for tensor in inputs:
            tensor.mul_(factor[:, None])
        net.output.weight.div_(factor)


def certified_init_(module: nn.Module, last: float, middle: float = 1.0) -> None:
    """All biases and the first Linear 0, those between positive, the last one large: convergence is certain.

    For smooth, strictly increasing activations with value 0 at 0 (`SmoothLeakyReLU` with ``centred=True``) and linearly
    independent inputs, gradient descent goes to zero loss from here if ``last`` is large enough and the learning rate
    small enough; `relu_diag.functional.smooth_convergence_certificate` says whether they are.

    Source: Chatterjee, Theorem 4.1.

    Args:
        module: A network of Linear layers in the order of their application, changed in place.
        last: Every weight of the last one, positive.
        middle: Every weight of those between, positive.

    Raises:
        ValueError: If there are fewer than two Linear layers, or a weight is not positive.

    Example:
        >>> net = nn.Sequential(nn.Linear(5, 8), SmoothLeakyReLU(centred=True), nn.Linear(8, 1))
        >>> certified_init_(net, last=10.0)
        >>> net(torch.ones(1, 5)).item()
        0.0
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if len(layers) < 2:
        raise ValueError(f"`module` needs two Linear layers or more; {type(module).__name__} has {len(layers)}.")
    if not (0 < last < math.inf and 0 < middle < math.inf):
        raise ValueError(f"`last` and `middle` must be positive and finite; got {last!r}, {middle!r}.")
    for layer, value in zip(layers, (0.0, *[middle] * (len(layers) - 2), last), strict=True):
        nn.init.constant_(layer.weight, value)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
