"""Read the signal of a block off any differentiable loss, with hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from relu_diag.capture.location import BlockLocation
from relu_diag.functional import BlockSignal, NotFiniteError, rho

# Rows on which the activation is compared with the one traced: enough to notice dropout, few enough to cost nothing.
_CHECKED_ROWS = 16


def read_signal(module: nn.Module, location: BlockLocation, loss: Callable[[], Tensor]) -> tuple[BlockSignal, Tensor]:
    """The signal of a block under any differentiable loss, read with hooks while the loss is computed.

    ``G`` and ``C`` are taken after the activation, so autograd's relu'(0) = 0 does not enter them. ``C`` includes
    everything that reads the hidden activations, a penalty or a skip connection for example. No parameter's ``.grad``
    is touched.

    Args:
        module: The module that holds the block.
        location: Which block.
        loss: Computes the loss with a forward pass of the module.

    Returns:
        The signal, one row per row that went through the block, in loss units per unit of output, and the loss, ``()``.

    Raises:
        ValueError: If the loss is not a finite scalar with a gradient path through the block, the block did not run
            exactly once, or what it computed is not ``rho(Z)`` with the location's slopes.

    Example:
        >>> from relu_diag.capture import choose_block
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> signal, loss = read_signal(net, choose_block(net), lambda: net(torch.eye(3)).square().mean())
        >>> signal.X  # the last column carries the hidden bias
        tensor([[1., 0., 0., 1.],
                [0., 1., 0., 1.],
                [0., 0., 1., 1.]])
    """
    hidden, output = location.linears(module)
    seen: list[_Forward] = []

    def open_forward(_: nn.Module, args: tuple[Tensor], Z: Tensor) -> Tensor:
        # If everything before the block is frozen, no graph would carry a gradient to the activations.
        Z = Z if Z.requires_grad else Z.detach().requires_grad_().clone()
        seen.append(_Forward(args[0].detach(), Z, Z._version, get_gradient_edge(Z)))
        return Z

    def note_activation(_: nn.Module, args: tuple[Tensor]) -> None:
        seen[-1].A = args[0].detach()
        seen[-1].A_edge = get_gradient_edge(args[0])

    def note_output(_: nn.Module, __: tuple[Tensor], out: Tensor) -> None:
        seen[-1].out_edge = get_gradient_edge(out)

    hooks = [
        hidden.register_forward_hook(open_forward),
        output.register_forward_pre_hook(note_activation),
        output.register_forward_hook(note_output),
    ]
    try:
        # Compiled code ignores hooks that were registered after it was compiled.
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            value = loss()
    finally:
        for hook in hooks:
            hook.remove()
    if len(seen) != 1 or seen[0].A_edge is None or seen[0].out_edge is None:
        raise ValueError(f"The block {location} must run once in a pass; it ran {len(seen)} times.")
    return _signal(seen[0], value, hidden, location, location.slopes_now(module)), value.detach()


@dataclass(slots=True)
class _Forward:
    """What the hooks saw in one forward pass: inputs, pre-activations, activations, and their places in the graph."""

    X: Tensor
    Z: Tensor
    version: int
    Z_edge: GradientEdge
    A: Tensor | None = None
    A_edge: GradientEdge | None = None
    out_edge: GradientEdge | None = None


def _signal(
    seen: _Forward, loss: Tensor, hidden: nn.Linear, location: BlockLocation, slopes: tuple[float, float]
) -> BlockSignal:
    """The signal ``X (N, d)``, ``G (N, J)``, ``C (N, I)``, of a loss that depends on the block alone.

    Raises:
        ValueError: If it does not, or if the activation is not the one traced.
    """
    _check_loss(loss)
    assert seen.A is not None
    assert seen.A_edge is not None
    assert seen.out_edge is not None
    if _passes_by(loss, seen.A_edge, seen.Z_edge):
        raise ValueError(
            f"The pre-activations of {location.hidden!r} are read by more than the activation before "
            f"{location.output!r}: the loss is not a function of the block alone."
        )
    G, C = torch.autograd.grad(loss.reshape(()), (seen.out_edge, seen.A_edge), allow_unused=True)
    if G is None or C is None:
        raise ValueError(
            f"The loss does not depend on the output of the block {location}: compute it from that output."
        )
    neurons, inputs = hidden.weight.shape
    dtype = hidden.weight.dtype
    X = seen.X.reshape(-1, inputs).to(dtype)
    Z = seen.Z.detach().reshape(-1, neurons)
    # An in-place activation has overwritten Z, and autocast gives it too few digits: then it is computed again.
    kept = Z if seen.Z._version == seen.version and Z.dtype == dtype else None
    if kept is not None:
        _check_activation(kept, seen.A.reshape(-1, neurons), location, slopes)
    if hidden.bias is not None:
        X = torch.cat([X, X.new_ones(len(X), 1)], dim=1)
    return BlockSignal(X, G.reshape(len(X), -1).to(dtype), C.reshape(-1, neurons).to(dtype), kept)


def _check_loss(loss: Any) -> None:
    """Refuse a loss that is not a finite scalar with a gradient path.

    Raises:
        ValueError: If it is no tensor of one element, or has no gradient.
        NotFiniteError: If it is not finite.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"The loss must be a tensor with one element; got {got}.")
    if not bool(torch.isfinite(loss)):
        raise NotFiniteError(f"The loss is {loss.item()}: the training diverged, or the data needs cleaning.")
    if not loss.requires_grad:
        raise ValueError("The loss has no gradient path: compute it from the output, without detach or no_grad.")


def _passes_by(loss: Tensor, around: GradientEdge, target: GradientEdge) -> bool:
    """Whether a path through the graph leads from the loss to the target without passing the node `around`."""
    to_visit = [get_gradient_edge(loss).node]
    visited = {around.node}
    while to_visit:
        node = to_visit.pop()
        if node is target.node:
            return True
        if node not in visited:
            visited.add(node)
            to_visit.extend(following for following, _ in node.next_functions if following is not None)
    return False


def _check_activation(Z: Tensor, A: Tensor, location: BlockLocation, slopes: tuple[float, float]) -> None:
    """Refuse activations ``A (N, I)`` that are not ``rho(Z)``.

    Raises:
        ValueError: If they differ in one of the first rows.
    """
    first = Z[:_CHECKED_ROWS]
    atol = 1e-6 * float(first.abs().max())
    if not torch.allclose(A[:_CHECKED_ROWS], rho(first, slopes), rtol=1e-4, atol=atol):
        raise ValueError(
            f"Between {location.hidden!r} and {location.output!r} the activation is not the one traced, with slopes "
            f"{slopes}. Dropout in train mode? Look in eval mode, or find the block again."
        )
