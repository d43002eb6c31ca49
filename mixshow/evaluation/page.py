"""A report as one HTML file with its pictures inside, readable offline."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from mixshow.core.files import write_text

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #222; background: #fff }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem .9rem; border: 1px solid #ccc; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
figure { display: inline-block; margin: .5rem .5rem .5rem 0; vertical-align: top }
figcaption { font-size: .85rem; color: #555; max-width: 40rem }
img { max-width: 100%; image-rendering: auto; border: 1px solid #ddd }
"""


class Page:
    """Collects headings, texts, tables and pictures, in order."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Numbers are set right-aligned."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(self._cell(cell) for cell in row) + "</tr>" for row in rows)
        self._parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def picture(self, image: Image.Image, caption: str = "", *, scale: int = 1) -> None:
        """A picture with its caption, stored inside the page as PNG."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        text = html.escape(caption)
        self._parts.append(
            f'<figure><img width="{image.width * scale}" alt="{text}" src="data:image/png;base64,{data}">'
            f"<figcaption>{text}</figcaption></figure>"
        )

    def write(self, path: Path | str) -> None:
        """Write the page atomically."""
        write_text(
            path,
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
            + "\n".join(self._parts)
            + "</body></html>\n",
        )

    @staticmethod
    def _cell(cell: object) -> str:
        number = isinstance(cell, (int, float)) and not isinstance(cell, bool)
        text = f"{cell:.3g}" if isinstance(cell, float) else str(cell)
        return f'<td class="number">{text}</td>' if number else f"<td>{html.escape(text)}</td>"


def markdown_table(header: Sequence[str], rows: Sequence[Mapping[str, object] | Sequence[object]]) -> str:
    """A table for documents and the terminal."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [row[name] for name in header] if isinstance(row, Mapping) else list(row)
        lines.append("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return "\n".join(lines)
