"""Commands on an accelerator. Where there is none they run on one that is pretended, which refuses what one would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "train": ["tests/edlora/test_train_command.py", "-k", "writes or every_options_file_trains or resume"],
    "fuse": [
        "tests/fusion/test_recipe.py",
        "tests/fusion/test_lora_output.py",
        "tests/fusion/test_fuse_again.py",
        "-k",
        "fuse_writes or solvers_agree or every_options_file or command_writes or distilled_network or adding",
    ],
    "compose": ["tests/sampling/test_compose_command.py", "tests/sampling/test_detail.py"],
    "sample": ["tests/sampling/test_sample_command.py"],
}
MEETS = """
import pytest, torch
from mixshow.models.device import device_named

def test_what_an_accelerator_refuses():
    there = torch.ones(2, device=device_named("auto"))
    assert there.device.type == "pretended" and there.cpu().device.type == "cpu" and (2 * there).tolist() == [2, 2]
    for refused in (lambda: there + torch.ones(2), lambda: there.numpy(), lambda: torch.randn(
        2, device=there.device, generator=torch.Generator())):
        with pytest.raises((RuntimeError, TypeError)):
            refused()
"""


pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real accelerator, which all tests run on"),
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="this PyTorch knows no backends in Python",
    ),
]


def on_pretended(*arguments: str | Path) -> str:
    """What pytest says of tests on the pretended accelerator, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.pretended", "-q", "-n0", "--tb=short", "-m", ""]
    done = subprocess.run([*command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


def test_the_pretended_one_refuses_what_a_real_one_would(tmp_path: Path) -> None:
    path = tmp_path / "test_meets.py"
    path.write_text(MEETS)
    on_pretended(path, "--rootdir", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_keep_to_one_device(command: str) -> None:
    on_pretended(*COMMANDS[command])
