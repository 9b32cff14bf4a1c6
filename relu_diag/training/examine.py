"""Examine a block in training: a verdict and a forecast, from rows that were kept or from a pass over the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torchmetrics import MeanMetric

from relu_diag.capture import BlockLocation, Sighting
from relu_diag.functional import NotFiniteError
from relu_diag.functional.widening import LossThroughLayers
from relu_diag.training._dead import all_dead
from relu_diag.training._judged import Subject
from relu_diag.training._training_data import TrainingData
from relu_diag.training.agreement import first_order_words
from relu_diag.training.chain import data_of_chains
from relu_diag.training.examination import Examination
from relu_diag.training.look import Look
from relu_diag.training.ranks import Later
from relu_diag.training.rows import KeptRows

_REPLACED = "its weights were replaced, or are computed from others now, since a step has shown them"
_WIDENED = "a layer beside it was widened since its rows were kept"
# Which block says most about where the loss of a module stands: one that has a way down; a
# minimum only where all blocks are at one.
_TELLING = (
    "saddle",
    "not stationary",
    "type-2 candidate",
    "undecided",
    "local minimum",
    "global minimum",
)


def examine_rows(
    trainer: Trainer,
    module: LightningModule,
    seen: Mapping[str, Sighting],
    kept: Mapping[str, KeptRows],
    loss: float,
    drop: float | None,
    moved: Mapping[str, float] = MappingProxyType({}),
    thorough: bool = True,
) -> list[Examination] | None:
    """Judge blocks at the weights of now by rows that were kept. A collective: every rank must call it.

    Args:
        trainer: The trainer.
        module: Its module.
        seen: The last sighting of every block.
        kept: Rows of the blocks.
        loss: Loss of the last step that was seen.
        drop: Fraction by which the loss falls in an escape; None: no verdict is asked for.
        moved: Blocks whose inputs are computed by what has changed since their rows were kept, and how far.
        thorough: Whether to try how far descent lowers the loss, and to find the loss through the blocks behind each,
            by which new neurons are chosen.

    Returns:
        Their examinations, the one that says most about the loss first; None if weights are not finite on any rank.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from relu_diag.capture import riding
        >>> class Tiny(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> module = Tiny().double()
        >>> X, Y = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> with riding(module) as ride:
        ...     loss = (module.net(X) - Y).square().mean()
        ...     ride.board(loss)
        ...     loss.backward()
        ...     (seen,) = ride.end()
        >>> rows = KeptRows()
        >>> rows.keep(seen, loss.item(), (X, Y))
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> trainer.optimizers = [torch.optim.SGD(module.parameters(), lr=0.1)]
        >>> (found,) = examine_rows(trainer, module, {seen.hidden: seen}, {seen.hidden: rows}, loss.item(), drop=0.01)
        >>> found.name, found.data.loss.name
        ('net.0', 'squared error')
    """
    later = Later()
    finite = True
    subjects: dict[str, Subject] = {}
    with later:
        try:
            for name, one in seen.items():
                alone = one.from_data and name not in moved
                subject = _subject_of(trainer, module, one, kept[name], drop or 0.0, alone)
                subjects[name] = replace(subject, drift=moved.get(name, 0.0), thorough=thorough)
        except NotFiniteError:
            finite = False
    later.settle()
    if not trainer.strategy.reduce_boolean_decision(finite):
        return None
    # What all ranks do together comes first: an error of one of them then leaves none waiting.
    chains: Mapping[str, TrainingData] = {}
    if thorough:
        chains = data_of_chains(seen, {name: subject.block for name, subject in subjects.items()}, kept)
    data = {name: subject.rows.data() for name, subject in subjects.items()}
    for name, chain in chains.items():
        if data[name] is None and not isinstance(chain.loss, LossThroughLayers):
            data[name] = chain  # of its last block
    judged = Subject.unjudged if drop is None else Subject.judged
    found = [
        replace(judged(subject, data[name], loss), deep_data=chains.get(name)) for name, subject in subjects.items()
    ]
    return sorted(found, key=partial(_rank, list(seen)))


def _rank(order: Sequence[str], found: Examination) -> tuple[int, bool, int]:
    """How much an examination says of the loss, the most first, of blocks in the order in which they ran."""
    place = order.index(found.name)
    unknown = found.data is None
    # Of several that settle nothing, the one whose loss is known tells more, or else the one next to the loss.
    return _TELLING.index(found.verdict.kind), unknown, -place if unknown else place


def _subject_of(
    trainer: Trainer, module: LightningModule, seen: Sighting, rows: KeptRows, drop: float, alone: bool
) -> Subject:
    """A block at the weights of now."""
    block = seen.block if seen.live is None else seen.live()
    if seen.live is not None and not seen.live.stands_in(module):
        rows.reason = _REPLACED
    if (block.W.shape[1], len(block.H)) != (seen.inputs, seen.outputs):
        rows = KeptRows(reason=_WIDENED)
    # Of a loss that is not known, rows say the slopes where a step has shown all of them.
    whole = rows.one_batch and len(rows.signals()) == 1
    return Subject(
        trainer=trainer,
        module=module,
        name=seen.hidden,
        location=location_of(module, seen),
        block=block,
        parameters=seen.parameters,
        alone=alone,
        dead=all_dead(block, rows.inputs()),
        rows=rows,
        drop=drop,
        first_order=first_order_words(seen) if whole else "",
    )


def examine_pass(trainer: Trainer, module: LightningModule, look: Look, drop: float | None) -> Examination | None:
    """Look at a block once, judge it, and forecast its escape. A collective: every rank must call it.

    Args:
        trainer: The trainer.
        module: Its module.
        look: The look that reads the block's signals.
        drop: Fraction by which the loss falls in an escape; None: no verdict is asked for.

    Returns:
        The examination; None if the weights or the loss are not finite on any rank.

    Example:
        >>> import torch
        >>> class Tiny(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> data = [(torch.eye(2), torch.ones(2, 1))]
        >>> def loss_of(module, batch):
        ...     return (module.net(batch[0]) - batch[1]).square().mean()
        >>> look = Look("MyMonitor", None, data, None, loss_of)
        >>> trainer = Trainer(barebones=True, accelerator="cpu")
        >>> module = Tiny()
        >>> trainer.optimizers = [torch.optim.SGD(module.parameters(), lr=0.1)]
        >>> look.find(trainer, module)
        >>> examine_pass(trainer, module, look, drop=0.01).data.loss.name
        'squared error'
    """
    rows = KeptRows()
    mean = MeanMetric().to(module.device)
    later = Later()
    finite = True
    with later:
        try:
            subject = _subject_of_pass(trainer, module, look, rows, drop or 0.0)
            for seen, loss, batch in look.sightings(trainer, module):
                mean.update(loss, weight=len(seen.signal.X))
                rows.keep(seen, float(loss), batch)
        except NotFiniteError:
            finite = False
    later.settle()
    if not trainer.strategy.reduce_boolean_decision(finite):
        return None
    rows.finish(complete=not look.sampled)
    data = rows.data()
    loss_of_all = float(mean.compute())
    subject = replace(subject, dead=all_dead(subject.block, rows.inputs()))
    judged = Subject.unjudged if drop is None else Subject.judged
    return replace(judged(subject, data, loss_of_all), look=look)


def _subject_of_pass(trainer: Trainer, module: LightningModule, look: Look, rows: KeptRows, drop: float) -> Subject:
    """A block at the weights of now, before its rows are there."""
    return Subject(
        trainer=trainer,
        module=module,
        name=look.location.hidden,
        location=look.location,
        block=look.parameters(module),
        parameters=look.trained(module),
        alone=look.alone(module),
        dead=False,
        rows=rows,
        drop=drop,
    )


def location_of(module: LightningModule, seen: Sighting) -> BlockLocation | None:
    """The place of a block of two Linear layers.

    Args:
        module: The module that holds it.
        seen: The block, as a step saw it.

    Returns:
        The place; None where its weights are those of anything else.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from relu_diag.capture import riding
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> X, Y = torch.eye(2), torch.ones(2, 1)
        >>> with riding(net) as ride:
        ...     loss = (net(X) - Y).square().mean()
        ...     ride.board(loss)
        ...     loss.backward()
        ...     (seen,) = ride.end()
        >>> print(location_of(net, seen))
        0 -> 2
    """
    layers = dict(module.named_modules())
    names = (seen.hidden, *seen.readers)
    if seen.tied or len(names) != 2 or not all(_is_plain(layers.get(name)) for name in names):
        return None
    own = {id(parameter) for parameter in seen.parameters}
    slopes = (name for name, one in layers.items() if isinstance(one, nn.PReLU) and id(one.weight) in own)
    return BlockLocation(names[0], names[1], seen.block.slopes, next(slopes, None))


def _is_plain(layer: nn.Module | None) -> bool:
    """Whether a layer is a Linear whose weight is a parameter; a weight that is computed is not asked for."""
    return isinstance(layer, nn.Linear) and "weight" in layer._parameters
