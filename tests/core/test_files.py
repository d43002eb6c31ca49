"""Runs leave the old file or the new one, never half of one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from mixshow.core import files
from mixshow.core.errors import MixshowError


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    files.write_text(target, "old")
    with pytest.raises(ValueError), files.written_atomically(target) as temporary:
        temporary.write_text("half")
        raise ValueError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(MixshowError, match="No space left on device") as error:
        files.write_text(tmp_path / "a.txt", "x")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_folder_keeps_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with files.folder_written_atomically(folder) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), files.folder_written_atomically(folder) as temporary:
        (temporary / "a").write_text("new")
        raise KeyboardInterrupt
    assert (folder / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_replaces_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for text in ("old", "new"):
        with files.folder_written_atomically(folder) as temporary:
            (temporary / text).write_text(text)
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_files_written_together_are_all_new_or_all_old(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), files.files_written_together(tmp_path) as temporary:
        files.write_text(temporary / "a", "new")
        files.write_text(temporary / "inside" / "b", "new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["a"] and (tmp_path / "a").read_text() == "old"
    with files.files_written_together(tmp_path) as temporary:
        files.write_text(temporary / "a", "new")
        files.write_text(temporary / "inside" / "b", "new")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["a", "inside", "inside/b"]
    assert (tmp_path / "a").read_text() == "new"


def test_safetensors_round_trip_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"w": torch.randn(3, 4), "half": torch.randn(2).half()}
    files.write_safetensors(path, tensors, {"key": "value"})
    read, metadata = files.read_safetensors(path)
    files.write_safetensors(path, read, metadata)
    read, metadata = files.read_safetensors(path)
    assert metadata == {"key": "value"}
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("keep", [0, 4, 12, 60])
def test_truncated_safetensors_are_one_line(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    files.write_safetensors(path, {"w": torch.randn(8, 8)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MixshowError, match="expected a safetensors file"):
        files.read_safetensors(path)


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("pickle_ran"),))  # type: ignore[return-value]


def test_pickles_never_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"params": _Hostile()}, "hostile.pth")
    with pytest.raises(MixshowError, match="unsafe"):
        files.read_pickled_weights("hostile.pth")
    assert not Path("pickle_ran").exists()


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dangling").symlink_to(tmp_path / "later" / "folder")
    for name in ("link", "dangling", "link"):
        with files.folder_written_atomically(tmp_path / name) as temporary:
            (temporary / "file").write_text(name)
        assert (tmp_path / name).is_symlink() and (tmp_path / name / "file").read_text() == name
    assert sorted(each.name for each in tmp_path.iterdir()) == ["dangling", "elsewhere", "later", "link"]
