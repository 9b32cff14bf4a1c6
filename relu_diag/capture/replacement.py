"""The loss of a module as a function of a block's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from relu_diag.capture.location import BlockLocation


def loss_at_outputs(
    module: nn.Module, location: BlockLocation, outputs: Tensor, loss: Callable[[], Tensor]
) -> tuple[Tensor, int]:
    """The loss of a module with a block's outputs replaced; differentiable in the new outputs.

    Args:
        module: The module that holds the block.
        location: Which block.
        outputs: The new outputs, one row per row that goes through the block, shape ``(N, J)``; extra rows are ignored.
        loss: Computes the loss with a forward pass of the module.

    Returns:
        The loss, shape ``()``, and the number of rows of `outputs` that were used.

    Raises:
        ValueError: If more rows go through the block than there are outputs.

    Example:
        >>> import torch
        >>> from relu_diag.nn import ShallowNet
        >>> from relu_diag.capture import find_blocks
        >>> net, X = ShallowNet(2, 3), torch.eye(2)
        >>> (location,) = find_blocks(net, X)
        >>> loss_at_outputs(net, location, torch.tensor([[1.0], [2.0]]), lambda: net(X).sum())
        (tensor(3.), 2)
    """
    used = 0

    def put_in(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        nonlocal used
        rows = out.numel() // out.shape[-1]
        given = outputs[used : used + rows]
        used += rows
        # Too few rows are an error, raised below after the hook has been removed.
        return given.reshape(out.shape).to(out) if len(given) == rows else out

    hook = location.linears(module)[1].register_forward_hook(put_in)
    try:
        with torch.compiler.set_stance("force_eager"):
            value = loss()
    finally:
        hook.remove()
    if used > len(outputs):
        raise ValueError(f"`outputs` has {len(outputs)} rows; {used} go through the block {location}.")
    return value, used
