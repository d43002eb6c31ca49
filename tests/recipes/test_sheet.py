"""Who is where on contact sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mixshow.recipes.sheet import write_sheet
from mixshow.sampling.pictures import encoded_picture, save_picture


def test_a_sheet_tells_who_is_in_which_region(tmp_path: Path) -> None:
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:, 4:20] = 255
    regions = [
        {"prompt": "a photo of {concept}", "concept": "pip", "box": [0, 0, 64, 64]},
        {
            "prompt": "<luma1> <luma2> and <rusty1>",
            "png": encoded_picture(Image.fromarray(mask)),
            "negative_prompt": "red",
        },
        {"prompt": "a <pip1> <pip2>", "from": "attention"},
        {"prompt": "a dog", "polygon": [[0, 0], [9.5, 0], [9, 9]]},
    ]
    scene = {"prompt": "four", "size": [128, 64], "regions": regions}
    save_picture(Image.new("RGB", (128, 64)), tmp_path / "a.png", {"scene": scene, "seed": 3})
    write_sheet(tmp_path / "sheet.html", [tmp_path / "a.png"])
    page = (tmp_path / "sheet.html").read_text()
    for cells in (
        ("0", "pip", "box [0, 0, 64, 64]", "a photo of {concept}", ""),
        ("1", "luma, rusty", "mask in box [16, 16, 80, 64]", "&lt;luma1&gt; &lt;luma2&gt; and &lt;rusty1&gt;", "red"),
        ("2", "pip", "found from attention", "a &lt;pip1&gt; &lt;pip2&gt;", ""),
        ("3", "", "polygon [[0, 0], [9.5, 0], [9, 9]]", "a dog", ""),
    ):
        assert "".join(f"<td>{cell}</td>" for cell in cells) in page
