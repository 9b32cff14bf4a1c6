"""What is known of a block in training that was examined: a verdict, a forecast, and the data they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning.pytorch import LightningModule
from torch import nn

from relu_diag.capture import BlockLocation
from relu_diag.functional import BlockSignal, EscapeForecast, NearbyStationaryPoint, ShallowBlock, Verdict
from relu_diag.training._dead import dead_words
from relu_diag.training._training_data import TrainingData
from relu_diag.training.descent import Descent
from relu_diag.training.judge import LOWERED, why_unsettled
from relu_diag.training.look import Look


@dataclass(frozen=True, slots=True, eq=False)
class Examination:
    """A block in training with a verdict and a forecast.

    Attributes:
        step: Gradient steps done.
        name: The block, by its first layer.
        location: The place of the block in its module; None where its weights are not those of two Linear layers.
        block: Its parameters.
        loss: Loss over all data looked at; that of a step, the last one seen, where it is not recognised.
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
        drift: That the inputs are not quite those of now, in words; may be empty.

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
    drift: str = ""

    @property
    def all_dead(self) -> str:
        """That every neuron is dead, in words."""
        return dead_words(self.block, self.name)

    @property
    def saddle(self) -> Verdict | None:
        """The saddle that the weights are at; where their decay is part of no loss, AdamW's, that of the loss alone."""
        if self.verdict.kind == "saddle":
            return self.verdict
        alone = self.verdict.kind == "undecided" and self.verdict.assumptions.get(LOWERED) == "holds"
        return self.nearby.verdict if alone and self.nearby and self.nearby.verdict.kind == "saddle" else None

    def at_the_end(self, loss: float | None) -> Examination:
        """The examination with the loss that training ended with, where that of its data is not known.

        Args:
            loss: The loss; None: not known either.

        Returns:
            The examination.
        """
        return self if self.data is not None or loss is None else replace(self, loss=loss)

    def ending(self, told: bool, named: bool) -> str:
        """What a line says of the end of training beside the verdict.

        Args:
            told: Whether it was already said why the verdict settles nothing.
            named: Whether the block is to be named, as one of several.

        Returns:
            The words.
        """
        why = "" if told else why_unsettled(self.verdict, self.fact)
        if self.drift and self.drift not in why:
            why = f"{why}; {self.drift}" if why else self.drift
        of = self.name if named else ""
        return "; ".join(filter(None, ["training ends", ": ".join(filter(None, [of, why]))]))

    def has_grown(self, module: LightningModule) -> bool:
        """Whether the block is wider now.

        Args:
            module: The module.

        Returns:
            Whether its first layer has more neurons than when it was examined.
        """
        return self.location is not None and len(self.location.linears(module)[0].weight) != len(self.block.W)
