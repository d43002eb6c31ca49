"""Pictures as users have them, and samples that depend on their number alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mixshow.edlora.captions import bind_concept, shuffled_tags
from mixshow.edlora.data import LatentSource
from mixshow.edlora.pictures import find_pictures, open_picture
from mixshow.edlora.templates import TEMPLATES, in_template
from mixshow.edlora.transforms import (
    TRANSFORMS,
    Placement,
    TransformOptions,
    latent_mask,
    on_canvas,
    valid_area,
)
from tests.edlora.conftest import TOKENS


def test_samples_are_a_function_of_seed_and_number(make_data):
    first, second, other = make_data(seed=1), make_data(seed=1), make_data(seed=2)
    list(map(first.draw, range(7)))  # what was drawn before must not matter
    assert [first.draw(n) for n in (9, 4)] == [second.draw(n) for n in (9, 4)]
    assert [first.draw(n) for n in range(6)] != [other.draw(n) for n in range(6)]


def test_every_epoch_shows_every_picture_once(make_data):
    data = make_data()
    for epoch in range(4):
        assert {data.draw(3 * epoch + n).picture for n in range(3)} == {0, 1, 2}


def test_variants_bound_the_placements_and_their_latents_are_kept(make_data, tiny):
    data = make_data(variants=2)
    draws = [data.draw(n) for n in range(60)]
    assert len({(draw.picture, draw.placement) for draw in draws}) <= 6
    source = LatentSource(tiny, data)
    first = source.encode(draws[:1])[0]
    assert source.encode(draws[:1])[0] is first
    unlimited = LatentSource(tiny, make_data())
    assert unlimited.encode(draws[:1])[0] is not unlimited.encode(draws[:1])[0]


def test_latents_are_the_bases_own(make_data, tiny):
    data = make_data(transform="centre_crop", flip=False)
    draw = data.draw(0)
    encoded = LatentSource(tiny, data).encode([draw])[0]
    view = data.view(draw, tiny.topology.latent_factor)
    torch.testing.assert_close(encoded.mean[None], tiny.encode_images(view.image[None]))
    assert view.image.shape == (3, 64, 64) and view.image.min() >= -1 and view.image.max() <= 1


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("size", [(100, 60), (60, 100), (80, 80), (3, 200)])
def test_transforms_keep_inside_picture_and_canvas_and_keep_proportions(name, size):
    options = TransformOptions(64)
    for seed in range(30):
        placed = TRANSFORMS[name](*size, options, np.random.default_rng(seed))
        left, top, right, bottom = placed.box
        assert left >= 0 and top >= 0 and left < right <= size[0] and top < bottom <= size[1]
        assert max(placed.size) <= 64
        assert all(c >= 0 and c + s <= 64 for c, s in zip(placed.corner, placed.size))
        scale = max(placed.size) / max(right - left, bottom - top)
        assert abs(placed.size[0] - scale * (right - left)) < 2 and abs(placed.size[1] - scale * (bottom - top)) < 2


def test_human_crop_keeps_the_top_of_a_portrait_and_fit_keeps_everything():
    always, never = TransformOptions(64, 1.0), TransformOptions(64, 0.0)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        left, top, right, bottom = TRANSFORMS["human_crop"](60, 100, always, rng).box
        assert (left, top, right) == (0, 0, 60) and 60 <= bottom <= 100
        placed = TRANSFORMS["human_crop"](60, 100, never, rng)
        assert placed.box == (0, 0, 60, 100) and placed.size == (38, 64)


def test_picture_mask_and_valid_area_move_together():
    picture = Image.new("L", (40, 20), 255)
    placement = Placement((0, 0, 40, 20), (32, 16), (16, 8), flip=True)
    canvas, area = on_canvas(picture, placement, 64), valid_area(placement, 64)
    assert np.array_equal(np.asarray(canvas), np.asarray(area))
    assert area.getbbox() == (16, 8, 48, 24)
    assert latent_mask(area, 8).sum() == 4 * 2


def test_exif_rotation_transparency_and_upper_case_suffixes(tmp_path):
    folder = tmp_path / "image"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (40, 20), "red").save(folder / "A.JPG", exif=exif)
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(folder / "b.png")
    Image.new("P", (12, 10)).save(folder / "c.WEBP")
    found, problems = find_pictures(folder, masks=None, captions=None, prompt="<TOK>", tokens=TOKENS)
    assert not problems
    assert [picture.path.name for picture in found] == ["A.JPG", "b.png", "c.WEBP"]
    assert open_picture(found[0].path).size == (20, 40)
    assert open_picture(found[1].path).getpixel((0, 0)) == (255, 255, 255)


def test_all_problems_of_the_data_are_found_together(pictures):
    (pictures / "image" / "00.png").write_bytes(b"no picture")
    Image.new("L", (5, 5)).save(pictures / "mask" / "01.png")
    (pictures / "mask" / "02.png").unlink()
    (pictures / "caption" / "00.txt").write_text("photo of somebody\n")
    (pictures / "caption" / "01.txt").write_text("\n")
    (pictures / "caption" / "02.txt").unlink()
    _, problems = find_pictures(
        pictures / "image", masks=pictures / "mask", captions=pictures / "caption", prompt="", tokens=TOKENS
    )
    for expected in (
        "00.png: expected a picture",
        "01.png: expected the size of its picture, 110x110, found 5x5",
        "no mask 02.png",
        "00.txt: caption without the concept",
        "01.txt: caption is empty",
        "02.txt: no such caption",
    ):
        assert sum(expected in problem for problem in problems) == 1, (expected, problems)
    assert len(problems) == 6


def test_a_truncated_picture_and_an_empty_folder_are_problems(tmp_path, pictures):
    picture = pictures / "image" / "00.png"
    picture.write_bytes(picture.read_bytes()[:500])
    _, problems = find_pictures(pictures / "image", masks=None, captions=None, prompt="<TOK>", tokens=TOKENS)
    assert len(problems) == 1 and "00.png: expected a picture" in problems[0]
    empty = tmp_path / "empty"
    empty.mkdir()
    _, problems = find_pictures(empty, masks=None, captions=None, prompt="<TOK>", tokens=TOKENS)
    assert len(problems) == 1 and "no pictures" in problems[0]


def test_captions():
    assert bind_concept("photo of  a <TOK>,   smiling", TOKENS) == "photo of a <pip1> <pip2>, smiling"
    shuffled = {shuffled_tags("a, b, c, d", 2, np.random.default_rng(seed)) for seed in range(20)}
    assert shuffled == {"a, b, c, d", "a, b, d, c"}
    for kind in TEMPLATES:
        assert all(template.count("{}") == 1 for template in TEMPLATES[kind])
        assert len(set(TEMPLATES[kind])) == len(TEMPLATES[kind]) >= 15
        assert "<TOK>" in in_template("<TOK>", kind, np.random.default_rng(0))
