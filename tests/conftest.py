"""Property tests here are reproducible, no slower machine fails them, and Lightning is quiet."""

import logging

from hypothesis import settings

settings.register_profile("relu_diag", deadline=None, derandomize=True)
settings.load_profile("relu_diag")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
