"""The dense Hessian of a block is that of autograd, samples on kinks left out."""

from __future__ import annotations

import numpy as np
import torch
from torch.testing import assert_close

from relu_diag import functional as F
from relu_diag.functional.verdict import smooth_hessian


def test_the_hessian_is_that_of_autograd() -> None:
    draw = torch.Generator().manual_seed(0)
    N, d, neurons, J = 7, 3, 4, 2
    X, W, H, b = (
        torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((N, d), (neurons, d), (J, neurons), (J,))
    )
    loss = F.CrossEntropy(torch.randint(J, (N,), generator=draw)).double()
    slope = torch.where(X @ W.T > 0, 1.0, 0.1)

    def value(flat: torch.Tensor) -> torch.Tensor:
        W, H, b = flat.split([neurons * d, J * neurons, J])
        return loss((slope * (X @ W.view(neurons, d).T)) @ H.view(J, neurons).T + b)

    reference = torch.autograd.functional.hessian(value, torch.cat([W.flatten(), H.flatten(), b]))
    outputs = (slope * (X @ W.T)) @ H.T + b

    def curved(change: np.ndarray) -> np.ndarray:
        return loss.curvature(outputs, torch.as_tensor(np.ascontiguousarray(change))).numpy()

    plain = [part.numpy() for part in (X, slope, W, H, loss.gradient(outputs))]
    assert_close(torch.as_tensor(smooth_hessian(*plain, curved)), reference)
