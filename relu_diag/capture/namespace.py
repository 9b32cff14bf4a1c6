"""Lightning's two packages: ``lightning.pytorch`` and ``pytorch_lightning`` have classes of the same names."""

from __future__ import annotations

_PACKAGES = {"lightning", "pytorch_lightning"}


def of_lightning(thing: object, *names: str) -> bool:
    """Whether a thing is an instance of one of Lightning's classes, of either of its two packages.

    Args:
        thing: A module, strategy, logger, ...
        names: Names of classes.

    Returns:
        Whether one of them is among the bases of its class.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> of_lightning(LightningModule(), "LightningModule")
        True
    """
    bases = type(thing).__mro__
    return any(base.__name__ in names and base.__module__.partition(".")[0] in _PACKAGES for base in bases)
