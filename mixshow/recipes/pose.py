"""The pose of a scene's options -> people, and the picture an adapter reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixshow.config.pose import PersonOptions, PoseOptions
from mixshow.config.scene import SceneOptions
from mixshow.core.errors import MixshowError
from mixshow.core.progress import log
from mixshow.models.base import BUILT_IN
from mixshow.models.device import device_named
from mixshow.sampling.detect import Detector, find_people, load_detector
from mixshow.sampling.named_poses import named_person
from mixshow.sampling.openpose import anyone_inside, fit_people, fit_picture, person_of, read_people, read_picture
from mixshow.sampling.people_boxes import PEOPLE_MARGINS, PUPPET_MARGINS, Margins
from mixshow.sampling.pictures import decoded_picture, encoded_picture
from mixshow.sampling.pose import draw_openpose
from mixshow.sampling.scene import PoseGuide
from mixshow.sampling.skeleton import BODIES

Size = tuple[int, int]
_FLOOR = 0.95  # where people stand whose place is not told, as a fraction of the picture's height


@dataclasses.dataclass(frozen=True)
class ReadPose:
    """A pose in which nothing was found to be wrong.

    Attributes:
        guide: None for a photograph in which nobody was looked for yet.
        people: (18, 3) key points in pixels of the scene; none for a drawn picture.
        names: what regions call the people.
        margins: of boxes around them.
        options: hold all of it: they name no files any more, but that of a photograph.
    """

    guide: PoseGuide | None
    people: tuple[np.ndarray, ...]
    names: tuple[str | None, ...]
    margins: Margins
    options: PoseOptions


def read_pose(pose: PoseOptions, size: Size) -> ReadPose:
    """Read or make the people of a pose and draw them. In a photograph nobody is looked for, see `with_photo_read`.

    Args:
        size: (width, height) of the scene.

    Raises:
        MixshowError: files that are missing or hold something else, unknown poses, nobody inside of the picture.
    """
    margins = Margins(*pose.margins) if pose.margins else PUPPET_MARGINS if _is_puppet(pose) else PEOPLE_MARGINS
    if pose.photo is not None:
        return ReadPose(None, (), (), margins, pose)
    people: list[np.ndarray] = []
    names: list[str | None] = []
    kept: dict[str, Any]
    if not pose.has_points:
        picture = fit_picture(read_picture(pose.image) if pose.image else decoded_picture(pose.png or ""), size)
        if picture.getbbox() is None:
            raise MixshowError(f"{pose.image or 'png'}: expected a picture of at least one person, found only black")
        kept = {"png": encoded_picture(picture)}
    else:
        people, names = people_in(pose, size)
        if not anyone_inside(people, size):
            raise MixshowError(
                f"{pose.json or 'people'}: expected at least one person with visible key points inside the picture of "
                f"{size[0]}x{size[1]} pixels, found none"
            )
        picture = draw_openpose(people, size)
        kept = {"people": [person.tolist() for person in people]}
    bare = dataclasses.replace(pose, image=None, json=None, people=None, png=None, canvas=None)
    options = dataclasses.replace(bare, **kept)
    return ReadPose(
        PoseGuide(picture, pose.weight, pose.span, pose.control_type), tuple(people), tuple(names), margins, options
    )


def people_in(pose: PoseOptions, size: Size) -> tuple[list[np.ndarray], list[str | None]]:
    """The people of a pose with `json` or `people`, in pixels of a picture, and their names.

    Raises:
        MixshowError: files that are missing or hold something else, unknown poses, wrong key points, a name twice.
    """
    if pose.json is not None:
        people, canvas = read_people(pose.json, pose.canvas)
        return fit_people(people, canvas, size), [None] * len(people)
    entries = pose.people or []
    points = [_points(entry, i) for i, entry in enumerate(entries)]
    given = [person for person in points if person is not None]
    fractions = bool(given) and max(person[:, :2].max() for person in given) <= 1
    fitted = iter(fit_people(given, (1, 1) if fractions else None, size))
    body = "puppet" if _is_puppet(pose) else "adult"
    people = []
    for i, (entry, own) in enumerate(zip(entries, points, strict=True)):
        if own is not None:
            people.append(next(fitted))
        else:
            assert isinstance(entry, PersonOptions)
            people.append(_named(entry, ((i + 0.5) / len(entries), _FLOOR), body, size, i))
    names = [entry.name if isinstance(entry, PersonOptions) else None for entry in entries]
    twice = {name for name in names if name is not None and names.count(name) > 1}
    if twice:
        raise MixshowError(f"people: expected different names, found '{min(twice)}' twice")
    return people, names


def with_photo_read(options: SceneOptions, detector: Detector | None = None) -> SceneOptions:
    """Options with the people of the pose's photograph as key points in its place; loads the detector.

    Args:
        detector: instead of the one that the options name.

    Raises:
        MixshowError: the extra or its weights are missing, or nobody is in the photograph.
    """
    pose = options.pose
    if pose is None or pose.photo is None or options.size is None:
        return options
    photo = read_picture(pose.photo)
    if detector is None:
        detector = load_detector(pose.detector, pose.detector_model, device_named(options.device))
    try:
        people = find_people(photo, detector)
    except MixshowError as error:
        raise MixshowError(f"pose: {pose.photo}: {error}") from error
    log.info("%s: found %d people, from left to right", pose.photo, len(people))
    fitted = [person.tolist() for person in fit_people(people, photo.size, options.size)]
    return dataclasses.replace(options, pose=dataclasses.replace(pose, photo=None, people=fitted))


def _is_puppet(pose: PoseOptions) -> bool:
    return pose.adapter == BUILT_IN and pose.controlnet is None


def _points(entry: PersonOptions | Sequence[Sequence[float] | None], number: int) -> np.ndarray | None:
    """Key points that are given themselves."""
    points = entry.points if isinstance(entry, PersonOptions) else entry
    if points is None:
        return None
    try:
        return person_of(points)
    except ValueError as error:
        raise MixshowError(f"people[{number}]: {error}") from error


def _named(entry: PersonOptions, place: tuple[float, float], body: str, size: Size, number: int) -> np.ndarray:
    at = entry.at or place
    try:
        return named_person(
            entry.person or "",
            (at[0] * size[0], at[1] * size[1]),
            entry.height * size[1],
            anchor=entry.anchor,
            body=BODIES[entry.body or body],
            mirror=entry.mirror,
        )
    except MixshowError as error:
        raise MixshowError(f"people[{number}].person: {error}") from error
