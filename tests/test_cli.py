"""The command line trains from a config, as `relu-diag` and as `python -m relu_diag`."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_trains(config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["trainer"]["max_steps"] = 2000
    settings["trainer"]["enable_progress_bar"] = False
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "relu_diag", "fit", "-c", "short.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("training.png"))


def test_the_console_script_succeeds_and_fails_with_the_right_status() -> None:
    script = Path(sys.executable).with_name("relu-diag")
    assert subprocess.run([script, "--help"], capture_output=True, check=False).returncode == 0
    assert subprocess.run([script, "fit", "-c", "absent.yaml"], capture_output=True, check=False).returncode != 0


def test_a_call_without_fault_warns_of_nothing() -> None:
    done = subprocess.run([sys.executable, "-m", "relu_diag", "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
