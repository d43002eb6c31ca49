from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mixshow.core.errors import MixshowError
from mixshow.sampling import detect
from mixshow.sampling.detect import detector_problem, find_people, load_detector


def fraction_person(x: float, y: float) -> np.ndarray:
    person = np.zeros((18, 3))
    person[:5] = (x, y, 1)
    return person


def test_people_are_in_pixels_of_the_photograph_from_left_to_right() -> None:
    sizes = []

    def detector(picture: Image.Image) -> list[np.ndarray]:
        sizes.append(picture.size)
        return [fraction_person(0.75, 0.5), np.zeros((18, 3)), fraction_person(0.25, 0.1)]

    people = find_people(Image.new("L", (4096, 1024)), detector)
    assert sizes == [(1024, 256)]
    assert [person[0].tolist() for person in people] == [[1024, 102.4, 1], [3072, 512, 1]]
    with pytest.raises(MixshowError, match="at least one person in the photograph, found none"):
        find_people(Image.new("RGB", (8, 8)), lambda _: [])


@pytest.fixture
def aux(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for controlnet_aux with the two detectors' interfaces."""
    calls = SimpleNamespace(weights=[], devices=[], pictures=[])

    class Body:
        def __init__(self, path: str) -> None:
            calls.weights.append(Path(path).name)

        def to(self, device: object) -> None:
            calls.devices.append(device)

    class OpenposeDetector:
        def __init__(self, body: Body) -> None:
            self.body = body

        def detect_poses(self, picture: np.ndarray) -> list[SimpleNamespace]:
            calls.pictures.append(picture)
            points = [SimpleNamespace(x=0.5, y=0.25), *[None] * 17]
            return [SimpleNamespace(body=SimpleNamespace(keypoints=points))]

    class DWposeDetector:
        def __init__(self, **options: str) -> None:
            calls.weights += [Path(options[key]).name for key in ("pose_ckpt", "det_ckpt")]

        def pose_estimation(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            calls.pictures.append(picture)
            scores = np.full((1, 134), 0.2)
            scores[:, :2] = 0.9
            return np.full((1, 134, 2), (20.0, 10.0)), scores

    package = ModuleType("controlnet_aux")
    package.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    modules = {
        "controlnet_aux": package,
        "controlnet_aux.open_pose": SimpleNamespace(Body=Body, OpenposeDetector=OpenposeDetector),
        "controlnet_aux.dwpose": SimpleNamespace(DWposeDetector=DWposeDetector),
        **{name: ModuleType(name) for name in ("mmcv", "mmdet", "mmpose")},
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("name", detect.DETECTORS)
def test_detectors_read_weights_of_a_folder(name: str, aux: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(MixshowError, match=r"detector_model: expected a folder with .*\.pth"):
        load_detector(name, str(tmp_path))
    files = {"openpose": ["body_pose_model.pth"], "dwpose": ["dw-ll_ucoco_384.pth", "yolox_l_8x8.pth"]}[name]
    for file in files:
        (tmp_path / file).touch()
    detector = load_detector(name, str(tmp_path))
    assert aux.weights == files
    [person] = find_people(Image.new("RGB", (40, 40), (255, 0, 0)), detector)
    assert person[0].tolist() == [20, 10, 1] and person[2:].any(0).tolist() == [False, False, False]
    red = 0 if name == "openpose" else 2  # DWPose reads blue first
    assert aux.pictures[0][0, 0].tolist() == [255 * (channel == red) for channel in range(3)]


def test_what_is_missing_is_one_line(aux: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MixshowError, match="expected one of openpose, dwpose, found 'opnpose'"):
        load_detector("opnpose")
    monkeypatch.setitem(sys.modules, "mmdet", None)
    with pytest.raises(MixshowError, match=r"needs mmcv, mmdet, mmpose .* found no 'mmdet'"):
        load_detector("dwpose")
    monkeypatch.setattr(detect.importlib.util, "find_spec", lambda _: None)
    assert "pip install 'mixshow[pose]'" in (detector_problem("openpose", None) or "")
    with pytest.raises(MixshowError, match=r"found none; install it with: pip install 'mixshow\[pose\]'"):
        load_detector("openpose")
