"""How an optimizer steps the weights of a block, as far as it is a descent with momentum in a scale of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer


@dataclass(frozen=True, slots=True, eq=False)
class WeightPace:
    """How an optimizer steps, and below which bound of curvature times rate its steps are stable.

    Its velocity is ``momentum * velocity + push * gradient``, a step ``rate * velocity / scale``; each of the tensors
    has a number for every weight, shape ``(n,)``. The decay is that of the penalty whose descent this is, given the
    scale. The rate is 0 where it is not known, and then the steps are those of plain descent.
    """

    rate: float
    bound: float
    momentum: float
    push: float
    velocity: Tensor
    scale: Tensor
    decay: Tensor


def pace_of_weights(optimizers: Sequence[Optimizer], parameters: Sequence[nn.Parameter]) -> WeightPace | None:
    """The pace at which all of the parameters are stepped; None where it is not one."""
    own = {id(one) for one in parameters}
    found = [
        (optimizer, group)
        for optimizer in optimizers
        for group in optimizer.param_groups
        if any(id(one) in own for one in group["params"])
    ]
    if len(found) != 1 or not own <= {id(one) for one in found[0][1]["params"]}:
        return None
    optimizer, group = found[0]
    if isinstance(optimizer, SGD) and not group["maximize"]:
        return _pace_of_sgd(optimizer, group, parameters)
    if isinstance(optimizer, Adam) and not group["maximize"]:
        return _pace_of_adam(optimizer, group, parameters)
    return None if float(group.get("weight_decay", 0.0)) else unknown_pace(parameters)


def unknown_pace(parameters: Sequence[nn.Parameter]) -> WeightPace:
    """That of an optimizer of which nothing is known."""
    nothing = _flat([None for _ in parameters], parameters)
    return WeightPace(0.0, math.inf, 0.0, 1.0, nothing, torch.ones_like(nothing), nothing)


def _pace_of_sgd(optimizer: SGD, group: dict[str, Any], parameters: Sequence[nn.Parameter]) -> WeightPace:
    """That of SGD: a step of momentum is stable while no root of its characteristic polynomial is below -1."""
    momentum = float(group["momentum"])
    push = 1 - (float(group["dampening"]) if momentum else 0.0)
    pushed = 1 + 2 * momentum if group["nesterov"] else push
    velocity = _flat([optimizer.state.get(one, {}).get("momentum_buffer") for one in parameters], parameters)
    bound = 2 * (1 + momentum) / pushed if pushed > 0 else math.inf
    scale = torch.ones_like(velocity)
    return WeightPace(float(group["lr"]), bound, momentum, push, velocity, scale, float(group["weight_decay"]) * scale)


def _pace_of_adam(optimizer: Adam, group: dict[str, Any], parameters: Sequence[nn.Parameter]) -> WeightPace | None:
    """That of Adam, its scales taken to stay: momentum with as much dampening. AdamW's decay has that scale too."""
    states = [optimizer.state.get(one, {}) for one in parameters]
    if any("exp_avg_sq" not in state for state in states):
        return None
    momentum, forgets = (float(beta) for beta in group["betas"])
    squares = _flat([state.get("max_exp_avg_sq", state["exp_avg_sq"]) for state in states], parameters)
    seen = 1 - forgets ** float(states[0]["step"])
    scale = (squares / seen).sqrt() + float(group["eps"])
    velocity = _flat([state["exp_avg"] for state in states], parameters)
    decay = float(group["weight_decay"]) * (scale if group.get("decoupled_weight_decay") else torch.ones_like(scale))
    bound = 2 * (1 + momentum) / (1 - momentum)
    return WeightPace(float(group["lr"]), bound, momentum, 1 - momentum, velocity, scale, decay)


def _flat(parts: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """One number for every weight, zero where there is none, shape ``(n,)``, float64."""
    known = [torch.zeros_like(one) if part is None else part for part, one in zip(parts, parameters, strict=True)]
    return torch.cat([one.detach().double().flatten() for one in known])
