"""Nodes of an autograd graph by what they compute."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.graph import Node

from relu_diag.capture.local import local_part

# Nodes that keep every row and its numbers: shapes, copies, dtypes.
LAYOUT = {
    "AliasBackward0",
    # Tensors that are split over processes: what one process has of them, or all.
    "RedistributeBackward",
    "_FromTorchTensorBackward",
    "_ToTorchTensorBackward",
    "CloneBackward0",
    "ReshapeAliasBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
    "ToCopyBackward0",
    "UnsafeViewBackward0",
    "UnsqueezeBackward0",
    "ViewBackward0",
}
# A module with a backward hook of its own, or one of FSDP2.
HOOKED = {"BackwardHookFunctionBackward", "RegisterPostBackwardFunctionBackward"}
TURNED = {"TBackward0", "TransposeBackward0", "PermuteBackward0", "MtBackward0"}
# Positions of the left and the right factor.
PRODUCTS = {"AddmmBackward0": (1, 2), "MmBackward0": (0, 1), "BmmBackward0": (0, 1)}
DROPOUT = {"NativeDropoutBackward0"}
SCALING = {"MulBackward0", "DivBackward0"}
# Numbers of Python become tensors of these.
_NUMBERS = {torch.float64, torch.int64}
ACTIVATIONS = {
    "ReluBackward0",
    "LeakyReluBackward0",
    "LeakyReluBackward1",  # in place
    "PreluKernelBackward0",
    "ThresholdBackward0",
    "ThresholdBackward1",
}
# What an activation may be put together from; its numbers then say whether it is ReLU-like.
ELEMENTWISE = {
    "AbsBackward0",
    "AddBackward0",
    "ClampBackward0",
    "ClampBackward1",
    "ClampMaxBackward0",
    "ClampMinBackward0",
    "MaximumBackward0",
    "MinimumBackward0",
    "NegBackward0",
    "RsubBackward1",
    "SubBackward0",
    "WhereBackward0",
    "torch::autograd::CopySlices",  # an activation in place, on a view
    *SCALING,
    *ACTIVATIONS,
}
# What is computed with one of these is no weight: inputs take part, or say which rows of a parameter are looked up.
MIXING = {
    "AddmmBackward0",
    "BaddbmmBackward0",
    "BmmBackward0",
    "ConvolutionBackward0",
    "EmbeddingBackward0",
    "EmbeddingBagBackward0",
    "GatherBackward0",
    "IndexBackward0",
    "IndexSelectBackward0",
    "NativeBatchNormBackward0",
    "NativeLayerNormBackward0",
}
# By what names the second factor is kept.
FACTORS = {"DivBackward0": "other", "MmBackward0": "mat2", "MulBackward0": "other"}
SUMS = {"AddBackward0", "RsubBackward1", "SubBackward0"}
# Their nodes keep what says which inputs sit on a kink; a ReLU's does not, and is told.
BENT = {
    *ACTIVATIONS,
    "AbsBackward0",
    "ClampBackward0",
    "ClampBackward1",
    "ClampMaxBackward0",
    "ClampMinBackward0",
    "HardsigmoidBackward0",
    "HardswishBackward0",
    "HardtanhBackward0",
    "MaximumBackward0",
    "MinimumBackward0",
}
# Activations of any kind: between two layers, each would make a block if it were ReLU-like.
BENDING = BENT | {
    "CeluBackward0",
    "EluBackward0",
    "GeluBackward0",
    "GluBackward0",
    "LogSigmoidBackward0",
    "MishBackward0",
    "RreluWithNoiseBackward0",
    "SigmoidBackward0",
    "SiluBackward0",
    "SoftplusBackward0",
    "SoftshrinkBackward0",
    "HardshrinkBackward0",
    "TanhBackward0",
    "WhereBackward0",
    "torch::autograd::CopySlices",
}
# Ties of these are not counted.
CHOOSING = {
    "AdaptiveMaxPool2DBackward0",
    "AdaptiveMaxPool3DBackward0",
    "AmaxBackward0",
    "AminBackward0",
    "MaxBackward0",
    "MaxBackward1",
    "MaxPool2DWithIndicesBackward0",
    "MaxPool3DWithIndicesBackward0",
    "MinBackward0",
    "MinBackward1",
    "TopkBackward0",
}
KINKED = BENT | CHOOSING
OPAQUE = {
    "CheckpointFunctionBackward": "part of the network is checkpointed with use_reentrant=True",
    "CompiledFunctionBackward": "part of the network is compiled",
}


def nodes_below(root: Node | None) -> Iterator[Node]:
    """A node and all nodes it is computed from, each once."""
    waiting = [] if root is None else [root]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)


def below_layout(node: Node | None) -> Node | None:
    """The first node that does more than keep rows and numbers."""
    while node is not None and is_layout(node):
        node = node.next_functions[0][0]
    return node


def below_dropout(node: Node) -> tuple[Node, bool]:
    """Below shapes, and below dropout and constant factors where an activation with a name follows."""
    dropout = False
    while True:
        below = [one for one, _ in node.next_functions if one is not None]
        if is_layout(node):
            node = below[0]
        elif is_factor(node) and leads_to_activation(below[0]):
            node, dropout = below[0], True
        else:
            return node, dropout


def is_factor(node: Node) -> bool:
    """Whether a node is dropout, or multiplies by something that is not trained, and is no number of the program."""
    if node.name() in DROPOUT:
        return True
    trained = [one for one, _ in node.next_functions if one is not None]
    return node.name() in SCALING and len(trained) == 1 and not _is_by_number(node)


def _is_by_number(node: Node) -> bool:
    """Whether a node multiplies by a number as programs write it, the same in every step: it is part of the slopes."""
    factor = saved_tensor(node, "other")
    return factor is not None and factor.ndim == 0 and factor.dtype in _NUMBERS


def is_layout(node: Node) -> bool:
    """Whether a node keeps every row and its numbers; a view that was written to in place is read as strided."""
    if node.name() == "AsStridedBackward0":
        below = node.next_functions[0][0]
        return below is not None and below.name() == "torch::autograd::CopySlices"
    if node.name() == "PermuteBackward0":  # as einsum has them, about axes of length one
        return _keeps_order(node)
    if node.name() in HOOKED:
        return len(node.next_functions) == 1
    return node.name() in LAYOUT


def _keeps_order(node: Node) -> bool:
    """Whether a permutation moves only axes of length one."""
    (shape,) = (tuple(one.shape) for one in node._input_metadata)  # that of what comes out of it
    axes: tuple[int, ...] = node._saved_dims  # type: ignore[attr-defined]
    long = [axis % len(shape) for axis, length in zip(axes, shape, strict=True) if length != 1]
    return long == sorted(long)


def leads_to_activation(node: Node) -> bool:
    while is_layout(node) or is_factor(node):
        node = next(one for one, _ in node.next_functions if one is not None)
    return node.name() in ACTIVATIONS


def is_slope(node: Node, below: Node) -> bool:
    """Whether an input of a PReLU is its slope."""
    return node.name() == "PreluKernelBackward0" and below is node.next_functions[1][0]


def saved_tensor(node: Node, name: str) -> Tensor | None:
    """What a node keeps for its backward pass; None where that is nothing, or would have to be computed again."""
    raw = getattr(node, f"_raw_saved_{name}", None)
    if raw is None or getattr(raw, "unpack_hook", None) is not None:
        return None
    saved: Tensor | None = getattr(node, f"_saved_{name}")
    return None if saved is None else local_part(saved.detach())


def bends(node: Node) -> bool:
    """Whether a node may be an activation: one of torch's, or a function of the user's own."""
    return node.name() in BENDING or hasattr(node, "_forward_cls")


def makes_one_number(node: Node) -> bool:
    """Whether a single number comes out of an operation."""
    return all(math.prod(one.shape) == 1 for one in node._input_metadata)


def operation(node: Node) -> str:
    """What a node is the derivative of: ``NativeLayerNormBackward0`` is a LayerNorm."""
    if hasattr(node, "_forward_cls"):
        return f"own function {node.name().removesuffix('Backward')}"
    return node.name().rstrip("0123456789").removesuffix("Backward").removeprefix("Native")
