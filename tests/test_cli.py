"""The command line trains from a config, as `relu-diag` and as `python -m relu_diag`."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import yaml

from relu_diag.cli import main
from relu_diag.experiments import ReferenceRegression, reference_problem
from relu_diag.nn import ShallowNet

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["relu-diag"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning calls an old name


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_trains_and_writes_logs_checkpoints_and_the_figure(config: Path, tmp_path: Path) -> None:
    main(["fit", "-c", str(config), *QUIET, "--trainer.max_steps=600"])
    (run,) = tmp_path.glob("runs/*/version_0")
    assert list(run.glob("events.*"))
    assert list(run.rglob("training.png"))
    assert list(run.rglob("*step=600*.ckpt"))


REFERENCE = [path for path in CONFIGS if "ReferenceRegression" in path.read_text()]


@pytest.mark.parametrize("config", REFERENCE, ids=[path.stem for path in REFERENCE])
def test_a_reference_config_plans_whole_epochs_of_its_problem(config: Path) -> None:
    plan = yaml.safe_load(config.read_text())
    module = ReferenceRegression(**plan["model"]["init_args"])
    assert module.problem == reference_problem(config.stem)
    epochs, batches = plan["trainer"]["max_epochs"], plan["data"]["init_args"]["batches_per_epoch"]
    assert plan["trainer"]["max_steps"] == epochs * batches * module.steps_per_batch


def test_the_console_script_is_the_same_and_fails_with_a_status() -> None:
    (script,) = entry_points(group="console_scripts", name="relu-diag")
    assert script.load() is main
    with pytest.raises(SystemExit) as failed:
        main(["fit", "-c", "absent.yaml"])
    assert failed.value.code not in {0, None}


def test_help_lists_every_command_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    said = capsys.readouterr().out
    assert all(f"\n  {command} " in said for command in ("fit", "inspect", "report"))
    for command in ("inspect", "report"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert all(option in said for option in ("checkpoint", "--data", "--block", "--class_path", "--out"))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["inspect", "absent.ckpt", "--data", "d.csv"], "relu-diag inspect: absent.ckpt: No such file or directory"),
        (["inspect", ".", "--data", "d.csv"], "relu-diag inspect: .: Is a directory"),
        (["report", "absent.ckpt"], "relu-diag report: absent.ckpt: No such file or directory"),
        (["inspekt", "net.pt"], "relu-diag: there is no command 'inspekt'; there are inspect, report, fit, .*"),
    ],
)
def test_wrong_input_ends_with_one_line(args: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=f"^{said}$"):
        main(args)


def saddle() -> list[str]:
    """A network at a saddle and its data in the present folder, and the command that inspects it."""
    torch.save(ShallowNet(3, 3, init_scale=0.0).state_dict(), "net.pt")
    torch.save((torch.eye(3), torch.ones(3, 1)), "data.pt")
    return ["inspect", "net.pt", "--data", "data.pt"]


def test_the_verdict_comes_first_in_the_colour_of_its_kind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    command = saddle()
    main(command)
    plain = capsys.readouterr().out
    assert plain.startswith("saddle; ")
    assert "\x1b" not in plain  # not a terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    main(command)
    assert capsys.readouterr().out.startswith("\x1b[38;5;166msaddle; ")
    monkeypatch.setenv("NO_COLOR", "1")
    main(command)
    assert capsys.readouterr().out.startswith("saddle; ")


def test_a_call_without_fault_succeeds_and_warns_of_nothing() -> None:
    done = subprocess.run([sys.executable, "-m", "relu_diag", "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("option", ["-c", "--config="])
def test_a_config_that_is_no_text_is_refused_in_one_line(option: str, tmp_path: Path) -> None:
    binary = tmp_path / "net.ckpt"
    binary.write_bytes(bytes([0x80, 0xEB, 0xFF]))
    words = [f"{option}{binary}"] if option.endswith("=") else [option, str(binary)]
    with pytest.raises(SystemExit, match=r"relu-diag fit: .*net\.ckpt is no text"):
        main(["fit", *words])
