"""A few quasi-Newton steps of new neurons, both of their weights, the rest of the network as it is."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from relu_diag.functional.block import rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import slopes_at
from relu_diag.functional.output_loss import Loss


def short_training(
    loss: Loss, outputs: Tensor, X: Tensor, slopes: tuple[float, float], V: Tensor, H: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Input and output weights of the neurons at the start, after some steps, after some more, and so on.

    Args:
        loss: The loss.
        outputs: Outputs without the neurons, shape ``(N, J)``.
        X: Inputs, shape ``(N, d)``.
        slopes: ``(s-, s+)``.
        V: Input weights at the start, shape ``(n, d)``.
        H: Output weights at the start, shape ``(J, n)``.

    Yields:
        The weights, every `BUDGETS.short_steps` steps, those at the start first.
    """
    V = V.clone()
    H = H.clone()
    search = torch.optim.LBFGS(
        [V, H],
        max_iter=BUDGETS.short_steps,
        history_size=BUDGETS.short_history,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def closure() -> float:
        Z = X @ V.T
        A = rho(Z, slopes)
        here = loss.at(outputs + A @ H.T)
        E = here.gradient()
        H.grad = E.T @ A
        V.grad = ((E @ H) * slopes_at(Z, slopes)).T @ X
        return float(here.value())

    while True:
        yield V.clone(), H.clone()
        search.step(closure)  # type: ignore[no-untyped-call]
