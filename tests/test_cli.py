"""The command line answers as people expect: versions, help, one line for mistakes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mixshow import __version__
from mixshow.cli.main import COMMANDS, main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"mixshow {__version__}\n"


def test_python_m_mixshow() -> None:
    done = subprocess.run([sys.executable, "-m", "mixshow", "--version"], capture_output=True, text=True, check=True)
    assert __version__ in done.stdout


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom mixshow.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"mixshow {command}" in capsys.readouterr().out


def test_unknown_command_is_status_2() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["paint"])
    assert stop.value.code == 2


def test_a_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "no_such_file.yml"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("mixshow: no_such_file.yml") and message.count("\n") == 1


def test_overrides_may_stand_behind_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "options/train/edlora/pip.yml", "seed=3", "--dry-run", "train.steps=7"]) == 0
    printed = capsys.readouterr().out
    assert "seed: 3\n" in printed and "steps: 7\n" in printed
    for wrong in ("--dri-run", "loose"):
        with pytest.raises(SystemExit) as stop:
            main(["lycoris", "list", wrong])
        assert stop.value.code == 2
        assert f"unrecognized arguments: {wrong}" in capsys.readouterr().err
