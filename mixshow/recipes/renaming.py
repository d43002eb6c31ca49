"""Characters of published scenes under the names of one's own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.models.vocabulary import concept_name, concept_words
from mixshow.sampling.regions import Region


def parse_names(texts: Sequence[str]) -> dict[str, str]:
    """What stands for what, from texts `OLD=NEW`.

    Raises:
        MixshowError: one is of another form, or an old name stands there twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        old, sign, new = (part.strip() for part in text.partition("="))
        if not (old and sign and new):
            raise MixshowError(f"--concept: expected OLD=NEW such as hermione=pip, found '{text}'")
        if old in found:
            raise MixshowError(f"--concept: expected each name once, found '{old}' twice")
        found[old] = new
    return found


def renamed(regions: Sequence[Region], names: Mapping[str, str], source: str) -> list[Region]:
    """Regions with other characters in their prompts; all names are exchanged at once.

    Args:
        names: from what is there to what is to be. One word without brackets is a concept's name: `hermione` is
            `<hermione1> <hermione2>`, or the bare word where no region has these. Anything else is text as it stands.
        source: where the regions came from, for messages.

    Raises:
        MixshowError: a name that no region has.
    """
    if not names:
        return list(regions)
    patterns = {old: _pattern(old, regions) for old in names}
    for old, pattern in patterns.items():
        if not _is_there(pattern, regions):
            known = dict.fromkeys(concept_name(word) for region in regions for word in concept_words(region.prompt))
            raise MixshowError(f"{source}: --concept: no region has '{old}'{did_you_mean(old, known)}")
    anything = re.compile("|".join(f"({pattern})" for pattern in patterns.values()))
    texts = [_text(new) for new in names.values()]
    return [
        dataclasses.replace(region, prompt=anything.sub(lambda match: texts[(match.lastindex or 1) - 1], region.prompt))
        for region in regions
    ]


def _pattern(old: str, regions: Sequence[Region]) -> str:
    """Without groups: the caller counts its own."""
    if not _is_name(old):
        return r"\s+".join(re.escape(word) for word in old.split())
    name = re.escape(old)
    tokens = rf"<{name}\d*>(?:\s+<{name}\d*>)*"
    return tokens if _is_there(tokens, regions) else rf"(?<![\w<]){name}(?![\w>])"


def _is_there(pattern: str, regions: Sequence[Region]) -> bool:
    return any(re.search(pattern, region.prompt) for region in regions)


def _text(new: str) -> str:
    return f"<{new}1> <{new}2>" if _is_name(new) else new


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[\w-]+", text) is not None
