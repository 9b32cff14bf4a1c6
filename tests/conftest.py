"""Property tests here are reproducible, and no slower machine fails them."""

from hypothesis import settings

settings.register_profile("relu_diag", deadline=None, derandomize=True)
settings.load_profile("relu_diag")
