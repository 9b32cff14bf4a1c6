"""A batch norm with fixed statistics between a layer and its activation: a factor of the layer's weight, and a bias."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm

NORMS = {"NativeBatchNormBackward0", "CudnnBatchNormBackward0"}


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """A batch norm in eval mode, ``z -> scale z + shift``.

    Attributes:
        node: Its node.
        scale: Shape ``(I,)``.
        shift: Shape ``(I,)``.
    """

    node: Node
    scale: Tensor
    shift: Tensor

    def weights(self, W: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Input weights and bias of layer and norm in one, shapes ``(I, d)`` and ``(I,)``."""
        scale, shift = self.scale.to(W), self.shift.to(W)
        return scale[:, None] * W, shift if bias is None else shift + scale * bias.to(W)

    def pre_activations(self, Z: Tensor) -> Tensor:
        """What the norm makes of the layer's outputs, shape ``(N, I)``."""
        return Z * self.scale.to(Z) + self.shift.to(Z)


def fold_of(node: Node, module: nn.Module) -> Fold | str:
    """A batch norm of the module as a fold; or in a few words why it is none."""
    if node._saved_training:  # type: ignore[attr-defined]
        return "BatchNorm between, in training mode"
    mean = node._saved_running_mean  # type: ignore[attr-defined]
    if node._saved_input.ndim != 2:  # type: ignore[attr-defined]
        return "BatchNorm between, over other axes than the last"
    for norm in module.modules():
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
            continue
        if norm.running_mean.data_ptr() == mean.data_ptr():
            scale = (norm.running_var + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight.detach()
            shift = -scale * norm.running_mean
            return Fold(node, scale, shift if norm.bias is None else shift + norm.bias.detach())
    return "BatchNorm between, which is no module"
