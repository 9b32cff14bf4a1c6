"""Hooks that rest: in most steps a callback has nothing to do, and even a call that does nothing costs every step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from relu_diag.training import CallbackOfBoth

# Hooks of every step in which no callback that rides along does anything.
UNUSED = ("on_before_zero_grad", "on_before_optimizer_step")
# Hooks in which it does something where the step is ridden.
RIDDEN = ("on_before_backward", "on_after_backward")
# Hooks that only a sampled step needs.
SAMPLED = (*RIDDEN, "on_train_batch_end")
# Packages whose hooks are known to do nothing then: one that a user has written is always called.
_KNOWN = {"relu_diag", "lightning", "pytorch_lightning"}


class Rests(CallbackOfBoth):
    """A callback that lets hooks rest: Lightning passes over those of its callbacks that are no functions."""

    def _rest(self, trainer: Trainer, hooks: tuple[str, ...]) -> None:
        """Let hooks rest, unless a subclass or the user has put others in their place."""
        # A callback of the user's that passes its calls on to this one calls all of them.
        if not any(one is self for one in trainer.callbacks):  # type: ignore[attr-defined]
            return
        for hook in hooks:
            if getattr(type(self), hook).__module__.partition(".")[0] in _KNOWN:
                self.__dict__.setdefault(hook, None)

    def _wake(self, hooks: tuple[str, ...]) -> None:
        """Let hooks be called again."""
        for hook in hooks:
            if self.__dict__.get(hook, hook) is None:
                del self.__dict__[hook]

    def _wake_all(self) -> None:
        """Let all hooks be called again."""
        self._wake(tuple(hook for hook, value in self.__dict__.items() if value is None and hook.startswith("on_")))

    def __getstate__(self) -> dict[str, Any]:
        """What a copy gets: none of its hooks rests."""
        return {name: value for name, value in self.__dict__.items() if value is not None or not name.startswith("on_")}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Be as before the run.

        Args:
            trainer: Unused.
            pl_module: Unused.
            exception: Unused.
        """
        super().on_exception(trainer, pl_module, exception)
        self._wake_all()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Be as before the run.

        Args:
            trainer: Unused.
            pl_module: Unused.
            stage: Unused.
        """
        super().teardown(trainer, pl_module, stage)
        self._wake_all()
