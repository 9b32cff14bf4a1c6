"""What a network with scalar input and output is."""

from __future__ import annotations

import math

from torch import Tensor

from relu_diag.functional._checks import check_together, check_values


def check_network(w: Tensor, b: Tensor, h: Tensor) -> None:
    """Refuse what is no network with scalar input and output.

    Args:
        w: Input weights.
        b: Hidden biases.
        h: Output weights.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit, or (seen on a CPU only) a value is not finite.
    """
    for name, value in (("w", w), ("b", b), ("h", h)):
        # Reading a value on a GPU would make the host wait at every step.
        check_values(name, value.detach().to("meta") if _is_elsewhere(value) else value)
        if value.ndim != 1 or not len(value) or value.shape != w.shape:
            raise ValueError(
                f"`{name}` must be a vector with one entry per neuron, as w {tuple(w.shape)}; "
                f"got {tuple(value.shape)}. Pass linear.weight.flatten()."
            )
        check_together(name, value, "w", w)


def check_one_number(c: Tensor | float) -> None:
    """Refuse an output bias that is not one number.

    Args:
        c: Output bias.

    Raises:
        ValueError: If it has several entries, or (seen on a CPU only) is not finite.
    """
    if isinstance(c, Tensor):
        if c.numel() != 1:
            raise ValueError(f"`c` must be one number; got shape {tuple(c.shape)}.")
        check_values("c", c.detach().to("meta") if _is_elsewhere(c) else c)
    elif not math.isfinite(c):
        raise ValueError(f"`c` must be finite; got {c!r}.")


def _is_elsewhere(value: object) -> bool:
    """Whether a tensor's values would have to be fetched from another device."""
    return isinstance(value, Tensor) and value.device.type != "cpu"
