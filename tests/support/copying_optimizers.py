"""Optimizers that keep copies of their parameters, in the ways in which such optimizers are written."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer


class Lookahead(Optimizer):
    """Slow weights in a state of its own, around another optimizer."""

    def __init__(self, optimizer: Optimizer, every: int = 3, share: float = 0.5) -> None:
        self.optimizer = optimizer
        self.every = every
        self.share = share
        self.steps = 0
        self.param_groups = optimizer.param_groups
        self.defaults = optimizer.defaults
        self.state: Any = defaultdict(dict)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["slow"] = p.detach().clone()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.optimizer.step(closure)
        self.steps += 1
        if self.steps % self.every == 0:
            for p, state in self.state.items():
                state["slow"].lerp_(p, self.share)
                p.copy_(state["slow"])
        return loss


class ListLookahead(Lookahead):
    """The same with slow weights in lists, one a group."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self.state = {}
        self.slow = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.optimizer.step(closure)
        self.steps += 1
        if self.steps % self.every == 0:
            for group, slow in zip(self.param_groups, self.slow, strict=True):
                for p, one in zip(group["params"], slow, strict=True):
                    one.lerp_(p, self.share)
                    p.copy_(one)
        return loss


class ScheduleFree(Optimizer):
    """SGD whose parameters are between an average and ``z``, which is what moves."""

    def __init__(self, parameters: Any, lr: float = 0.05) -> None:
        super().__init__(parameters, {"lr": lr})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.steps += 1
        for group in self.param_groups:
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.detach().clone())
                x = (p - 0.1 * z) / 0.9
                z.sub_(group["lr"] * p.grad)
                x.lerp_(z, 1 / (self.steps + 1))
                p.copy_(0.9 * x + 0.1 * z)
        return loss


class FromTheStart(Optimizer):
    """SGD that knows where it began, as Prodigy does, and pulls back there a little."""

    def __init__(self, parameters: Any, lr: float = 0.05) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["p0"] = p.detach().clone()
                    state["s"] = torch.zeros_like(p)
                state["s"].add_(p.grad)
                p.sub_(group["lr"] * (p.grad + 0.1 * (p - state["p0"])))
        return loss


def copying(name: str, parameters: list[nn.Parameter]) -> Optimizer:
    """One of them by name."""
    return {
        "lookahead": lambda: Lookahead(SGD(parameters, lr=0.05, momentum=0.9)),
        "lookahead in lists": lambda: ListLookahead(SGD(parameters, lr=0.05, momentum=0.9)),
        "schedule-free": lambda: ScheduleFree(parameters),
        "prodigy": lambda: FromTheStart(parameters),
    }[name]()
