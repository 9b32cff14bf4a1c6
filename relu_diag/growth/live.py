"""Widen a block of a live module in place."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils import swap_tensors

from relu_diag.capture import BlockLocation, check_plain, is_sharded
from relu_diag.functional import ShallowBlock
from relu_diag.growth._known_holders import are_held_by_known
from relu_diag.growth._parameters import check_whole, names_of, owns
from relu_diag.growth.checkpoint import remember_growth
from relu_diag.growth.graph import in_a_graph
from relu_diag.growth.optimizer_state import all_within, flat_vectors, plain, widen_state

# The axis that counts neurons, for the parameters that have one.
_AXES = {"hidden.weight": 0, "hidden.bias": 0, "output.weight": 1}


@dataclass(frozen=True, slots=True, eq=False)
class OtherOptimizers:
    """Living optimizers that may hold parameters of a module besides those in use.

    Attributes:
        of_ended_trainers: Left over from trainers that have ended; their state follows a growth.
        in_use: The rest: a parameter of theirs cannot grow.

    Example:
        >>> OtherOptimizers((), ()).in_use
        ()
    """

    of_ended_trainers: tuple[Optimizer, ...]
    in_use: tuple[Optimizer, ...]


def grow(
    module: nn.Module,
    location: BlockLocation,
    new_block: ShallowBlock,
    optimizers: Iterable[Optimizer] = (),
    others: OtherOptimizers | None = None,
) -> None:
    """Replace the parameters of a block by those of a wider one, in place.

    The layers and their Parameters stay the same objects, with their dtype, device and ``requires_grad``. Gradients are
    padded with zeros. In the optimizers, old neurons keep their state. New ones start with zero momentum and with the
    mean of the old neurons' second moments (Adam, Adafactor, RMSprop, Adagrad), so that their first steps are no larger
    than those of the others. State that cannot be carried over (the averages of ASGD, the history of LBFGS) is reset
    with a warning. Compiled code is dropped and compiled again at its next use.

    Call it between steps, in ``on_train_batch_end`` or ``on_train_epoch_end``, and with several processes on each of
    them, outside the wrapper. If it is refused, for the reasons of `prepared_growth`, nothing has changed.

    Args:
        module: The module that holds the block, not a wrapper of it.
        location: Which block.
        new_block: The new parameters: first the neurons that the block has, in the same order, then the new ones.
        optimizers: All optimizers in use.
        others: Further ones, looked for before (`other_optimizers`); None: they are looked for now, which takes a tenth
            of a second where many objects are alive.

    Example:
        >>> from relu_diag.capture import find_blocks, read_block
        >>> net = nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1))
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> location, = find_blocks(net)
        >>> old = read_block(net, location)
        >>> new = ShallowBlock(old.W.repeat(2, 1), old.H.repeat(1, 2) / 2, old.slopes, old.output_bias)
        >>> grow(net, location, new, [optimizer])
        >>> net
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=1, bias=True)
        )
    """
    prepared_growth(module, location, new_block, optimizers, others)()


def prepared_growth(
    module: nn.Module,
    location: BlockLocation,
    new_block: ShallowBlock,
    optimizers: Iterable[Optimizer] = (),
    others: OtherOptimizers | None = None,
) -> Callable[[], None]:
    """A growth that has been checked: called, it is done, and what could be refused has been.

    Args:
        module: As in `grow`, like all others.
        location: Which block.
        new_block: The new parameters.
        optimizers: All optimizers in use.
        others: Further ones.

    Returns:
        What grows.

    Raises:
        TypeError: If the module is a wrapper, or its parameters are sharded.
        ValueError: If the new block does not fit; or if a parameter is frozen, is shared, belongs to none of the
            optimizers, or belongs to one that was not given.
        RuntimeError: If a graph through the parameters or a weak reference to one of them is alive.

    Example:
        >>> from relu_diag.capture import find_blocks, read_block
        >>> net = nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1))
        >>> location, = find_blocks(net)
        >>> growth = prepared_growth(net, location, read_block(net, location))
        >>> growth()  # by no neuron
        >>> net[0].out_features
        1
    """
    if isinstance(module, DistributedDataParallel):
        raise TypeError("`module` is wrapped in DistributedDataParallel: grow module.module, then wrap it again.")
    _check_unsharded(module)
    hidden, output = location.linears(module)
    owners = all_within(optimizers)
    parameters = _parameters(hidden, output)
    if new_block.slopes != location.slopes_now(module):
        raise ValueError(f"`new_block` has slopes {new_block.slopes}, {location} has {location.slopes_now(module)}.")
    values = _values(hidden, output, location, new_block)
    counted = {name: parameters[name] for name in _AXES if name in parameters}
    if others is None:
        others = _others_of(counted.values(), owners)
    _check_owners(module, counted, owners, others.in_use)
    if obstacle := _obstacle(parameters.values()):
        raise RuntimeError(f"{location} cannot grow now: {obstacle}.")

    def growth() -> None:
        added = len(new_block.W) - hidden.out_features
        _widen(hidden, output, parameters, values)
        for optimizer in (*owners, *others.of_ended_trainers):
            for name, parameter in counted.items():
                widen_state(optimizer, parameter, _AXES[name], added)
        remember_growth(module, location, added)

    return growth


def prepared_widening(module: nn.Module, location: BlockLocation, new_block: ShallowBlock) -> Callable[[], None]:
    """The widening of a copy of a block that no optimizer trains, checked: called, it is done.

    Args:
        module: The module that holds the copy.
        location: Where in it.
        new_block: The new parameters.

    Returns:
        What widens it.

    Raises:
        RuntimeError: If a graph through the parameters or a weak reference to one of them is alive.

    Example:
        >>> from relu_diag.capture import find_blocks, read_block
        >>> net = nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1)).requires_grad_(False)
        >>> location, = find_blocks(net)
        >>> prepared_widening(net, location, read_block(net, location))()  # by no neuron
        >>> net[0].out_features
        1
    """
    hidden, output = location.linears(module)
    parameters = _parameters(hidden, output)
    values = _values(hidden, output, location, new_block)
    if obstacle := _obstacle(parameters.values()):
        raise RuntimeError(f"A copy of {location} cannot be widened now: {obstacle}.")
    return partial(_widen, hidden, output, parameters, values)


def _widen(
    hidden: nn.Linear, output: nn.Linear, parameters: dict[str, nn.Parameter], values: dict[str, Tensor]
) -> None:
    """Give two layers their new parameters."""
    for name, parameter in parameters.items():
        _replace(parameter, values[name])
    hidden.out_features = output.in_features = len(hidden.weight)


def check_growable(
    module: nn.Module,
    location: BlockLocation | str,
    optimizers: Iterable[Optimizer] = (),
    others: OtherOptimizers | None = None,
) -> None:
    """Refuse a block that could never grow, before any training, with the error that `grow` would end in.

    That is: a parameter is sharded over processes, computed by a parametrization, frozen, shared, belongs to none of
    the optimizers, or to another one; or its optimizer keeps one vector of all parameters.

    Args:
        module: The module that holds the block.
        location: Which block; or the name of its first layer, to check that alone.
        optimizers: All optimizers in use; none where they are not known yet.
        others: Further ones (`other_optimizers`); None: not looked for.

    Raises:
        ValueError: If the layer named is no Linear; and for the reasons above.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1)).requires_grad_(False)
        >>> check_growable(net, BlockLocation("0", "2", (0.0, 1.0)))
        Traceback (most recent call last):
            ...
        ValueError: The hidden.weight (0.weight) is frozen: new neurons would not train. Call requires_grad_().
    """
    _check_unsharded(module)
    if isinstance(location, str):
        layer = module.get_submodule(location)
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"{location} is a {type(layer).__name__}, and only two Linear layers can grow.")
        parameters = _parameters(layer)
    else:
        parameters = _parameters(*location.linears(module))
    counted = {name: parameters[name] for name in _AXES if name in parameters}
    _check_owners(module, counted, all_within(optimizers), () if others is None else others.in_use)


def _parameters(hidden: nn.Linear, output: nn.Linear | None = None) -> dict[str, nn.Parameter]:
    """The parameters of the layers by name: ``hidden.weight``, ``hidden.bias`` and so on."""
    layers: dict[str, Tensor | None] = {"hidden.weight": hidden.weight, "hidden.bias": hidden.bias}
    if output is not None:
        layers |= {"output.weight": output.weight, "output.bias": output.bias}
    found = {}
    for name, parameter in layers.items():
        if parameter is None:
            continue
        found[name] = check_whole(name, parameter)
    check_plain("hidden", hidden)
    if output is not None:
        check_plain("output", output)
    return found


def _check_unsharded(module: nn.Module) -> None:
    """Refuse a module that FSDP shards: right after a forward pass its parameters look whole.

    Raises:
        TypeError: If it does.
    """
    if any(is_sharded(one) for one in module.modules()):
        raise TypeError("`module` is sharded over processes by FSDP, and cannot grow in place. Train with DDP.")


def _values(
    hidden: nn.Linear, output: nn.Linear, location: BlockLocation, new_block: ShallowBlock
) -> dict[str, Tensor]:
    """The new values of the parameters, by the names of `_parameters`.

    Raises:
        ValueError: If the new block does not fit the layers, or is narrower.
    """
    W = new_block.W.detach()
    H = new_block.H.detach()
    bias = new_block.output_bias
    inputs = hidden.in_features + (hidden.bias is not None)
    if W.shape[1] != inputs or H.shape[0] != output.out_features or (bias is None) != (output.bias is None):
        raise ValueError(
            f"`new_block` must have {inputs} inputs (the hidden bias counted), {output.out_features} outputs and "
            f"{'no' if output.bias is None else 'an'} output bias as {location}; got W {tuple(W.shape)}, H "
            f"{tuple(H.shape)}, output bias {'None' if bias is None else tuple(bias.shape)}. Make it from read_block."
        )
    if len(W) < hidden.out_features:
        raise ValueError(f"`new_block` has {len(W)} neurons, {location} has {hidden.out_features}: a block only grows.")
    values = {"hidden.weight": W, "output.weight": H}
    if hidden.bias is not None:
        values |= {"hidden.weight": W[:, :-1], "hidden.bias": W[:, -1]}
    if bias is not None:
        values["output.bias"] = bias.detach()
    return values


def _check_owners(
    module: nn.Module, parameters: dict[str, nn.Parameter], owners: list[Optimizer], others: Iterable[Optimizer]
) -> None:
    """Refuse parameters that are shared or frozen, or that another optimizer than the owners holds; and flat state.

    Raises:
        ValueError: If one is.
    """
    for optimizer in owners:
        if any(owns(optimizer, one) for one in parameters.values()) and (flat := flat_vectors(optimizer)):
            raise ValueError(
                f"{type(optimizer).__name__} keeps one vector of all parameters ({', '.join(flat)}), which would no "
                "longer fit. Use an optimizer that keeps its state parameter by parameter, as those of torch.optim do."
            )
    for name, parameter in parameters.items():
        names = names_of(module, parameter)
        if len(names) > 1:
            raise ValueError(
                f"{' and '.join(names)} share their weights: growing one would break the other. Untie them."
            )
        if not parameter.requires_grad:
            raise ValueError(f"The {name} ({names[0]}) is frozen: new neurons would not train. Call requires_grad_().")
        if owners and not any(owns(optimizer, parameter) for optimizer in owners):
            raise ValueError(
                f"The {name} ({names[0]}) belongs to none of the optimizers given and would not train. Pass all in use."
            )
        for other in others:
            if owns(other, parameter):
                raise ValueError(
                    f"The {name} ({names[0]}) belongs to a {type(other).__name__} that was not given; its state would "
                    "no longer fit. Pass it in `optimizers`, or delete it."
                )


def other_optimizers(
    module: nn.Module, optimizers: Iterable[Optimizer], known: Iterable[object] = ()
) -> OtherOptimizers:
    """The living optimizers besides those in use.

    Args:
        module: The module that is to grow.
        optimizers: All optimizers in use.
        known: What else may refer to its parameters, as callbacks do: where nothing beside these, the module and the
            optimizers does, not all objects that are alive need to be looked through.

    Returns:
        The others; none where nothing but those in use holds a parameter of the module.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> used, other = torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.Adam(net.parameters())
        >>> other in other_optimizers(net, [used]).in_use
        True
    """
    owners = all_within(optimizers)
    if are_held_by_known(module.parameters(), owners, [module, *known]):
        return OtherOptimizers((), ())
    return _others_of(module.parameters(), owners)


def _others_of(parameters: Iterable[nn.Parameter], owners: list[Optimizer]) -> OtherOptimizers:
    """The living optimizers besides the owners; none if no other can hold one of the parameters."""
    # An optimizer holds its parameters in lists, and to find the lists that refer to a few parameters is faster than
    # to search all objects.
    known = {id(group["params"]) for owner in owners for group in owner.param_groups}
    if all(id(thing) in known for thing in gc.get_referrers(*parameters) if type(thing) is list):
        return OtherOptimizers((), ())
    gc.collect()  # An optimizer that is garbage will not step again: it must not count as in use.
    things = gc.get_objects()
    ended = [
        thing
        for thing in things
        if issubclass(type(thing), Trainer) and thing.state.status is not TrainerStatus.RUNNING
    ]
    left = {id(optimizer): optimizer for trainer in ended for optimizer in map(plain, trainer.optimizers)}
    for owner in owners:
        left.pop(id(owner), None)
    asked = {id(owner) for owner in owners} | left.keys()
    living = [plain(thing) for thing in things if issubclass(type(thing), Optimizer)]
    in_use = (optimizer for optimizer in living if id(optimizer) not in asked)
    return OtherOptimizers(tuple(left.values()), tuple(in_use))


def _obstacle(parameters: Collection[nn.Parameter]) -> str | None:
    """The reason why the parameters cannot change their shape now, with the cure; None if they can."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # Compiled code holds on to their shapes.
    if in_a_graph(parameters):
        return (
            "a graph through it is alive, whose backward pass would not fit the grown layers. Grow after backward, in "
            "on_train_batch_end, and keep losses, outputs and copies of parameters with .detach()"
        )
    if any(weakref.getweakrefs(parameter) for parameter in parameters):
        return (
            "something refers weakly to its parameters, and torch does not swap such tensors. Drop weak references to "
            "them (weakref.ref, WeakKeyDictionary), and do not compile the step of the optimizer"
        )
    return None


def _replace(parameter: nn.Parameter, value: Tensor) -> None:
    """Put a new value into the same Parameter object: pad its gradient, keep its hooks and attributes."""
    grown = nn.Parameter(value.to(parameter, copy=True).contiguous(), requires_grad=parameter.requires_grad)
    grown.__dict__.update(parameter.__dict__)
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        setattr(grown, hooks, getattr(parameter, hooks))
    if parameter.grad is not None:
        grown.grad = torch.zeros_like(grown)
        grown.grad[tuple(slice(size) for size in parameter.grad.shape)] = parameter.grad
    swap_tensors(parameter, grown)  # type: ignore[no-untyped-call]
