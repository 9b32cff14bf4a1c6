"""Every example runs from an empty folder, and what its last line asserts holds."""

import runpy
import warnings
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.resetwarnings()  # as where Python runs the example by itself
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # as `relu_diag.callbacks` does there
        runpy.run_path(str(example), run_name="__main__")
