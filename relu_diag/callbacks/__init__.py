"""Lightning callbacks."""

from relu_diag.callbacks.monitor import LandscapeMonitor

__all__ = ["LandscapeMonitor"]
