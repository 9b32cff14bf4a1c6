"""The one-sided derivative of any module's loss along a direction, kinks included, by dual numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from relu_diag.functional.errors import NotFiniteError
from relu_diag.functional.local._one_sided import RULES, Dual, differentiate


def directional_derivative(
    module: nn.Module, loss: Callable[[], Tensor], direction: Mapping[str, Tensor], kink_tol: float | None = None
) -> Tensor:
    """The derivative of a loss along a direction of the parameters, one-sided and exact where units sit on their kinks.

    ``L'(theta; D) = lim (L(theta + h D) - L(theta)) / h`` as h falls to 0. Every operation of the loss carries its
    tangent along (forward dual numbers). At a kink the tangent decides the side: ``rho'(0; t) = rho(t)`` for each
    ReLU-like activation, the largest tangent among the tied entries of a maximum, and so on for clamps, pooling,
    sorting and comparisons. An operation without a forward derivative, or whose side at a kink is not known, ends in a
    `NotImplementedError` that names it.

    The number returned is the slope of what ``loss()`` computes: ``detach`` takes nothing out of it.

    Args:
        module: The module whose parameters move; its parameters, buffers and mode stay as they are.
        loss: Computes the loss with forward passes of the module, shape ``()``. It is called once, and torch's global
            random state is put back afterwards: a mask of dropout is the one that the next forward pass will draw.
        direction: How each parameter moves, by its name, in the parameter's shape; those without a name stand still.
        kink_tol: Distance from a kink, over the largest number of the tensor, that is rounding; None: 1e-10 in float64
            and 1e-6 below.

    Returns:
        The derivative, loss per unit of the direction, shape ``()``.

    Raises:
        TypeError: If the module is none, the loss no function that returns a tensor, or the direction no mapping of
            names to tensors.
        ValueError: If a name is no parameter, a shape differs, or the loss is not a scalar.
        NotFiniteError: If the derivative is not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
        >>> _ = net[0].requires_grad_(False).weight.zero_(), net[0].bias.zero_()  # on the kink
        >>> for sign in (1.0, -1.0):
        ...     along = {"0.bias": torch.tensor([sign])}
        ...     print(directional_derivative(net, lambda: net(torch.ones(1, 1)).sum(), along))
        tensor(1.)
        tensor(0.)

    Source: the chain rule of one-sided derivatives, which holds for Lipschitz functions (Shapiro 1990).
    """
    _check_arguments(module, loss, direction)
    _load_formulas()
    tangents = _Tangents(kink_tol)
    for parameter, along in _moves(module, direction):
        tangents.put(parameter, along)
    with _undisturbed(module), _plain_kernels(), tangents:
        value = loss()
    if not isinstance(value, Tensor):
        raise TypeError(f"`loss` must return a tensor with one element; got {type(value).__name__}.")
    if value.numel() != 1:
        raise ValueError(f"`loss` must return a tensor with one element; got shape {tuple(value.shape)}.")
    slope = tangents.of(value)
    found = value.new_zeros(()) if slope is None else slope.reshape(()).clone()
    if not bool(torch.isfinite(found)) or not bool(torch.isfinite(value)):
        raise NotFiniteError(
            f"The loss is {value.item()}, its derivative along `direction` {found.item()}: the training diverged, the "
            "data needs cleaning, or an operation such as sqrt is infinitely steep there."
        )
    return found


def _check_arguments(module: nn.Module, loss: Callable[[], Tensor], direction: Mapping[str, Tensor]) -> None:
    """Refuse what cannot be called, or has no names.

    Raises:
        TypeError: If an argument is of another type than expected.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module; got {type(module).__name__}.")
    if not callable(loss):
        raise TypeError(f"`loss` must compute the loss when it is called; got {type(loss).__name__}. Pass a lambda.")
    if not isinstance(direction, Mapping) or not all(isinstance(along, Tensor) for along in direction.values()):
        raise TypeError("`direction` must be a dict of parameter names and tensors, as of module.named_parameters().")


def _moves(module: nn.Module, direction: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Parameters that move, and how.

    Raises:
        ValueError: If a name is no parameter or one that was named already, or a shape differs.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    names: dict[int, str] = {}
    for name, along in direction.items():
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            raise ValueError(f"`direction` names {name!r}, no parameter of {type(module).__name__}; it has {known}.")
        parameter = parameters[name]
        if along.shape != parameter.shape:
            expected, got = tuple(parameter.shape), tuple(along.shape)
            raise ValueError(f"`direction` must have the shape of {name!r}, {expected}; got {got}.")
        if names.setdefault(id(parameter), name) != name:
            raise ValueError(f"`direction` names one parameter twice, as {names[id(parameter)]!r} and {name!r}.")
        yield parameter, along.detach().to(parameter)


def _load_formulas() -> None:
    """Make a dual number: for its first one torch compiles formulas, in a way that it has itself deprecated."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))  # type: ignore[no-untyped-call]


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Put torch's random states and the module's buffers back on exit."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    devices = {parameter.get_device() for parameter in module.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Compute attention, recurrent layers and compiled code in parts: the whole has no forward derivative."""
    backends: list[Any] = [torch.backends.mkldnn, torch.backends.cudnn]
    enabled = [backend.enabled for backend in backends]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for backend in backends:
                backend.enabled = False
            # Casts kept from another pass have no tangents.
            torch.clear_autocast_cache()
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for backend, before in zip(backends, enabled, strict=True):
                backend.enabled = before


class _Tangents(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries tangents beside the numbers of all operations.

    Each storage with numbers that depend on the parameters has one for their tangents, laid out alike: views share
    them, and what is written in place is written in both.
    """

    def __init__(self, kink_tol: float | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The storages are held on to, or another one could take the place of one that is gone.
        self._storages: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}
        self._dual = Dual(self.of, kink_tol)
        with torch.inference_mode(False):
            self._outside = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()

    def of(self, x: Tensor) -> Tensor | None:
        """The tangent of a tensor, a view of it; None where it does not depend on the parameters."""
        if not (x.is_floating_point() or x.is_complex()) or x.layout != torch.strided:
            return None
        known = self._storages.get(x.untyped_storage()._cdata)
        if known is None:
            return None
        tangent = torch.empty(0, dtype=x.dtype, device=x.device)
        tangent.set_(known[1], x.storage_offset(), x.shape, x.stride())
        tangent = tangent.conj() if x.is_conj() else tangent
        return torch._neg_view(tangent) if x.is_neg() else tangent

    def put(self, x: Tensor, tangent: Tensor | None) -> None:
        """Write the tangent of a tensor; None is zero."""
        storage = x.untyped_storage()
        if storage._cdata not in self._storages:
            zeros = torch.zeros(storage.nbytes(), dtype=torch.uint8, device=x.device)
            self._storages[storage._cdata] = storage, zeros.untyped_storage()
        kept = self.of(x)
        if kept is not None:
            # Written in place, the tangent may be there already.
            kept.copy_(torch.zeros_like(x) if tangent is None else tangent.clone())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute an operation, and the tangents of what it returns."""
        kwargs = kwargs or {}
        moves = any(self.of(x) is not None for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        if not moves or func.is_view or torch.Tag.inplace_view in func.tags:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        rule = RULES.get(name.removesuffix("_"))
        outputs = [argument.name for argument in func._schema.arguments if argument.is_out]
        if outputs or (rule is not None and name.endswith("_")):
            return self._write(func, outputs, args, kwargs)
        with self._out_of_here():
            values, tangents = (rule or differentiate)(self._dual, func, args, kwargs)
        for value, tangent in zip(tree_leaves(values), tangents, strict=True):
            if tangent is not None:
                self.put(value, tangent)
        return values if name.endswith("_") else tree_map_only(Tensor, Tensor.detach, values)

    @contextmanager
    def _out_of_here(self) -> Iterator[None]:
        """Leave the dispatch of an operation, inference mode and custom functions: inside, torch derives nothing."""
        with (
            torch.inference_mode(False),
            torch._C._ForceDispatchKeyGuard(*self._outside),
            torch.no_grad(),
            forward_ad._set_fwd_grad_enabled(True),
        ):
            yield

    def _write(self, func: Any, outputs: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What writes its results into tensors that are there, as an operation and a copy."""
        targets = [kwargs[name] for name in outputs] or [args[0]]
        rest = {name: value for name, value in kwargs.items() if name not in outputs}
        packet = getattr(torch.ops.aten, func.overloadpacket.__name__.removesuffix("_"))
        with self:
            values = tree_leaves(packet(*args, **rest))
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)
            if value.is_floating_point():
                self.put(target, self.of(value))
        return targets[0] if len(targets) == 1 else tuple(targets)
