"""Which blocks can never grow, said once and early."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from relu_diag.callbacks._passenger import Rides
from relu_diag.capture import BlockLocation, Sighting
from relu_diag.growth import OtherOptimizers, check_growable, drop_graphs, in_a_graph, other_optimizers, unwrapped
from relu_diag.training import Examination, Examiner, epochs_completed, location_of, tell

_NO_PLACE = (
    "only two Linear layers can grow, and its weights are others. Write it as nn.Linear, activation, nn.Linear, or "
    "name another block: GrowOnPlateau(block=...)"
)
_NO_BLOCK = (
    "Only nn.Linear, a ReLU-like activation, nn.Linear can grow: take out what stands between, or name another block: "
    "GrowOnPlateau(block=...)"
)


class Growable:
    """Knows which blocks can grow.

    Args:
        only: Name of the only block to grow; None: all.

    Attributes:
        others: Optimizers besides those of the trainer, from the end of the first step on.
    """

    def __init__(self, only: str | None) -> None:
        self.only = only
        self._forget()

    def _forget(self) -> None:
        """Forget the run before."""
        self.others: OtherOptimizers | None = None
        self._seen: set[str] = set()
        self._told: set[str] = set()
        self._checked = False

    def begin(self, trainer: Trainer) -> None:
        """Check the first layer of the only block, before it is seen.

        Args:
            trainer: The trainer, about to train.
        """
        self._forget()
        module = trainer.lightning_module
        layer = None if self.only is None else dict(module.named_modules()).get(self.only)
        if self.only is not None and isinstance(layer, nn.Linear):
            self._warn(self.only, self._obstacle(trainer, self.only))

    def end(self) -> None:
        """Let go of the optimizers of a run."""
        self.others = None

    def check(self, trainer: Trainer, examiners: Sequence[Examiner]) -> None:
        """Check blocks at their first sighting, and layers that make none.

        Args:
            trainer: The trainer, fitting.
            examiners: What has seen the steps.
        """
        if self.others is None:
            # Once a run: it may take as long as many small steps.
            known = trainer.callbacks  # type: ignore[attr-defined]
            self.others = other_optimizers(trainer.lightning_module, trainer.optimizers, known)
        seen = {name: one for examiner in examiners for name, one in examiner.seen.items()}
        if not self._checked:
            self._refuse(trainer, examiners, seen)
        for name, sighting in seen.items():
            if name in self._seen or self.only not in {None, name}:
                continue
            self._seen.add(name)
            place = location_of(trainer.lightning_module, sighting)
            self._warn(name, _other_weights(sighting) if place is None else self._obstacle(trainer, place))

    def allows(self, trainer: Trainer, examination: Examination) -> bool:
        """Whether a block can grow, with a word if not.

        Args:
            trainer: The trainer, fitting.
            examination: The block.

        Returns:
            Whether nothing forbids it for ever.
        """
        place = examination.location
        obstacle = _NO_PLACE if place is None else self._obstacle(trainer, place)
        self._warn(examination.name, obstacle)
        return not obstacle

    def _refuse(self, trainer: Trainer, examiners: Sequence[Examiner], seen: Collection[str]) -> None:
        """Say once what stands between layers so that they make no block, as soon as steps have shown it."""
        refused = {layers: why for one in examiners for layers, why in one.refused().items()}
        self._checked = bool(refused or seen)
        if self.only is None and seen:  # others can grow
            if refused:
                words = "; ".join(f"{layers}: {why}" for layers, why in refused.items())
                tell(trainer, f"GrowOnPlateau cannot grow {words}")
            return
        mine = {layers: why for layers, why in refused.items() if self.only in {None, layers.split(" ")[0]}}
        for layers, why in mine.items():
            self._warn(layers.split(" ")[0], f"{f'{layers}: ' if layers else ''}{why}. {_NO_BLOCK}")
        if self.only is not None and refused and not mine and not seen:
            self._warn(self.only, f"no step has shown such a block. {_NO_BLOCK}")

    def _warn(self, name: str, obstacle: str) -> None:
        """Say once that a block can never grow."""
        if not obstacle or name in self._told:
            return
        self._told.add(name)
        rank_zero_warn(f"GrowOnPlateau: {name or 'the block'} can never grow: {obstacle.rstrip('.')}.")

    def _obstacle(self, trainer: Trainer, place: BlockLocation | str) -> str:
        """Why a block, or what the first layer of one allows, can never grow; empty where nothing is known."""
        try:
            check_growable(trainer.lightning_module, place, trainer.optimizers, self.others)
        except (TypeError, ValueError) as why:
            return str(why)
        return ""


def graphs_let_go(trainer: Trainer, examination: Examination) -> bool:
    """Drop graphs of steps that are over and hold the parameters of a block, with a word.

    Args:
        trainer: The trainer, fitting.
        examination: The block.

    Returns:
        Whether none holds them any more on this process.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Rides):
            callback.rider.let_go()
    with unwrapped(trainer):
        alive = in_a_graph(examination.parameters)
    if alive:
        module = trainer.lightning_module
        held = drop_graphs([*module.modules(), *trainer.callbacks])  # type: ignore[attr-defined]
        if held:
            names = ", ".join(held)
            rank_zero_warn(f"GrowOnPlateau: {names} kept graphs of steps that are over, which are dropped to grow.")
        with unwrapped(trainer):
            alive = in_a_graph(examination.parameters)
    return not alive


def _other_weights(sighting: Sighting) -> str:
    """What the weights of a block are, where they are not those of two Linear layers, with the cure."""
    if sighting.tied:
        return f"the two layers of {sighting.name} share a weight. Untie them"
    if len(sighting.readers) > 1:
        return (
            f"{' and '.join(sighting.readers)} read its activations, and only one layer may. Let one layer compute all "
            "outputs, or name another block: GrowOnPlateau(block=...)"
        )
    if sighting.live is None:
        return (
            "its weights are computed from others (weight_norm, spectral_norm, pruning). Remove the parametrization "
            "first (remove_parametrizations, remove_weight_norm, prune.remove)"
        )
    return _NO_PLACE


def goes_on(trainer: Trainer) -> bool:
    """Whether there are steps left in which new neurons could be trained.

    Args:
        trainer: The trainer, fitting.

    Returns:
        Whether there are.
    """
    ended = epochs_completed(trainer)
    more_epochs = trainer.max_epochs in {None, -1} or ended < (trainer.max_epochs or 0)
    return more_epochs and (trainer.max_steps < 0 or trainer.global_step < trainer.max_steps)
