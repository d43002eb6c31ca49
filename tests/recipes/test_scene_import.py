"""`mixshow scene import`: published layouts and region strings as scenes, in other sizes and with other characters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixshow.cli.main import main
from mixshow.config.load import load
from mixshow.config.scene import SceneOptions
from mixshow.core.errors import MixshowError
from mixshow.core.seeding import derived_seed
from mixshow.edlora.concept import save_concept
from mixshow.models import Base
from mixshow.recipes.renaming import parse_names, renamed
from mixshow.sampling.pictures import read_about
from mixshow.sampling.regions import PixelBox, Region
from tests.tiny import tiny_adapter, tiny_concept

# Who of three stands for whom; the last layout has five people.
CASTS = {
    "bengio_lecun_bengio": ["bengio=rusty", "lecun=pip", "hinton=luma"],
    "harry_hermione_thanos": ["potter=pip", "hermione=luma", "thanos=rusty"],
    "hina_mitsuha_kario": ["hina=luma", "mitsuha=rusty", "kaori=pip"],
    "hina_tezuka_kario": ["hina=pip", "tezuka=rusty", "kaori=luma"],
    "hina_tezuka_mitsuha_goku_kaori": ["hina=pip", "tezuka=rusty", "mitsuha=luma", "son=red boy", "kaori=red girl"],
}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize("pose", [True, False])
def test_published_layouts_become_scenes(
    shared_fixtures: Path, tmp_path: Path, pose: bool, capsys: pytest.CaptureFixture
) -> None:
    for file in sorted((shared_fixtures / "layouts").glob("*.txt")):
        output = tmp_path / f"{file.stem}.yml"
        adapter = ["--adapter", "some/adapter"] if pose else []
        assert main(["scene", "import", str(file), "--output", str(output), "--prompt", "a lake", *adapter]) == 0
        options = load(SceneOptions, output)
        assert options.size == (1024, 512) and len(options.regions) >= 3 and options.edges == "hard"
        assert (options.pose is not None) == pose and not options.prompt_weights and options.long_prompts == "cut"
    first = load(SceneOptions, tmp_path / "bengio_lecun_bengio.yml").regions[0]
    assert first.box == (51, 6, 293, 512) and first.prompt == "<bengio1> <bengio2>"


def test_region_strings_become_scenes(
    tiny_folder: Path, compose: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    scene = {
        "model": str(tiny_folder),
        "size": [128, 64],
        "prompt": "a picture of the beach",
        "steps": 2,
        "guidance": 3,
    }
    scene |= {"guidance": 3, "precision": "fp32", "output": str(tmp_path / "scene.png")}
    text = tmp_path / "regions.txt"
    text.write_text("[a (boy)]-*-[red]-*-[0, 0, 64, 40]|\n[a girl]-*-[]-*-[0, 64, 64, 128]\n")
    output = tmp_path / "imported.yml"
    command = ["scene", "import", str(text), "--output", str(output), "--model", scene["model"]]
    assert main(command) == 2
    assert "expected a pose picture regions.png beside it, or --size WxH" in capsys.readouterr().err
    assert main([*command, "--size", "100x64"]) == 2
    assert "region 1: [left 64, top 0, right 128, bottom 64] is not inside" in capsys.readouterr().err
    assert main([*command, "--size", "wide"]) == 2
    assert main([*command, "--size", "128x64", "--prompt", scene["prompt"]]) == 0
    assert main(["compose", str(output), "steps=2", "guidance=3", "precision=fp32"]) == 0
    rewrite = {"rewrite": " ".join(text.read_text().split()), "regions": [], "prompt_weights": False}
    assert compose(scene | rewrite) == 0
    assert (pixels(tmp_path / "scene.png") == pixels(tmp_path / "imported.png")).all()


def test_published_layouts_are_composed_with_other_characters(
    shared_fixtures: Path, tiny: Base, tiny_folder: Path, tmp_path: Path
) -> None:
    concepts = [tmp_path / f"{name}.safetensors" for name in ("pip", "luma", "rusty")]
    for file in concepts:
        save_concept(tiny_concept(tiny, file.stem, seed=derived_seed(0, file.stem)), file)
    tiny_adapter(tiny).save_pretrained(tmp_path / "adapter")
    assert CASTS.keys() == {file.stem for file in (shared_fixtures / "layouts").glob("*.txt")}
    for name, cast in CASTS.items():
        command = ["scene", "import", str(shared_fixtures / "layouts" / f"{name}.txt"), "--prompt", "a beach"]
        command += ["--output", str(tmp_path / f"{name}.yml"), "--model", str(tiny_folder)]
        assert main([*command]) == 0
        whole = load(SceneOptions, tmp_path / f"{name}.yml")
        command += [word for entry in cast for word in ("--concept", entry)]
        assert main([*command, "--width", "256", "--adapter", str(tmp_path / "adapter")]) == 0
        scene = load(SceneOptions, tmp_path / f"{name}.yml")
        assert scene.size == (256, 128) and len(scene.regions) == len(cast)
        for region, before, entry in zip(scene.regions, whole.regions, cast, strict=True):
            assert region.box == tuple(round(number / 4) for number in before.box or ())
            new = entry.partition("=")[2]
            assert (new if " " in new else f"<{new}1> <{new}2>") in region.prompt
    files = [str(tmp_path / f"{name}.yml") for name in CASTS]
    overrides = [f"concepts=[{','.join(map(str, concepts))}]", "steps=1", "guidance=2", "common_prompt=a photo of"]
    assert main(["compose", *files, *overrides]) == 0
    made = [tmp_path / f"{name}.png" for name in CASTS]
    assert len({pixels(path).tobytes() for path in made}) == len(CASTS)
    assert {pixels(path).shape for path in made} == {(128, 256, 3)}
    last = read_about(made[-1])["scene"]
    assert last["common_prompt"] == "a photo of"
    assert [region["prompt"] for region in last["regions"]][3:] == ["a red boy, near a lake", "a red girl, near a lake"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concept", "pip"], "--concept: expected OLD=NEW such as hermione=pip, found 'pip'"),
        (["--concept", "boy=pip", "--concept", "boy=luma"], "--concept: expected each name once, found 'boy' twice"),
        (["--concept", "herminoe=pip"], "no region has 'herminoe'; did you mean 'hermione'?"),
        (["--width", "64", "--height", "64"], "expected the proportions of 128x64, found 64x64"),
        (["--width", "0"], "--width, --height: expected 1 pixel or more, found 0"),
        (["--width", "8"], "region 0: [left 1, top 0, right 1, bottom 4] has no area"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    layout, output = tmp_path / "layout.txt", tmp_path / "scene.yml"
    layout.write_text("char1='a <hermione1> <hermione2>' box1='[0, 12, 64, 17]' char2='a boy' box2='[0, 64, 64, 128]'")
    assert main(["scene", "import", str(layout), "--size", "128x64", "--output", str(output), *arguments]) == 2
    assert message in capsys.readouterr().err and not output.exists()


def test_names_are_exchanged_at_once() -> None:
    box = PixelBox(0, 0, 1, 1)
    prompts = ["<a1> <a2> and <b1>, <ab1>", "a goku, gokus", "<c1>"]
    regions = [Region(box, prompt) for prompt in prompts]
    names = parse_names(["a=b", "b=a", "goku=<d1> <d2>", "<c1>=a big \\1 dog"])
    found = [region.prompt for region in renamed(regions, names, "test")]
    assert found == ["<b1> <b2> and <a1> <a2>, <ab1>", "a <d1> <d2>, gokus", "a big \\1 dog"]
    assert renamed(regions, {}, "test") == regions
    with pytest.raises(MixshowError, match="no region has '<d1>'"):
        renamed(regions, {"<d1>": "x"}, "test")
