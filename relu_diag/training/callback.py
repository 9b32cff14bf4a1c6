"""What callbacks are: Lightning's, and those of ``pytorch_lightning`` too where a project has imported it before."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import lightning.pytorch

if TYPE_CHECKING:
    CallbackOfBoth = lightning.pytorch.Callback
else:
    # A command line of `pytorch_lightning` takes no callbacks but those of its own class.
    _there = getattr(sys.modules.get("pytorch_lightning"), "Callback", None)
    _own = (lightning.pytorch.Callback,)

    class CallbackOfBoth(*(_own if _there is None else (*_own, _there))):
        """A callback in either of Lightning's two packages.

        Example:
            >>> issubclass(CallbackOfBoth, lightning.pytorch.Callback)
            True
        """
