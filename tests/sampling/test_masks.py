from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mixshow.core.errors import MixshowError
from mixshow.sampling.masks import coded_masks, grey, mask_of
from mixshow.sampling.pictures import decoded_picture, encoded_picture


def test_a_colour_coded_picture_is_taken_apart() -> None:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[:, :2], pixels[:, 2:4], pixels[:, 4] = (255, 0, 0), (250, 3, 8), (0, 200, 255)
    red, blue = coded_masks(Image.fromarray(pixels), [(255, 0, 0), (0, 210, 250)])
    assert np.asarray(red)[0].tolist() == [255, 255, 255, 255, 0, 0]  # as JPEGs blur colours
    assert np.asarray(blue)[0].tolist() == [0, 0, 0, 0, 255, 0]
    with pytest.raises(MixshowError, match="no pixel has the colour #00ff00; it has most of #fa0308, #ff0000, "):
        coded_masks(Image.fromarray(pixels), [(0, 255, 0)])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16", "I"])
def test_masks_of_every_mode(mode: str) -> None:
    values = np.zeros((4, 4), dtype=np.uint8)
    values[:2] = 255
    picture = Image.fromarray(values)
    if mode.startswith("I"):
        picture = Image.fromarray(values.astype(np.uint16) * 257).convert(mode)
    elif mode == "P":
        picture = picture.convert("RGB").convert("P")
    else:
        picture = picture.convert(mode)
    assert np.array_equal(np.asarray(grey(picture)), values)
    assert mask_of(picture).values.sum() == 8


def test_what_is_transparent_is_outside() -> None:
    picture = Image.new("RGBA", (2, 2), (255, 255, 255, 0))
    picture.putpixel((0, 0), (255, 255, 255, 255))
    assert mask_of(picture).values.tolist() == [[1, 0], [0, 0]]
    with pytest.raises(MixshowError, match="only black"):
        mask_of(Image.new("RGB", (2, 2)))


def test_pictures_travel_as_text() -> None:
    picture = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    assert np.array_equal(np.asarray(decoded_picture(encoded_picture(picture))), np.asarray(picture))
