"""No command writes over a file that it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import mixshow.recipes.compose as recipe
from mixshow.cli.main import main
from mixshow.sampling.pictures import save_picture

POSE = {"people": [{"person": "waving"}], "adapter": "puppets"}


@pytest.fixture
def scene(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A scene whose model must not be loaded."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded a model")

    monkeypatch.setattr(recipe, "load_base", load)
    Image.new("RGB", (128, 64), "white").save(tmp_path / "in.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "in.png")
    region = {"box": [0, 0, 1, 1], "prompt": "a boy"}
    output = str(tmp_path / "out.png")
    return {"model": str(tiny_folder), "size": [128, 64], "prompt": "a dog", "regions": [region], "output": output}


def one_line(status: int, message: str, capsys: pytest.CaptureFixture[str]) -> bool:
    said = capsys.readouterr().err
    return status == 2 and message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"image": {"file": "in.png"}}, "image.file"),
        ({"masks": "in.png", "regions": [{"colour": "white", "prompt": "a boy"}]}, "masks"),
        ({"regions": [{"mask": "in.png", "prompt": "a boy"}]}, "regions[0].mask"),
        ({"conditions": [{"image": "in.png", "adapter": "puppets"}]}, "conditions[0].image"),
        ({"pose": {"image": "in.png", "adapter": "puppets"}}, "pose.image"),
        ({"pose": {"photo": "in.png", "adapter": "puppets"}}, "pose.photo"),
    ],
)
@pytest.mark.parametrize("output", ["in.png", "../{}/in.png", "link.png"])
def test_what_a_scene_reads_is_not_written_over(
    scene: dict[str, Any],
    tmp_path: Path,
    change: dict[str, Any],
    name: str,
    output: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = (tmp_path / "in.png").read_bytes()
    Path("scene.yml").write_text(yaml.safe_dump(scene | change))
    for arguments in ([], ["--check"]):
        assert main(["compose", "scene.yml", f"output={output.format(tmp_path.name)}", *arguments]) == 2
        said = capsys.readouterr().err
        assert f"which is read ({name})" in said and "Traceback" not in said
    assert (tmp_path / "in.png").read_bytes() == before


def test_grids_sheets_previews_and_pictures_of_seeds_count(
    scene: dict[str, Any], compose: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out_seed1.png").write_bytes((tmp_path / "in.png").read_bytes())
    for file, options in (
        ("out_seed1.png", ["seeds=0-2"]),
        ("out_grid.png", ["seeds=0-2", "grid=true"]),
        ("out_preview.png", ["--preview"]),
    ):
        (tmp_path / file).write_bytes((tmp_path / "in.png").read_bytes())
        status = compose(scene | {"image": {"file": str(tmp_path / file)}}, *options)
        assert one_line(status, f"found '{tmp_path / file}', which is read (image.file)", capsys)
    assert compose(scene | {"image": {"file": str(tmp_path / "out_seed1.png")}}, "seeds=3", "--check") == 0
    assert compose(scene | {"image": {"file": scene["output"]}}, "--check") == 2  # not there yet


def test_a_scene_s_own_file_and_those_of_others(
    scene: dict[str, Any], compose: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = compose(scene, "--sheet", str(tmp_path / "scene.yml"))
    assert one_line(status, "--sheet: expected a file of its own", capsys)
    status = compose(scene, "sheet=true", "--sheet", str(tmp_path / "out.html"))
    assert one_line(status, "--sheet: expected a file of its own", capsys)
    save_picture(Image.new("RGB", (128, 64)), tmp_path / "made.png", {"scene": scene | {"output": "x.png"}, "seed": 0})
    for arguments in ([], ["--check"], ["--redo", "0"]):
        status = main(["compose", str(tmp_path / "made.png"), f"output={tmp_path / 'made.png'}", *arguments])
        assert one_line(status, "output: expected a file of its own", capsys)
    other = tmp_path / "other.yml"
    other.write_text(yaml.safe_dump(scene | {"image": {"file": str(tmp_path / "in.png")}, "output": "x.png"}))
    status = compose(scene | {"output": str(tmp_path / "in.png")}, str(other))
    assert one_line(status, f"which is read (image.file of {other})", capsys)
    other.write_text(yaml.safe_dump(scene | {"output": str(tmp_path / "out_seed1.png"), "seeds": 5}))
    (tmp_path / "scene.yml").write_text(yaml.safe_dump(scene | {"seeds": "0-1"}))
    status = main(["compose", str(tmp_path / "scene.yml"), str(other)])
    assert one_line(status, f"expected an output of its own, found '{tmp_path / 'out_seed1.png'}' as of", capsys)


def test_pose_and_scene_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = tmp_path / "drawn.png"
    assert main(["pose", "draw", "[{person: waving}]", "--output", str(drawn)]) == 0
    layout, scene = tmp_path / "layout.txt", tmp_path / "scene.yml"
    layout.write_text("char1='a boy' box1='[0, 0, 64, 64]'")
    scene.write_text(yaml.safe_dump({"pose": {"json": str(drawn)}}))
    before = drawn.read_bytes()
    capsys.readouterr()
    for command in (
        ["pose", "draw", str(drawn), "--size", "64x64", "--output", str(drawn)],
        ["pose", "draw", str(scene), "--size", "64x64", "--output", str(drawn)],
        ["pose", "detect", str(drawn), "--output", str(drawn)],
        ["scene", "import", str(layout), "--size", "64x64", "--output", str(layout)],
    ):
        assert one_line(main(command), "--output: expected a file of its own, found", capsys), command
    assert drawn.read_bytes() == before


@pytest.mark.parametrize("size", ["[wide, 64]", "[64]", "[64.5, 64]", "64", "[0, 64]", "[true, 64]"])
def test_a_scene_s_size_that_is_none(tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    scene = tmp_path / "scene.yml"
    scene.write_text(f"size: {size}\npose: [{{person: waving}}]\n")
    status = main(["pose", "draw", str(scene), "--output", str(tmp_path / "a.png")])
    assert one_line(status, f"{scene}: size: expected [width, height] in pixels, found", capsys)
    assert not (tmp_path / "a.png").exists()
