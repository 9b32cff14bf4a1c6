"""One forward pass in which every Linear returns a known probe, and a record of what ran between the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SHAPE_ONLY = {"size", "dim", "numel", "view_as", "detach", "requires_grad_", "is_floating_point", "__len__"}


@dataclass(slots=True)
class LinearCall:
    """A Linear in a trace.

    Attributes:
        name: Qualified name.
        module: The layer.
        input: Its input, as it was at the call.
        probe: What it returned in place of its output.
        count: How often it was called.
        began: Number of events in the trace before the call.
    """

    name: str
    module: nn.Linear
    input: Tensor
    probe: Tensor
    count: int
    began: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that ran in a forward pass, outside of other leaf modules.

    Attributes:
        text: What it was: class name and place of a module, or name of a torch function.
        module: Qualified name of the module; None for a function.
    """

    text: str
    module: str | None = None


@dataclass(slots=True)
class Trace:
    """A forward pass.

    Attributes:
        calls: Linear layers by name, in the order of their first call.
        events: What ran, in order.
        tied: For a Linear that shares a parameter, by its name, another name of that parameter.
    """

    calls: dict[str, LinearCall] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)

    def pairs(self) -> Iterator[tuple[LinearCall, LinearCall]]:
        """Pairs of Linear layers that could be a block: the second runs later and takes the first one's width.

        Yields:
            First and second layer.
        """
        calls = list(self.calls.values())
        for position, hidden in enumerate(calls):
            for output in calls[position + 1 :]:
                if output.module.in_features == hidden.module.out_features:
                    yield hidden, output

    def between(self, hidden: LinearCall, output: LinearCall) -> list[str]:
        """What ran between two Linear layers.

        Args:
            hidden: The first.
            output: The second.

        Returns:
            Texts of the events.
        """
        return [event.text for event in self.events[hidden.began : output.began]]

    def names_between(self, hidden: LinearCall, output: LinearCall) -> list[str]:
        """Qualified names of the modules that ran between two Linear layers.

        Args:
            hidden: The first.
            output: The second.

        Returns:
            Names.
        """
        return [event.module for event in self.events[hidden.began : output.began] if event.module is not None]


def trace_linears(module: nn.Module, run: Callable[[], object], seed: int) -> Trace:
    """Run a module once with probes in place of the outputs of its Linear layers.

    Args:
        module: The module.
        run: Runs it.
        seed: Seed of the probes; odd seeds flip the signs of the even ones before them.

    Returns:
        The trace.
    """
    trace = Trace(tied=_tied_weights(module))
    inside = [0]
    hooks = []
    for name, submodule in module.named_modules():
        if isinstance(submodule, nn.Linear):
            hooks.append(submodule.register_forward_pre_hook(_enter(inside)))
            hooks.append(submodule.register_forward_hook(_probe(trace, name, seed, inside)))
        elif name and not any(submodule.children()):
            hooks.append(submodule.register_forward_pre_hook(_note(trace, name, inside)))
            hooks.append(submodule.register_forward_hook(_leave(inside)))
    try:
        with _FunctionNames(trace, inside), torch.compiler.set_stance("force_eager"):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return trace


class _FunctionNames(TorchFunctionMode):
    """Records the torch functions that are called outside of leaf modules."""

    def __init__(self, trace: Trace, inside: list[int]) -> None:
        super().__init__()
        self.trace = trace
        self.inside = inside

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if not self.inside[0] and name not in _SHAPE_ONLY and name not in {"__get__", "__set__"}:
            self.trace.events.append(Event(name))
        # A functional activation calls others; only the outermost is what the user wrote.
        self.inside[0] += 1
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.inside[0] -= 1


def _enter(inside: list[int]) -> Callable[..., None]:
    """A hook that counts one level deeper inside leaf modules."""

    def hook(*_: object) -> None:
        inside[0] += 1

    return hook


def _leave(inside: list[int]) -> Callable[..., None]:
    """A hook that counts one level back out."""

    def hook(*_: object) -> None:
        inside[0] -= 1

    return hook


def _note(trace: Trace, name: str, inside: list[int]) -> Callable[..., None]:
    """A hook that records a leaf module as an event, unless it runs inside another one."""

    def hook(submodule: nn.Module, _: object) -> None:
        if not inside[0]:
            trace.events.append(Event(f"{type(submodule).__name__} {name!r}", name))
        inside[0] += 1

    return hook


def _probe(trace: Trace, name: str, seed: int, inside: list[int]) -> Callable[..., Tensor]:
    """A hook that records a Linear's call and replaces its output with a probe of the same shape."""

    def hook(linear: nn.Linear, args: tuple[Tensor], out: Tensor) -> Tensor:
        known = trace.calls.get(name)
        probe = _signed_numbers(out, seed, len(trace.calls))
        if known is None:
            trace.calls[name] = LinearCall(name, linear, args[0].clone(), probe.clone(), 1, len(trace.events))
        else:
            known.count += 1
        inside[0] -= 1
        return probe

    return hook


def _signed_numbers(like: Tensor, seed: int, place: int) -> Tensor:
    """Random numbers of both signs with sizes from 0.01 to 100, which shows a bend of the activation anywhere there."""
    generator = torch.Generator().manual_seed(1000 * (seed // 2) + place)
    size = torch.pow(10.0, 4 * torch.rand(like.shape, generator=generator) - 2)
    sign = torch.where(torch.rand(like.shape, generator=generator) < 0.5, -1.0, 1.0)
    return (size * sign if seed % 2 else -size * sign).to(like)


def _tied_weights(module: nn.Module) -> dict[str, str]:
    """For every module that shares a parameter, by its name, another name of that parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {
        name.rpartition(".")[0]: other
        for shared in names.values()
        for name in shared
        for other in shared
        if other != name
    }
