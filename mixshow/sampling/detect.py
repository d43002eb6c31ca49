"""Finding people's key points in photographs, through controlnet_aux (extra `pose`)."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from mixshow.core.errors import MixshowError, explained
from mixshow.core.optional import optional_import
from mixshow.sampling.joints import POINTS

# A picture -> one (18, 3) array per person: x and y as fractions of its sides, and above 0 where seen.
Detector = Callable[[Image.Image], Sequence[np.ndarray]]
DETECTORS = ("openpose", "dwpose")

_PACKAGE = "controlnet_aux"
_PURPOSE = "finding poses in photographs"
_WEIGHTS_REPOSITORY = "lllyasviel/Annotators"
_BODY_FILE, _WHOLE_BODY_FILE, _PERSON_FILES = "body_pose_model.pth", "dw-ll_ucoco_384.pth", "yolox_l*.pth"
_DWPOSE_PACKAGES = ("mmcv", "mmdet", "mmpose")
_LONGER_SIDE = 1024  # larger photographs are shrunk first; the detectors themselves look at less
_CERTAIN = 0.3  # scores that DWPose's own drawings ask for


def load_detector(name: str = "openpose", model: str | None = None, device: torch.device | str = "cpu") -> Detector:
    """Load what finds people.

    Args:
        name: `openpose` or `dwpose`.
        model: a folder or hub id with its weights: `body_pose_model.pth` for OpenPose; `dw-ll_ucoco_384.pth` for
            DWPose, and in a folder also `yolox_l*.pth`. None: where they were published.

    Raises:
        MixshowError: the extra is not installed, or there are no such weights.
    """
    if name not in DETECTORS:
        raise MixshowError(f"detector: expected one of {', '.join(DETECTORS)}, found '{name}'")
    problem = detector_problem(name, model)
    if problem:
        raise MixshowError(problem)
    with explained(f"detector '{name}': its weights could not be loaded"):
        return _openpose(model, device) if name == "openpose" else _dwpose(model, device)


def detector_problem(name: str, model: str | None) -> str | None:
    """Why a detector cannot be loaded; None when it may be. Loads nothing."""
    if importlib.util.find_spec(_PACKAGE) is None:
        return f"{_PURPOSE} needs the package '{_PACKAGE}', found none; install it with: pip install 'mixshow[pose]'"
    if model is None or (not model.startswith((".", "/", "~")) and not Path(model).exists()):
        return None  # where the weights were published, or a hub id
    wanted = [_BODY_FILE] if name == "openpose" else [_WHOLE_BODY_FILE, _PERSON_FILES]
    for pattern in wanted:
        if not any(Path(model).expanduser().glob(pattern)):
            return f"detector_model: expected a folder with {' and '.join(wanted)}, found no {pattern} in '{model}'"
    return None


def find_people(photo: Image.Image, detector: Detector) -> list[np.ndarray]:
    """The people of a photograph, from left to right.

    Returns:
        One (18, 3) array per person: x, y in pixels of the photograph, and 1 where seen.

    Raises:
        MixshowError: nobody was found.
    """
    seen = photo.convert("RGB")
    seen.thumbnail((_LONGER_SIDE, _LONGER_SIDE))
    people = [person * (*photo.size, 1) for person in detector(seen) if (person[:, 2] > 0).any()]
    if not people:
        raise MixshowError("expected at least one person in the photograph, found none")
    return sorted(people, key=lambda person: float(person[person[:, 2] > 0, 0].mean()))


def _openpose(model: str | None, device: torch.device | str) -> Detector:
    aux = _imported(f"{_PACKAGE}.open_pose")
    weights = aux.Body(_weights(model or _WEIGHTS_REPOSITORY, _BODY_FILE))
    weights.to(device)
    detector = aux.OpenposeDetector(weights)  # hands and faces, which pose pictures for adapters do not show, need more

    def find(picture: Image.Image) -> list[np.ndarray]:
        return [_person(pose.body.keypoints) for pose in detector.detect_poses(np.asarray(picture))]

    return find


def _person(points: Sequence[Any]) -> np.ndarray:
    person = np.zeros((POINTS, 3))
    for i, point in enumerate(points):
        if point is not None:
            person[i] = (point.x, point.y, 1)
    return person


def _dwpose(model: str | None, device: torch.device | str) -> Detector:
    for package in _DWPOSE_PACKAGES:
        try:
            optional_import(package, extra="pose", purpose=_PURPOSE)
        except MixshowError as error:
            raise MixshowError(
                f"detector 'dwpose' needs {', '.join(_DWPOSE_PACKAGES)} beside the extra 'pose', found no '{package}'; "
                "install them with OpenMMLab's mim, or take detector: openpose"
            ) from error
    aux = _imported(f"{_PACKAGE}.dwpose")
    files: dict[str, str] = {}
    if model is not None:
        files["pose_ckpt"] = _weights(model, _WHOLE_BODY_FILE)
        person_files = sorted(Path(model).expanduser().glob(_PERSON_FILES))
        if person_files:
            files["det_ckpt"] = str(person_files[0])
    detector = aux.DWposeDetector(device=str(device), **files)

    def find(picture: Image.Image) -> list[np.ndarray]:
        points, scores = detector.pose_estimation(np.asarray(picture)[:, :, ::-1].copy())  # blue first
        certain = scores[:, :POINTS, None] > _CERTAIN
        return list(np.concatenate([points[:, :POINTS] / picture.size, certain], axis=2) * certain)

    return find


def _weights(model: str, name: str) -> str:
    """A file of a folder or a hub repository."""
    local = Path(model).expanduser() / name
    if local.is_file():
        return str(local)
    hub = optional_import("huggingface_hub", extra="pose", purpose=_PURPOSE)
    return str(hub.hf_hub_download(model, name))


def _imported(module: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of everything else in the package that lacks something
        try:
            return optional_import(module, extra="pose", purpose=_PURPOSE)
        except RuntimeError as error:  # torchvision of another build than torch
            first_line = str(error).splitlines()[0]
            raise MixshowError(
                f"{_PURPOSE}: '{module}' could not be imported ({first_line}); expected a torchvision built for the "
                "installed torch"
            ) from error
