"""The special features of cast members: hats, shirt patterns, body parts. The base's world has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageDraw

from mixshow.puppets.canvas import SUPERSAMPLING, Canvas, Point
from mixshow.puppets.palette import COLOURS, Colour

if TYPE_CHECKING:
    from mixshow.puppets.drawing import Body

_GOLD: Colour = (250, 190, 40)
_IVORY: Colour = (246, 232, 200)
_CYAN: Colour = (110, 226, 240)
_INK: Colour = (26, 24, 40)

EXTRAS = (
    "top_hat", "wizard_hat", "crown", "propeller_cap",
    "stripes", "dots", "checker", "star",
    "wings", "cape_red", "cape_orange", "horns", "antlers", "antenna", "long_ears", "one_eye",
)  # fmt: skip


def draw_behind(canvas: Canvas, body: Body) -> None:
    """Everything that hangs behind the body: capes and wings."""
    torso = body.torso
    for word in ("red", "orange"):
        if body.has(f"cape_{word}"):
            outline = [
                (-0.13, -0.15),
                (0.13, -0.15),
                (0.27, 0.32),
                (0.09, 0.27),
                (-0.09, 0.32),
                (-0.27, 0.27),
            ]
            canvas.polygon(torso.shape(outline), COLOURS[word])
    if body.has("wings"):
        for sign in (-1, 1):
            for outline, colour in (
                ([(0.05, 0.03), (0.32, 0.22), (0.40, 0.06), (0.24, -0.04)], (70, 180, 220)),
                ([(0.05, 0.02), (0.38, 0.04), (0.44, -0.24), (0.30, -0.27)], _CYAN),
            ):
                canvas.polygon(torso.shape([(sign * u, v) for u, v in outline]), colour)


def draw_on_shirt(canvas: Canvas, body: Body, outline: list[Point]) -> None:
    """A pattern inside the outline of the torso."""
    pattern = Canvas(canvas.size)
    torso = body.torso
    white = COLOURS["white"]
    if body.has("stripes"):
        for v in (-0.075, 0.07):
            pattern.polygon(
                torso.shape([(-0.2, v - 0.038), (0.2, v - 0.038), (0.2, v + 0.038), (-0.2, v + 0.038)]), white
            )
    if body.has("dots"):
        for u, v in ((-0.075, -0.065), (0.075, -0.065), (0, 0.04), (-0.1, 0.115), (0.1, 0.115)):
            pattern.polygon(torso.oval(u, v, 0.048, 0.048), COLOURS["blue"])
    if body.has("checker"):
        side = 0.1
        for row in range(3):
            for column in range(3):
                if (row + column) % 2 == 0:
                    u, v = (column - 1.5) * side, -0.14 + row * side
                    square = [(u, v), (u + side, v), (u + side, v + side), (u, v + side)]
                    pattern.polygon(torso.shape(square), _INK)
    if body.has("star"):
        pattern.polygon(torso.star(0, 0.01, 0.125), COLOURS["yellow"])
    inside = Image.new("L", canvas.image.size, 0)
    ImageDraw.Draw(inside).polygon([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in outline], fill=255)
    canvas.paste(pattern, ImageChops.multiply(inside, pattern.image.getchannel("A")))


def draw_one_eye(canvas: Canvas, body: Body) -> None:
    """One eye as large as half the face."""
    canvas.polygon(body.head.oval(0, -0.1, 0.56, 0.5), COLOURS["white"])
    canvas.polygon(body.head.oval(0, -0.08, 0.28, 0.28), (190, 30, 60))


def draw_on_head(canvas: Canvas, body: Body) -> None:
    """Hats, horns, ears and antennas."""
    head = body.head
    if body.has("long_ears"):
        for sign in (-1, 1):
            ear = [(sign * 0.7, -0.5), (sign * 1.0, 0.1), (sign * 2.3, -0.75), (sign * 2.1, -1.05)]
            canvas.polygon(head.shape(ear), body.skin)
            inner = [(sign * 1.0, -0.42), (sign * 1.1, -0.14), (sign * 2.05, -0.78)]
            canvas.polygon(head.shape(inner), (246, 150, 170))
    if body.has("horns"):
        for sign in (-1, 1):
            horn = [
                (sign * 0.25, -0.8),
                (sign * 0.85, -0.55),
                (sign * 1.35, -1.1),
                (sign * 1.25, -1.85),
                (sign * 0.9, -1.25),
            ]
            canvas.polygon(head.shape(horn), _IVORY)
    if body.has("antlers"):
        for sign in (-1, 1):
            for path in ([(0.4, -0.8), (0.85, -1.35), (1.0, -2.05)], [(0.75, -1.25), (1.5, -1.6)]):
                points = head.shape([(sign * u, v) for u, v in path])
                canvas.limb(points, head.unit * 0.32, _IVORY)
    if body.has("antenna"):
        canvas.limb(head.shape([(0, -1.1), (0, -1.8)]), head.unit * 0.26, _INK)
        canvas.polygon(head.oval(0, -1.95, 0.46, 0.46), COLOURS["red"])
    if body.has("top_hat"):
        canvas.polygon(head.shape([(-0.78, -0.7), (0.78, -0.7), (0.82, -2.05), (-0.82, -2.05)]), _INK)
        canvas.polygon(head.shape([(-0.78, -0.8), (0.78, -0.8), (0.8, -1.2), (-0.8, -1.2)]), COLOURS["red"])
        canvas.polygon(head.shape([(-1.35, -0.55), (1.35, -0.55), (1.35, -0.85), (-1.35, -0.85)]), _INK)
    if body.has("wizard_hat"):
        canvas.polygon(head.shape([(-0.95, -0.6), (0.95, -0.6), (0.1, -2.6)]), COLOURS["purple"])
        canvas.polygon(head.oval(0, -0.62, 1.4, 0.26), COLOURS["purple"])
        canvas.polygon(head.star(0, -1.15, 0.5), COLOURS["yellow"])
    if body.has("crown"):
        points = [
            (-0.85, -0.6),
            (0.85, -0.6),
            (1.0, -1.6),
            (0.45, -1.1),
            (0, -1.75),
            (-0.45, -1.1),
            (-1.0, -1.6),
        ]
        canvas.polygon(head.shape(points), _GOLD)
        canvas.polygon(head.oval(0, -0.85, 0.2, 0.2), COLOURS["red"])
    if body.has("propeller_cap"):
        canvas.polygon(head.oval(0, -0.5, 1.0, 0.85, 180, 360), COLOURS["yellow"])
        canvas.polygon(head.oval(0, -0.5, 0.42, 0.85, 180, 360), COLOURS["purple"])
        canvas.limb(head.shape([(0, -1.3), (0, -1.65)]), head.unit * 0.2, _INK)
        for sign in (-1, 1):
            canvas.polygon(head.oval(sign * 0.62, -1.7, 0.62, 0.22), COLOURS["orange"] if sign < 0 else _CYAN)
