"""Give neurons of a live module new weights in place: its shapes, Parameters and compiled code stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from relu_diag.capture import BlockLocation, LiveBlock, NeuronRows
from relu_diag.functional import ShallowBlock
from relu_diag.growth._parameters import check_whole, names_of, owns
from relu_diag.growth.optimizer_state import all_within, restart_rows
from relu_diag.growth.training import averaged_copies, check_strategy


def replace_units(
    module: nn.Module,
    location: BlockLocation | LiveBlock,
    units: Sequence[int] | Tensor,
    block: ShallowBlock,
    optimizers: Iterable[Optimizer] = (),
    restart: bool = True,
) -> None:
    """Give some neurons of a block the weights they have in another block, in place.

    No shape changes: Parameters, compiled code, exports and target networks stay as they are. In the optimizers these
    neurons start again: momentum zero, second moments (Adam, Adafactor, RMSprop, Adagrad) the mean of the others', so
    that their first steps are no larger; copies of the parameters (schedule-free, Prodigy, Lookahead) take the new
    values. Moments that are factored over all neurons, and the history of LBFGS, are dropped with a warning. Gradients
    that are being accumulated become zero there. The output bias stays.

    Call it between steps, with several processes on each of them with the same block. If an error is raised, nothing
    has changed.

    Args:
        module: The module that holds the block, not a wrapper of it.
        location: Which block; or its parameters, as a ride has seen them (`relu_diag.capture.Sighting.live`), for
            blocks of raw parameters.
        units: The neurons to replace: their indices, or a mask of all neurons.
        block: Their new weights: a block of all neurons, of which only the rows of ``units`` are read; or one of as
            many neurons as ``units``, in their order.
        optimizers: All optimizers in use.
        restart: Whether the neurons start again in them; False where they are the same neurons, corrected.

    Raises:
        TypeError: If the module is a wrapper, its parameters are sharded, or the block is none.
        ValueError: If the block does not fit, a unit is none or named twice; or if a parameter is frozen, is shared
            with another layer, or belongs to none of the optimizers.

    Example:
        >>> from relu_diag.capture import find_blocks, read_block
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> location, = find_blocks(net)
        >>> block = read_block(net, location)
        >>> block.W[2], block.H[:, 2] = torch.tensor([1.0, 0.0, 0.0, 0.5]), 0.0
        >>> replace_units(net, location, [2], block, [optimizer])
        >>> net[0].bias[2].item(), net[2].weight[0, 2].item()
        (0.5, 0.0)
    """
    if isinstance(module, DistributedDataParallel):
        raise TypeError("`module` is wrapped in DistributedDataParallel: replace units of module.module.")
    if isinstance(location, BlockLocation):
        for name, layer in zip(("hidden", "output"), location.linears(module), strict=True):
            check_whole(f"{name}.weight", layer.weight)
            if layer.bias is not None:
                check_whole(f"{name}.bias", layer.bias)
    live = LiveBlock.at(module, location) if isinstance(location, BlockLocation) else location
    if not isinstance(block, ShallowBlock):
        raise TypeError(f"`block` must be a ShallowBlock with the new weights; got {type(block).__name__}.")
    if block.slopes != live.slopes():
        raise ValueError(f"`block` has slopes {block.slopes}, the block in the module has {live.slopes()}.")
    at = _indices(units, len(live.hidden.value()))
    if not len(at):
        return
    chosen = list(live.rows(_chosen(block, live, at)))
    owners = all_within(optimizers)
    _check_rows(module, chosen, owners)
    for rows in chosen:
        here = at.to(rows.parameter.device)
        with torch.no_grad():
            for optimizer in owners:
                if restart and owns(optimizer, rows.parameter):
                    restart_rows(optimizer, rows.parameter, rows.axis, here, rows.values)
            rows.parameter.index_copy_(rows.axis, here, rows.values.to(rows.parameter))
            if restart and rows.parameter.grad is not None:
                rows.parameter.grad.index_fill_(rows.axis, here, 0.0)


def replace_in_training(
    trainer: Trainer,
    live: LiveBlock,
    units: Sequence[int] | Tensor,
    change: Callable[[ShallowBlock], ShallowBlock],
    restart: bool = True,
) -> None:
    """Replace neurons of the module in training, and of its averaged copies (EMA, SWA) in the same way.

    Args:
        trainer: The trainer, fitting.
        live: The block's parameters.
        units: The neurons to replace.
        change: Maps a block to one that has their new weights.
        restart: As in `replace_units`.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> from relu_diag.nn import ShallowNet
        >>> module = LightningModule()
        >>> module.net = ShallowNet(2, 3)
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> trainer.strategy.connect(module)
        >>> trainer.optimizers = [torch.optim.SGD(module.parameters(), lr=0.1)]
        >>> live = LiveBlock.at(module, BlockLocation("net.hidden", "net.output", (0.0, 1.0)))
        >>> def silent(block):
        ...     block.H[:, 2] = 0.0
        ...     return block
        >>> replace_in_training(trainer, live, [2], silent)
        >>> module.net.output.weight[0, 2].item()
        0.0
    """
    check_strategy(trainer)
    module = trainer.lightning_module
    replace_units(module, live, units, change(live()), trainer.optimizers, restart)
    for copy in averaged_copies(trainer):
        theirs = live.within(module, copy)
        replace_units(copy, theirs, units, change(theirs()), (), restart)


def _indices(units: Sequence[int] | Tensor, width: int) -> Tensor:
    """The neurons as indices, long ``(n,)``.

    Raises:
        ValueError: If one is none of the block's, or is named twice.
    """
    given = torch.as_tensor(units).reshape(-1)
    if given.dtype == torch.bool and len(given) == width:  # a mask, as of neuron states
        return given.nonzero().squeeze(1).cpu()
    if len(given) and (given.dtype == torch.bool or given.is_floating_point()):
        raise ValueError(f"`units` must be indices of neurons, or a mask of all {width}; got {units!r}.")
    at = given.long()
    if len(at) and (int(at.min()) < 0 or int(at.max()) >= width):
        raise ValueError(f"`units` must be neurons of the block, 0 to {width - 1}; got {at.tolist()}.")
    if len(set(at.tolist())) < len(at):
        raise ValueError(f"`units` names a neuron twice: {at.tolist()}.")
    return at


def _chosen(block: ShallowBlock, live: LiveBlock, at: Tensor) -> ShallowBlock:
    """The new neurons alone.

    Raises:
        ValueError: If sizes are not those of the live block.
    """
    width, inputs = live.hidden.value().shape
    inputs += live.hidden_bias is not None
    outputs = sum(len(reader.value()) for reader in live.readers)
    if block.W.shape[1] != inputs or len(block.H) != outputs or len(block.W) not in {width, len(at)}:
        raise ValueError(
            f"`block` must have {inputs} inputs (the hidden bias counted), {outputs} outputs, and {width} neurons or "
            f"as many as `units`, {len(at)}; got W {tuple(block.W.shape)}, H {tuple(block.H.shape)}. Make it from "
            "read_block."
        )
    W = block.W.detach()
    H = block.H.detach()
    if len(W) == width:
        W = W[at.to(W.device)]
        H = H[:, at.to(H.device)]
    return ShallowBlock(W, H, block.slopes)


def _check_rows(module: nn.Module, chosen: list[NeuronRows], owners: list[Optimizer]) -> None:
    """Refuse parameters that are frozen, shared, tied with other values, or held by none of the optimizers.

    Raises:
        ValueError: If one is.
    """
    written: dict[int, NeuronRows] = {}
    for rows in chosen:
        check_whole("weight or bias", rows.parameter)
        names = names_of(module, rows.parameter)
        name = names[0] if names else "a parameter"
        if len(names) > 1:
            raise ValueError(
                f"{' and '.join(names)} share their weights: what one gets the other would get. Untie them."
            )
        if not rows.parameter.requires_grad:
            raise ValueError(f"{name} is frozen: new neurons would not train. Call requires_grad_().")
        if owners and not any(owns(optimizer, rows.parameter) for optimizer in owners):
            raise ValueError(f"{name} belongs to none of the optimizers given and would not train. Pass all in use.")
        tied = written.setdefault(id(rows.parameter), rows)
        if tied.axis != rows.axis or not torch.equal(tied.values, rows.values):
            raise ValueError(
                f"{name} is the input and the output weight at once: give each new neuron the same weights on both "
                "sides."
            )
