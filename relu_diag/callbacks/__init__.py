"""Lightning callbacks that watch a block in training and act on its plateaus.

Hooks and state only: what they are made of is in `relu_diag.training`.
"""

import warnings

from relu_diag.callbacks.early_stopping import SaddleAwareEarlyStopping
from relu_diag.callbacks.escape import EscapeOnPlateau
from relu_diag.callbacks.growth import GrowOnPlateau
from relu_diag.callbacks.guarantee import GuaranteeMonitor
from relu_diag.callbacks.monitor import LandscapeMonitor
from relu_diag.callbacks.plateau import PlateauMonitor
from relu_diag.callbacks.revive import ReviveDeadUnits
from relu_diag.training import Escape, Growth, Plateau, PlateauEvent, PlateauForecast, PlateauListener, Revival

# Lightning asks torch in a way that torch has since deprecated, in every run: nothing that a user could mend.
warnings.filterwarnings(
    "ignore",
    message=r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    category=FutureWarning,
    module=r"(lightning\.pytorch|pytorch_lightning)\.utilities\._pytree",
)

__all__ = [
    "Escape",
    "EscapeOnPlateau",
    "GrowOnPlateau",
    "Growth",
    "GuaranteeMonitor",
    "LandscapeMonitor",
    "Plateau",
    "PlateauEvent",
    "PlateauForecast",
    "PlateauListener",
    "PlateauMonitor",
    "Revival",
    "ReviveDeadUnits",
    "SaddleAwareEarlyStopping",
]
