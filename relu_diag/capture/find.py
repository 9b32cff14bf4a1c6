"""Find Linear -> ReLU-like -> Linear in any module by tracing, and read its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from relu_diag.capture.location import BlockLocation
from relu_diag.capture.observation import undisturbed
from relu_diag.capture.plain import check_plain
from relu_diag.capture.tracing import LinearCall, Trace, trace_linears
from relu_diag.functional import ShallowBlock

_PROBES = 4
_FIT_TOL = {torch.float64: 1e-10, torch.float32: 1e-5}


def find_blocks(module: nn.Module, example: Any = None) -> list[BlockLocation]:
    """Every Linear -> ReLU-like -> Linear block of a module, however it is written.

    The module is run on one batch in its current mode while each Linear returns a known probe in place of its output.
    If the input of one Linear is ``s+ z`` or ``s- z`` of another's probe ``z``, the two form a block with these slopes.
    The module stays as it is: weights, buffers, gradients, modes, attributes and what they hold, random numbers
    (`undisturbed` says what is restored). Layers without weights yet (nn.LazyLinear) are refused.

    Args:
        module: Any module.
        example: One input batch - a tensor, a tuple or dict of arguments of ``module(...)``, a batch of a data loader
            with the inputs first - or a function without arguments that runs the module. None:
            ``module.example_input_array``, or random vectors as wide as one of the Linear layers. Give an example if
            the inputs are not vectors.

    Returns:
        The blocks, in the order in which they run.

    Raises:
        ValueError: If there is no block, the message names what stands between each pair of Linear layers; if a layer
            has no weights yet.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.5), nn.Linear(8, 1))
        >>> print(find_blocks(net)[0])
        0 -> 2
    """
    lazy = [name for name, parameter in module.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ValueError(
            f"{lazy[0]!r} of {type(module).__name__} has no values yet: run the module once on a batch, then find its "
            "blocks."
        )
    with undisturbed(module), torch.no_grad():
        run = _runner(module, example)
        traces = [trace_linears(module, run, seed) for seed in range(_PROBES)]
    found: list[BlockLocation] = []
    reasons: dict[str, str] = {}
    for hidden, output in traces[0].pairs():
        location = _block_between(module, traces, hidden, output)
        if isinstance(location, BlockLocation):
            found.append(location)
        else:  # The nearest layer of the right width is the one the user had in mind.
            reasons.setdefault(hidden.name, f"{hidden.name!r} and {output.name!r}: {location}")
    if not found:
        detail = "; ".join(reasons.values()) or f"none of its {len(traces[0].calls)} Linear layers can follow another"
        raise ValueError(
            f"No Linear -> ReLU-like -> Linear block in {type(module).__name__}: {detail}. "
            "The activation must be s+ z for z >= 0 and s- z below, with nothing else between the two Linear layers."
        )
    return found


def choose_block(module: nn.Module, name: str | None = None, example: Any = None) -> BlockLocation:
    """The only block of a module, or the one with a given name.

    Args:
        module: Any module.
        name: Qualified name of the block's first Linear; None where the module has one block.
        example: As in `find_blocks`.

    Returns:
        The block's location.

    Raises:
        ValueError: If no block has the name, or if there are several and no name is given.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> print(choose_block(net, "2"))
        2 -> 4
    """
    locations = find_blocks(module, example)
    chosen = [location for location in locations if name in {None, location.hidden}]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(f"{location.hidden!r} ({location})" for location in locations)
    if name is not None:
        raise ValueError(f"No block starts at {name!r}; the blocks of {type(module).__name__} start at {names}.")
    raise ValueError(f"{type(module).__name__} has several blocks; choose one by its first Linear: {names}.")


def read_block(module: nn.Module, location: BlockLocation | None = None, example: Any = None) -> ShallowBlock:
    """The current parameters of a block.

    Args:
        module: The module that holds it.
        location: Which block; None if there is only one.
        example: As in `find_blocks`; used only if `location` is None.

    Returns:
        A copy of the weights, ``W`` of shape ``(I, d)`` and ``H`` of shape ``(J, I)``; the hidden bias is the last
        column of ``W``.

    Example:
        >>> read_block(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))).W.shape
        torch.Size([8, 4])
    """
    location = location or choose_block(module, example=example)
    hidden, output = location.linears(module)
    for name, layer in ((location.hidden, hidden), (location.output, output)):
        check_plain(name, layer)
    W = hidden.weight.detach()
    W = W.clone() if hidden.bias is None else torch.cat([W, hidden.bias.detach()[:, None]], dim=1)
    bias = None if output.bias is None else output.bias.detach().clone()
    return ShallowBlock(W, output.weight.detach().clone(), location.slopes_now(module), bias)


def write_block(module: nn.Module, location: BlockLocation, block: ShallowBlock) -> None:
    """Overwrite the weights of a module's block in place: the optimizers keep their parameters.

    Args:
        module: The module.
        location: Which block.
        block: The new weights, of the same sizes.

    Raises:
        ValueError: If the sizes differ.

    Example:
        >>> module = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> location = choose_block(module)
        >>> write_block(module, location, read_block(module, location))
    """
    hidden, output = location.linears(module)
    now = read_block(module, location)
    same_weights = block.W.shape == now.W.shape and block.H.shape == now.H.shape
    if not same_weights or (block.output_bias is None) != (now.output_bias is None):
        raise ValueError(
            f"`block` must have the sizes of {location}, W {tuple(now.W.shape)}, H {tuple(now.H.shape)} and the same "
            f"biases; got W {tuple(block.W.shape)}, H {tuple(block.H.shape)}. Make it from read_block."
        )
    with torch.no_grad():
        hidden.weight.copy_(block.W[:, : hidden.in_features])
        if hidden.bias is not None:
            hidden.bias.copy_(block.W[:, -1])
        output.weight.copy_(block.H)
        if block.output_bias is not None:
            output.bias.copy_(block.output_bias)


def _block_between(
    module: nn.Module, traces: list[Trace], hidden: LinearCall, output: LinearCall
) -> BlockLocation | str:
    """The block that two Linear layers form, or the reason why they form none."""
    if hidden.count > 1 or output.count > 1:
        shared = hidden if hidden.count > 1 else output
        return f"{shared.name!r} is applied {shared.count} times in a pass; a block's weights must be used once"
    tied = traces[0].tied.get(hidden.name) or traces[0].tied.get(output.name)
    if tied:
        return f"the weights are shared with {tied!r}; a block's weights must be used once"
    Z = torch.cat([trace.calls[hidden.name].probe.flatten() for trace in traces])
    inputs = [trace.calls[output.name].input for trace in traces]
    between = ", ".join(traces[0].between(hidden, output)) or "nothing"
    if any(A.shape != trace.calls[hidden.name].probe.shape for A, trace in zip(inputs, traces, strict=True)):
        return f"the shape changes between them ({between})"
    slopes = _fit_slopes(Z, torch.cat([A.flatten() for A in inputs]))
    if slopes is None:
        return f"what stands between them is not ReLU-like ({between})"
    if slopes[0] == slopes[1]:
        return f"what stands between them is linear ({between})"
    for name in traces[0].names_between(hidden, output):
        activation = module.get_submodule(name)
        if isinstance(activation, nn.PReLU):
            if activation.num_parameters > 1:
                return f"each neuron has a slope of its own ({between}); a block has one pair for all"
            return BlockLocation(hidden.name, output.name, slopes, prelu=name)
    return BlockLocation(hidden.name, output.name, slopes)


def _fit_slopes(Z: Tensor, A: Tensor) -> tuple[float, float] | None:
    """The slopes ``(s-, s+)``, if every entry of ``A`` agrees with them relative to its own size; shapes ``(n,)``."""
    tol = _FIT_TOL.get(A.dtype, 2e-2)
    ratio = A.double() / Z.double()
    sides = [ratio[Z < 0], ratio[Z > 0]]
    medians = [float(side.median()) for side in sides]
    scale = max(abs(slope) for slope in medians)
    if scale == 0 or any(bool(((side - m).abs() > tol * scale).any()) for side, m in zip(sides, medians, strict=True)):
        return None
    return _readable(medians[0], tol), _readable(medians[1], tol)


def _readable(slope: float, tol: float) -> float:
    """The slope as the short decimal that it rounds to: 0.01, not 0.009999999776; 0.0, not -0.0."""
    short = float(f"{slope:.5g}") + 0.0
    return short if abs(short - slope) <= tol * max(abs(slope), tol) else slope


def _runner(module: nn.Module, example: Any) -> Callable[[], object]:
    """A function that runs the module on the example, or on the first guess at its inputs that works.

    Raises:
        ValueError: If the module has no Linear layer, or cannot be run on any of them.
    """
    if callable(example) and not isinstance(example, Tensor):
        run: Callable[[], object] = example
        return run
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if not linears:
        raise ValueError(f"{type(module).__name__} has no nn.Linear, so no block; pass the module that holds them.")
    given = example if example is not None else getattr(module, "example_input_array", None)
    whose = "the example"
    # A batch of a data loader holds targets after the inputs.
    candidates = [given, given[0]] if isinstance(given, tuple | list) and len(given) > 1 else [given]
    if given is None:  # Which layer runs first is not known: try vectors of every layer's width.
        whose = "random vectors"
        generator = torch.Generator().manual_seed(0)
        widths = dict.fromkeys(linear.in_features for linear in linears)
        candidates = [torch.randn(4, width, generator=generator).to(linears[0].weight.dtype) for width in widths]
    errors = []
    for candidate in candidates:
        call = _call(module, move_data_to_device(candidate, linears[0].weight.device))
        try:
            call()
        except Exception as error:  # A user's forward may raise anything.
            errors.append(error)
        else:
            return call
    raise ValueError(
        f"{type(module).__name__} could not be run on {whose} ({type(errors[0]).__name__}: {errors[0]}). "
        "Pass `example`: one input batch, or a function without arguments that runs the module."
    ) from errors[0]


def _call(module: nn.Module, batch: Any) -> Callable[[], object]:
    """A function that runs the module on a batch: keyword arguments, positional ones, or a single one."""
    if isinstance(batch, dict):
        return lambda: module(**batch)
    args = batch if isinstance(batch, tuple | list) else (batch,)
    return lambda: module(*args)
