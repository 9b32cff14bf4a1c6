"""The weight that a layer multiplies by, which may be computed anew in every pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class WeightCatcher(TorchFunctionMode):
    """Notes the weight that a layer hands to ``linear``, while that layer runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight: Tensor | None = None
        self._inside = False

    def enter(self, *_: object) -> None:
        """Before the layer runs."""
        self.weight = None
        self._inside = True
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, *_: object) -> None:
        """After it ran, or failed; nothing where another hook failed before it could begin."""
        if not self._inside:
            return
        self._inside = False
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every call goes through as it is."""
        if func is nn.functional.linear and len(args) > 1:
            self.weight = args[1].detach()
        return func(*args, **(kwargs or {}))
