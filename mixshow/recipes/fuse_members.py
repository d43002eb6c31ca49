"""The concepts of a fuse file, read from files of every format and checked against their base and each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from mixshow.config.fuse import ConceptOptions, FuseOptions
from mixshow.core.errors import MixshowError
from mixshow.core.progress import log
from mixshow.edlora.concept import Concept
from mixshow.edlora.embedding import attach_embeddings
from mixshow.formats import is_concept_file, named_by, read_concept, read_network_concept
from mixshow.formats.published_options import read_concept_list
from mixshow.fusion.members import Member, renamed
from mixshow.models import Base
from mixshow.models.vocabulary import concept_words

T = TypeVar("T")


class Attempt(Protocol):
    """Runs an action that may raise MixshowError; notes the error under a name and returns None then."""

    def __call__(self, what: str, action: Callable[[], T]) -> T | None: ...


def read_members(options: FuseOptions, base: Base | None, attempt: Attempt) -> dict[int, Member]:
    """The members by their place in the options; those with something wrong are left out and noted.

    Args:
        base: None where it could not be loaded: files that only their base makes sense of are left out then.
    """
    members: dict[int, Member] = {}
    for i, entry in enumerate(listed_concepts(options, attempt)):
        member = attempt(f"concepts[{i}]", lambda entry=entry: read_member(entry, base))  # type: ignore[misc]
        if member is not None:
            members[i] = member
    return members


def listed_concepts(options: FuseOptions, attempt: Attempt) -> list[ConceptOptions]:
    """The concepts' options, also of those in a list of Mix-of-Show."""
    if not isinstance(options.concepts, Path):
        return options.concepts
    listed = options.concepts
    return [
        ConceptOptions(_beside(listed, file), unet=unet, text_encoder=text_encoder, tokens=name or None)
        for file, unet, text_encoder, name in attempt("concepts", lambda: read_concept_list(listed)) or []
    ]


def _beside(listed: Path, file: Path) -> Path:
    """Paths of published lists are relative to the working folder; moved lists have their files beside them."""
    moved = listed.parent / file
    return moved if not file.exists() and moved.exists() else file


def read_member(entry: ConceptOptions, base: Base | None) -> Member | None:
    """One concept; None for a network file without a base to read it for.

    Raises:
        MixshowError: there is no such concept, it does not fit the base, or has nothing to fuse.
    """
    concept = _concept(entry, base)
    if concept is None:
        return None
    member = Member(concept, entry.weight, entry.text_encoder, entry.unet, entry.alpha)
    if base is not None:
        _check_fit(base, member)
    return member


def _concept(entry: ConceptOptions, base: Base | None) -> Concept | None:
    """None for a network file without a base to read it for."""
    whole = is_concept_file(entry.file)
    if whole:
        concept = read_concept(entry.file)
        if entry.embedding is not None:
            raise MixshowError(f"{entry.file}: has embeddings of its own ({concept.text}); leave embedding out")
    elif base is None:
        return None
    else:
        concept = read_network_concept(entry.file, base, embedding=entry.embedding, missing_alpha=entry.missing_alpha)
    if entry.tokens is not None:
        if not concept.embeddings:
            raise MixshowError(
                f"{entry.file}: has no tokens that '{entry.tokens}' could rename; give trigger: 'words of its "
                "captions', or an embedding"
            )
        concept = renamed(concept, concept_words(entry.tokens))
    if entry.trigger is not None:
        return concept if base is None else named_by(concept, entry.trigger, base)
    if not concept.embeddings:
        raise MixshowError(
            f"{entry.file}: a network without tokens; say how prompts name it, trigger: 'words of its captions', or "
            "give a file of textual inversion as embedding"
        )
    return concept


def _check_fit(base: Base, member: Member) -> None:
    """Raises MixshowError when the concept does not fit the base, or has nothing to fuse."""
    attach_embeddings(base, member.concept.embeddings)[1].detach()
    if member.changes_anything(base):
        return
    name = member.concept.source or member.concept.text
    if not member.concept.embeddings:
        raise MixshowError(
            f"{name}: its network changes nothing and it has no tokens, so that there is nothing to fuse; was it "
            "trained, and are its strengths more than 0?"
        )
    log.info("%s: its network changes nothing, so that only its tokens are fused; was it trained?", name)


def collisions(members: Mapping[int, Member]) -> list[str]:
    """Tokens and triggers that two concepts have, one sentence each."""
    first: dict[str, int] = {}
    problems = []
    for i, member in members.items():
        concept = member.concept
        for token in concept.embeddings:
            if token in first:
                problems.append(
                    f"concepts[{i}]: token {token} is also used by concepts[{first[token]}]; give one of them "
                    f"other tokens, for example tokens: '{_other_names(concept, i)}'"
                )
            first.setdefault(token, i)
        if concept.trigger and first.get(concept.text, i) != i:
            problems.append(
                f"concepts[{i}]: trigger '{concept.text}' is also that of concepts[{first[concept.text]}], so that "
                "prompts could not tell them apart; give one of them other words or an embedding"
            )
        first.setdefault(concept.text, i)
    return problems


def _other_names(concept: Concept, number: int) -> str:
    return " ".join(f"{token[:-1]}-{number}>" for token in concept.embeddings)
