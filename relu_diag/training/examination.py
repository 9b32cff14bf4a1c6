"""Examine a block in training: a verdict and a forecast, from rows that were kept or from a pass over the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torchmetrics import MeanMetric

from relu_diag.capture import BlockLocation, Sighting
from relu_diag.functional import (
    BlockSignal,
    EscapeForecast,
    NearbyStationaryPoint,
    NotFiniteError,
    ShallowBlock,
    Verdict,
    WeightDecay,
    forecast_escape,
)
from relu_diag.functional.assumptions import Assumptions, checked
from relu_diag.training._dead import all_dead, dead_words, nothing_moves
from relu_diag.training.agreement import agreement_words
from relu_diag.training.chain import data_of_chains
from relu_diag.training.descent import Descent, descent_of
from relu_diag.training.judge import UNSETTLED, Training, judge, search_size, verdict_in_training, why_unsettled
from relu_diag.training.look import Look
from relu_diag.training.pace import (
    NoForecast,
    check_unclipped,
    decaying,
    gradient_share,
    is_plain_descent,
    largest_weight_decay,
    schedule_of,
)
from relu_diag.training.penalty import penalty_of
from relu_diag.training.rows import KeptRows, TrainingData

MINIMA = ("local minimum", "global minimum")
# Size of a search beyond which it is first seen whether the loss falls at once.
_QUICK = 2**15
_NOT_CONVEX = "the loss is not known to be convex in the outputs"
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


@dataclass(frozen=True, slots=True, eq=False)
class Examination:
    """A block in training with a verdict and a forecast.

    Attributes:
        step: Gradient steps done.
        name: The block, by its first layer.
        location: The place of the block in its module; None where its weights are not those of two Linear layers.
        block: Its parameters.
        loss: Loss over all data looked at; that of the last step ridden where it is not recognised.
        verdict: Verdict on the stationary point nearby; "undecided", with the reason, if none can be given.
        nearby: That point; None if the loss is not known.
        data: The data looked at; None if the loss is not known.
        forecast: When the loss will have dropped by the fraction asked for, counted from ``step``; None without a
            forecast.
        no_forecast: Why there is no forecast; empty if there is one.
        dead: Whether every neuron is dead, so that a step can change the function only by the output bias.
        look: The look that made a pass; None where the rows are those of training steps.
        parameters: The parameters of the block.
        signals: Inputs and loss gradients of steps at their weights, where the loss is not known.
        deep_data: For a block of a chain of blocks up to the loss, its inputs, and the loss through those behind it.
        descent: How far the loss could fall at once, and how long the optimizer's steps are; None at a minimum, and
            where it is not measured.
        fact: What is known besides, in words with a cure: all neurons are dead, or steps overshoot; may be empty.
        held: What holds the loss where it stands, in words with a cure: short steps, or noisy batches; may be empty.

    Example:
        >>> import torch
        >>> from relu_diag.training import verdict_in_training
        >>> block = ShallowBlock(-torch.eye(2), torch.ones(1, 2))
        >>> undecided = verdict_in_training(None, "the loss was not recognised")
        >>> found = Examination(10, "net.0", None, block, 0.5, undecided, None, None, None, undecided.reason, dead=True)
        >>> found.all_dead
        'all 2 neurons of net.0 are dead'
    """

    step: int
    name: str
    location: BlockLocation | None
    block: ShallowBlock
    loss: float
    verdict: Verdict
    nearby: NearbyStationaryPoint | None
    data: TrainingData | None
    forecast: EscapeForecast | None
    no_forecast: str
    dead: bool
    look: Look | None = None
    parameters: tuple[nn.Parameter, ...] = ()
    signals: Sequence[BlockSignal] = ()
    deep_data: TrainingData | None = None
    descent: Descent | None = None
    fact: str = ""
    held: str = ""

    @property
    def all_dead(self) -> str:
        """That every neuron is dead, in words."""
        return dead_words(self.block, self.name)

    def ending(self, told: bool) -> str:
        """What a line says of the end of training beside the verdict.

        Args:
            told: Whether it was already said why the verdict settles nothing.

        Returns:
            The words.
        """
        why = "" if told else why_unsettled(self.verdict, self.fact)
        return f"training ends; {why}" if why else "training ends"

    def has_grown(self, module: LightningModule) -> bool:
        """Whether the block is wider now.

        Args:
            module: The module.

        Returns:
            Whether its first layer has more neurons than when it was examined.
        """
        return self.location is not None and len(self.location.linears(module)[0].weight) != len(self.block.W)


def examine_rows(
    trainer: Trainer,
    module: LightningModule,
    seen: Mapping[str, Sighting],
    kept: Mapping[str, KeptRows],
    loss: float,
    drop: float,
) -> list[Examination] | None:
    """Judge blocks at the weights of now by rows that were kept. A collective: every rank must call it.

    Args:
        trainer: The trainer.
        module: Its module.
        seen: The last sighting of every block.
        kept: Rows of the blocks.
        loss: Loss of the last step that was seen.
        drop: Fraction by which the loss falls in an escape.

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
    error: Exception | None = None
    try:
        subjects = {name: _subject_of(module, name, one, kept[name]) for name, one in seen.items()}
    except Exception as one:  # the other ranks wait to be told
        error = one
    together = trainer.strategy.reduce_boolean_decision(error is None)
    if error is not None and not isinstance(error, NotFiniteError):
        raise error
    if not together:
        return None
    found = []
    chains = data_of_chains(seen, {name: subject.block for name, subject in subjects.items()}, kept)
    for name, subject in subjects.items():
        examination = _judged(trainer, module, subject, kept[name], loss, drop)
        found.append(replace(examination, deep_data=chains.get(name)))
    return sorted(found, key=lambda examination: _TELLING.index(examination.verdict.kind))


def _subject_of(module: LightningModule, name: str, seen: Sighting, rows: KeptRows) -> _Subject:
    """A block at the weights of now."""
    block = seen.block if seen.live is None else seen.live()
    return _Subject(
        name=name,
        location=location_of(module, seen),
        block=block,
        parameters=seen.parameters,
        alone=seen.from_data,
        dead=all_dead(block, rows.inputs()),
    )


def examine_pass(trainer: Trainer, module: LightningModule, look: Look, drop: float) -> Examination | None:
    """Look at a block once, judge it, and forecast its escape. A collective: every rank must call it.

    Args:
        trainer: The trainer.
        module: Its module.
        look: The look that reads the block's signals.
        drop: Fraction by which the loss falls in an escape.

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
    finite = True
    try:
        block = look.parameters(module)
        for seen, loss, batch in look.sightings(trainer, module):
            mean.update(loss, weight=len(seen.signal.X))
            rows.keep(seen, float(loss), batch)
    except NotFiniteError:
        finite = False
    if not trainer.strategy.reduce_boolean_decision(finite):
        return None
    rows.finish(complete=not look.sampled)
    subject = _Subject(
        name=look.location.hidden,
        location=look.location,
        block=block,
        parameters=look.trained(module),
        alone=look.alone(module),
        dead=all_dead(block, rows.inputs()),
    )
    return replace(_judged(trainer, module, subject, rows, float(mean.compute()), drop), look=look)


@dataclass(frozen=True, slots=True, eq=False)
class _Subject:
    """A block to be judged: its name, place, weights, parameters, whether only it is trained, whether all is dead."""

    name: str
    location: BlockLocation | None
    block: ShallowBlock
    parameters: tuple[nn.Parameter, ...]
    alone: bool
    dead: bool


def _judged(
    trainer: Trainer, module: LightningModule, subject: _Subject, rows: KeptRows, loss: float, drop: float
) -> Examination:
    """The examination of a block by its rows."""
    data = rows.data()
    block = subject.block
    decay = decaying(trainer, subject.parameters)
    penalty = penalty_of(trainer, subject.location) if decay and subject.location is not None else None
    nearby, descent = _nearby(trainer, module, subject, rows, data, penalty, drop)
    training = Training(
        decay="" if penalty is not None else decay,
        penalised=penalty is not None,
        alone=subject.alone,
        whole=all(parameter.requires_grad for parameter in subject.parameters),
        drop=drop,
        unit=0.0 if data is None else float(data.loss(data.X.new_zeros(len(data.X), len(block.H)))),
    )
    unknown = "; ".join(filter(None, [agreement_words(block, rows.signals()), rows.reason or _NOT_CONVEX]))
    verdict = verdict_in_training(nearby, unknown, training)
    minimum = verdict.kind in MINIMA
    if minimum:
        descent = None
    elif descent is None and data is not None and subject.alone:
        descent = _descent_of(trainer, module, subject, data, rows)
    if nearby is None or nearby.verdict.kind in UNSETTLED:
        verdict = _with_descent(verdict, descent, drop)
    if nearby is None and data is not None and verdict.kind == "not stationary":  # seen to fall, not searched around
        verdict = replace(verdict, assumptions=Assumptions({"full data set": checked(data.complete)}))
    forecast, no_forecast = None, f"a {verdict.kind} has no escape" if minimum else rows.reason
    if data is not None and not minimum:
        try:
            forecast = _forecast(trainer, module, subject, data, drop)
        except NoForecast as reason:
            no_forecast = str(reason)
    return Examination(
        step=trainer.global_step,
        name=subject.name,
        location=subject.location,
        block=block,
        loss=_loss_now(block, None if penalty is not None else nearby, data, loss),
        verdict=verdict,
        nearby=nearby,
        data=data,
        forecast=forecast,
        no_forecast=no_forecast,
        dead=subject.dead,
        parameters=subject.parameters,
        signals=rows.signals(),
        descent=descent,
        fact=_fact(subject, data, descent, drop),
        held="" if descent is None or subject.dead else descent.holds(drop),
    )


def _with_descent(verdict: Verdict, descent: Descent | None, drop: float) -> Verdict:
    """A verdict that leaves open where the run is, with how far its loss was seen to fall."""
    if descent is None or verdict.kind != "undecided":
        return verdict
    if descent.fall > drop:
        return replace(verdict, kind="not stationary", reason=f"{descent}")
    return replace(verdict, reason=f"{verdict.reason}; {descent}")


def _nearby(
    trainer: Trainer,
    module: LightningModule,
    subject: _Subject,
    rows: KeptRows,
    data: TrainingData | None,
    penalty: WeightDecay | None,
    drop: float,
) -> tuple[NearbyStationaryPoint | None, Descent | None]:
    """The point nearby, and the descent where it was measured first.

    What falls by more than the drop at once, and ever slower, is near no point: a search, which takes seconds, would
    only say so.
    """
    if data is None:
        return None, None
    descent = None
    if subject.alone and search_size(subject.block, data) > _QUICK:
        descent = _descent_of(trainer, module, subject, data, rows)
    falls = descent is not None and descent.slows and descent.fall > drop
    return None if falls else judge(subject.block, data, penalty), descent


def _descent_of(
    trainer: Trainer, module: LightningModule, subject: _Subject, data: TrainingData, rows: KeptRows
) -> Descent | None:
    """How far the loss could fall at once."""
    whole = rows.one_batch and data.complete
    return descent_of(trainer, module, subject.location, subject.block, data, whole)


def _fact(subject: _Subject, data: TrainingData | None, descent: Descent | None, drop: float) -> str:
    """What is known of a block whatever its verdict, in words."""
    if subject.dead:
        return nothing_moves(subject.block, subject.name, data)
    return "" if descent is None or not descent.overshoots else descent.holds(drop)


def _forecast(
    trainer: Trainer, module: LightningModule, subject: _Subject, data: TrainingData, drop: float
) -> EscapeForecast:
    """The forecast in steps of the optimizer.

    Raises:
        NoForecast: If there is none.
    """
    schedule = schedule_of(trainer, module, subject.parameters)
    if not data.loss.convex:
        raise NoForecast(_NOT_CONVEX)
    plain = is_plain_descent(trainer) and gradient_share(trainer) == 1
    lr = float(trainer.optimizers[0].param_groups[0]["lr"]) if plain else 0.0
    forecast = forecast_escape(subject.block, data.X, data.loss, lr, drop)
    if forecast is None:
        raise NoForecast("nothing grows")
    if forecast.reached < forecast.drop:
        raise NoForecast(str(forecast))
    if plain and lr > 0:
        return forecast
    check_unclipped(trainer, subject.block, data, forecast)
    # Weight decay lowers every growth rate by the same amount, and turns no neuron.
    decay = largest_weight_decay(trainer, subject.parameters)
    rate = forecast.gain - decay
    growth = forecast.gain * forecast.time
    if rate <= 0:
        raise NoForecast("the weight decay is stronger than every growth")
    steps = schedule.steps_until(growth, gradient_share(trainer) * forecast.gain)
    return replace(forecast, steps=steps, time=growth / rate)


def _loss_now(
    block: ShallowBlock, nearby: NearbyStationaryPoint | None, data: TrainingData | None, seen: float
) -> float:
    """The loss over all data, or that of the last step seen where it is not known."""
    if nearby is not None:
        return nearby.loss + nearby.loss_gap
    return seen if data is None else data.loss_of(block)


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
    if len(names) != 2 or not all(isinstance(layers.get(name), nn.Linear) for name in names):
        return None
    own = {id(parameter) for parameter in seen.parameters}
    slopes = (name for name, one in layers.items() if isinstance(one, nn.PReLU) and id(one.weight) in own)
    return BlockLocation(names[0], names[1], seen.block.slopes, next(slopes, None))
