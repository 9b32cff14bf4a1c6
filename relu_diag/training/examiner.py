"""Examine the blocks of a module in training: by rows kept while riding along, or by a pass that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

from relu_diag.training._given import rows_of_batches
from relu_diag.training._keeper import FIRST, Keeper
from relu_diag.training._thrift import pays_for_descent
from relu_diag.training.checks import check_callable, check_count, check_iterable
from relu_diag.training.examination import Examination
from relu_diag.training.examine import examine_pass, examine_rows
from relu_diag.training.lightning_internals import device_batches
from relu_diag.training.look import Look, LossFunction
from relu_diag.training.ranks import agree
from relu_diag.training.rows import NOT_SEEN, KeptRows

_UNASKED = "no rows of its data are kept before a verdict is asked for, as on a plateau"
_MOVED = "its inputs have moved since its rows were kept: what computes them was trained"


class Examiner(Keeper):
    """Examines the blocks of a module in training, without running anything of the user's again.

    It rides on the first two steps. When a verdict is wanted, it rides on the steps of one epoch and keeps their rows;
    a batch that is the whole data set was kept before. Only where a loss or data were given, or the module has a method
    ``batch_loss``, it makes a pass at fixed weights.

    Args:
        owner: Name of the callback, for messages.
        block: Name or pattern of the blocks, by their first layer, or several of them; None: all.
        dataloader: Data of a pass.
        max_samples: Judge on no more than so many samples; None: all, or with `around` what a choice of neurons takes.
        loss: Loss of a pass, ``loss(module, batch)``.
        targets: Returns the targets of a batch that does not show them.
        around: Whether to ride on all blocks: those behind the ones asked for tell what these are worth. No verdict is
            asked for then, and rows of blocks that follow one another are kept as those of one network.

    Attributes:
        seen: The last sighting of every block, by name of its first layer.
        rider: Sees the steps.
        thrifty: Whether verdicts are only said: of large blocks they are on as few rows as the steps so far pay for.

    Raises:
        MisconfigurationException: If an argument is not what it should be.

    Example:
        >>> examiner = Examiner("PlateauMonitor", block="encoder*")
        >>> examiner.reason()
        'no step of the training was seen yet'
    """

    def __init__(
        self,
        owner: str,
        block: str | Sequence[str] | None = None,
        dataloader: Iterable[Any] | None = None,
        max_samples: int | None = None,
        loss: LossFunction | None = None,
        targets: Callable[[Any], Any] | None = None,
        around: bool = False,
    ) -> None:
        self.block = block
        self.dataloader = check_iterable("dataloader", dataloader)
        self.loss = check_callable("loss", loss)
        most = None if max_samples is None else check_count("max_samples", max_samples)
        ridden = None if around else block
        super().__init__(owner, ridden, most, check_callable("targets", targets), around and dataloader is None)
        # The last examinations, and when their weights and rows were taken.
        self._found: list[Examination] | None = None
        self._found_at: tuple[int, int, bool] | None = None

    def begin_fit(self, trainer: Trainer, module: LightningModule) -> None:
        """Forget the run before; find the block of a pass, where one is asked for.

        Args:
            trainer: The trainer, about to train.
            module: Its module.

        Raises:
            MisconfigurationException: If a pass was asked for and has no loss, no data, or not the one block.
        """
        self._forget()
        self._found = self._found_at = None
        if self.loss is None and not hasattr(module, "batch_loss"):
            return
        if self.block is not None and not isinstance(self.block, str):
            raise MisconfigurationException(f"A pass at fixed weights looks at one block; got block={self.block!r}.")
        self._look = Look(self.owner, self.block, self.dataloader, self.max_samples, self.loss)
        self._look.find(trainer, module)

    def agreed_ready(self, trainer: Trainer) -> bool:
        """Whether an examination would find its rows. A collective: every rank must call it.

        Args:
            trainer: The trainer.

        Returns:
            Whether all ranks have theirs, or need none.
        """
        self._agree()
        needless = self._look is not None or bool(self.careful.off) or (self._ridden >= FIRST and not self.seen)
        given = self.dataloader is not None and self._ridden >= FIRST and not any(self._kept.reasons.values())
        ready = needless or given or (bool(self._kept.rows) and not self._keeping)
        return trainer.strategy.reduce_boolean_decision(ready)

    def examine(
        self, trainer: Trainer, module: LightningModule, drop: float | None, since: int | None = None
    ) -> list[Examination] | None:
        """Judge every block at the weights of now, and forecast its escape. A collective: every rank must call it.

        Args:
            trainer: The trainer.
            module: Its module.
            drop: Fraction by which the loss falls in an escape; None: no verdict and no forecast are asked for.
            since: Step from which on the loss stood still, or nearly: inputs that the module computes are taken for
                those of now if they were kept since. None: as old as they are, they were asked for.

        Returns:
            The examinations, the block that says most about the loss first; none without a block, and where our own
            code failed, which is one warning. None if the weights or the loss are not finite on any rank.
        """
        self._agree()
        if self.careful.off:
            return []
        now = trainer.global_step, self._kept_at, self._is_past(since)
        if self.thrifty and self._found_at == now and not self._keeping and trainer.world_size == 1:
            return self._found  # as at the end of the last epoch
        # Early stopping calls this during validation, in inference mode, in which nothing has a gradient.
        found: list[Examination] | None = []
        with self.careful, torch.inference_mode(False):
            found = self._examined(trainer, module, drop, since)
        self._agree()
        self._found = [] if self.careful.off else found
        self._found_at = now
        return self._found

    def _examined(
        self, trainer: Trainer, module: LightningModule, drop: float | None, since: int | None
    ) -> list[Examination] | None:
        """The examinations, by a pass or by rows."""
        if self._look is not None:
            examination = examine_pass(trainer, module, self._look, drop)
            return None if examination is None else [examination]
        loss = math.nan if self.rider.loss is None else self.rider.loss
        reasons = self._kept.reasons
        rows = self._kept.rows
        if self.dataloader is not None:
            with self.careful:  # only this rank reads them
                recipes = {name: self._kept.recipes.get(name) for name in self.seen if not reasons.get(name)}
                batches = map(self._shown, device_batches(trainer, module, self.dataloader))
                rows = rows | rows_of_batches(batches, recipes, self.max_samples)
            self._agree()
            if self.careful.off:
                return []
        moved = self._kept.drifts(self._moved())
        missing = {name: KeptRows(reason=reasons.get(name) or _UNASKED) for name in self.seen if name not in rows}
        if self._is_past(since) and not self._keeping:
            missing |= {name: KeptRows(reason=reasons.get(name) or _MOVED) for name in moved if name in rows}
        # Ranks, which do some of it together, may have seen steps of different sizes.
        thorough = trainer.world_size > 1 or not self._spares() or pays_for_descent(self._batches)
        return examine_rows(trainer, module, self.seen, rows | missing, loss, drop, moved, thorough)

    def _is_past(self, since: int | None) -> bool:
        """Whether the rows are of steps before one."""
        return since is not None and self._kept_at < since

    def refused(self) -> dict[str, str]:
        """What stands between layers that make no block, by their names, once steps were seen.

        Returns:
            Reasons; one for the whole module, by an empty name, where there is no block and nothing is named.
            Nothing while a Linear layer is frozen, which may be trained later.
        """
        # The first step may be one of another part of the module.
        if (self._ridden < FIRST and not self.seen) or self.careful.off or self._module is None:
            return {}
        between = self.rider.refused
        if between or self.seen:
            return between
        linear = [layer for layer in self._module.modules() if isinstance(layer, torch.nn.Linear)]
        trained = all(any(one.requires_grad for one in layer.parameters()) for layer in linear)
        return {"": self.reason()} if trained else {}

    def reason(self) -> str:
        """Why there is nothing to examine.

        Returns:
            A few words; empty where there is a block.
        """
        if self.careful.off:
            return f"{self.owner} is off: {self.careful.off}"
        if self.seen or self._look is not None:
            return ""
        return self.rider.nothing if self._ridden else NOT_SEEN

    def _agree(self) -> None:
        """Go on with the blocks that all ranks have seen, or with none where one of them is off. A collective."""
        shapes = {name: (one.neurons, one.inputs, one.outputs) for name, one in self.seen.items()}
        names = agree(self.careful, shapes)
        self.seen = {name: self.seen[name] for name in names}
