"""Why derivatives are taken along the neuron and across it: one neuron on a kink (Wu et al., Figure 9).

Writes ``runs/aligned_axes.png``. Along the canonical axes (grey) the loss has kinks inside the quadrants between them;
along the radial and the tangential axes (red) every quadrant holds one smooth piece.
"""

from __future__ import annotations

from pathlib import Path

import torch

from relu_diag import ShallowBlock
from relu_diag import functional as F
from relu_diag.figures import cell_figure
from relu_diag.functional.local import radial_directions


def main() -> None:
    X, Y = torch.tensor([[0.9, 0.3]], dtype=torch.float64), torch.tensor([[3.0]], dtype=torch.float64)
    block = ShallowBlock(torch.tensor([[0.15, -0.45]], dtype=X.dtype), torch.tensor([[0.5]], dtype=X.dtype))
    signal = F.squared_error_signal(block, X, Y, reduction="half_sum")
    radial = radial_directions(block.W)
    tangential = radial.flip(1) * torch.tensor([-1.0, 1.0], dtype=X.dtype)
    slopes = {side: float(F.tangential_derivatives(block, signal, side * tangential)) for side in (1.0, -1.0)}

    figure = cell_figure(block, X, Y, reduction="half_sum")
    ax = figure.axes[0]
    at, size = block.W[0].tolist(), 0.25 * (ax.get_xlim()[1] - ax.get_xlim()[0])
    for direction, color in ((torch.eye(2), "0.4"), (torch.cat([radial, tangential]), "red")):
        for axis in (*direction, *-direction):
            end = [a + size * float(b) for a, b in zip(at, axis, strict=True)]
            ax.annotate("", xy=end, xytext=at, arrowprops={"arrowstyle": "->", "color": color, "linewidth": 1.5})
    Path("runs").mkdir(exist_ok=True)
    figure.savefig("runs/aligned_axes.png", dpi=150)

    print(f"radial derivative {float(F.neuron_geometry(block, signal).radial):.3g}")
    print(f"tangential derivatives {slopes[1.0]:.3g} and {slopes[-1.0]:.3g}")
    print("figure: runs/aligned_axes.png")
    # The slope is h e ||x|| into the active side and zero into the other; those of a smooth loss would be opposite.
    torch.testing.assert_close(sorted(slopes.values()), [-0.5 * 3.0 * 0.9**0.5, 0.0])


if __name__ == "__main__":
    main()
