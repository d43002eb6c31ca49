from __future__ import annotations

import numpy as np
from PIL import Image

from mixshow.sampling.areas import Feathered
from mixshow.sampling.preview import draw_preview
from mixshow.sampling.regions import PixelBox, Region
from mixshow.sampling.scene import PoseGuide, Scene


def test_regions_and_pose_are_drawn() -> None:
    pose = Image.new("RGB", (256, 128))
    pose.putpixel((200, 100), (1, 2, 3))
    regions = (
        Region(Feathered(PixelBox(0, 0, 100, 128), 20), "a boy"),
        Region(PixelBox(90, 64, 256, 128), "a girl", priority=1),
    )
    scene = Scene("two", (256, 128), regions=regions, pose=PoseGuide(pose))
    preview = np.asarray(draw_preview(scene)).astype(int)
    assert preview.shape[0] > 256 and preview.shape[1] == 512
    picture = preview[:256:2, ::2]
    first, second, background = picture[5, 5], picture[70, 250], picture[5, 250]
    assert len({tuple(colour) for colour in (first, second, background)}) == 3
    assert (picture[70, 95] == second).all()  # the higher priority has the place
    halfway = picture[20, 99:101].mean(0)  # at the border, half of each
    np.testing.assert_allclose(halfway, (first + background) / 2, atol=1)
    assert picture[100, 200].tolist() == [1, 2, 3]
    assert all((preview[256:] == colour).all(-1).any() for colour in (first, second, background))  # the legend
    assert draw_preview(Scene("two", (1024, 512))).width == 1024


def test_scenes_without_regions_have_a_preview_too() -> None:
    assert (np.asarray(draw_preview(Scene("two", (512, 512))))[:512] == 40).all()
