"""Every test starts from the same state and leaves it as it was; hypothesis is reproducible, Lightning is quiet."""

import os

# Before torch is loaded, and for the processes that tests start: the problems are tiny, and workers share the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import logging
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("relu_diag", deadline=None, derandomize=True)
settings.load_profile("relu_diag")
collect_ignore = ["support"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: no worker ends with one of them while the others are idle."""
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture(autouse=True)
def _same_state_before_and_after() -> Iterator[None]:
    """Seeds every generator, and fails a test that leaves threads, dtype or determinism of torch changed."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its import sets another one
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    before = _settings_of_torch()
    yield
    after = _settings_of_torch()
    torch.set_num_threads(before["threads"])
    torch.set_default_dtype(before["dtype"])
    torch.use_deterministic_algorithms(before["deterministic"])
    torch.set_grad_enabled(before["gradients"])
    assert after == before, "a test must put back what it changes"


def _settings_of_torch() -> dict[str, object]:
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
    }
