"""The base's own tokenizer: CLIP's class and rules over a small vocabulary with the world's words."""

from __future__ import annotations

from itertools import pairwise

from transformers import CLIPTokenizer

from mixshow.puppets.backgrounds import BACKGROUNDS
from mixshow.puppets.networks import MAX_TOKENS
from mixshow.puppets.palette import COLOURS, KINDS, POSES

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = """
a an the of in on at and with without to from by for is are it its this that these two three four five six
one photo photograph picture image rendition painting drawing sketch illustration render close up cropped
good bad cool nice weird small large big clean dirty dark bright depiction art style cartoon high low
quality best detailed colourful colorful puppet puppets boys girls bears robots aliens group hair shirt
trousers hat room left right middle next behind front man woman person people child dog cat animal toy doll
character face head body hand hands arm arms leg legs foot feet eye eyes ear ears mouth nose skin smiling
happy sad sitting running dancing looking holding wearing flying sleeping lowres anatomy blurry ugly
deformed extra fewer missing digit digits error jpeg artifacts watermark text signature username worst
normal mutated disfigured limbs longbody brown grey gray gold golden silver light tan long short tall round
square striped dotted sky sun moon star stars tree trees sand water wave mountain house street window wall
floor curtain grass flower winter summer day evening morning street park garden school kitchen castle river
lake my your his her their our he she they we you me who what where very many some all no not
"""


def _byte_symbols() -> list[str]:
    """The printable characters that stand for the 256 bytes, in byte order (as in GPT-2 and CLIP)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    symbols, extra = {}, 0
    for byte in range(256):
        if byte in printable:
            symbols[byte] = chr(byte)
        else:
            symbols[byte], extra = chr(256 + extra), extra + 1
    return [symbols[byte] for byte in range(256)]


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token numbers and merges: bytes first, then the pieces of each word, the start and end tokens last."""
    tokens = _byte_symbols()
    tokens += [symbol + "</w>" for symbol in tokens]
    merges: dict[tuple[str, str], int] = {}
    words = dict.fromkeys([*KINDS, *COLOURS, *POSES, *BACKGROUNDS, *_WORDS.split()])
    for word in words:
        pieces = _split(word, merges)
        # New merges rank below all earlier ones, so they cannot change how an earlier word is put together.
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = len(merges)
            tokens.append(pieces[0] + pieces[1])
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    numbers = {token: number for number, token in enumerate(dict.fromkeys([*tokens, _START, _END]))}
    return numbers, list(merges)


def _split(word: str, merges: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word with the merges so far."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while True:
        ranked = [(merges[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in merges]
        if not ranked:
            return pieces
        _, i = min(ranked)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def make_tokenizer() -> CLIPTokenizer:
    """The tokenizer, padded with the end token to 48 tokens as CLIP's is to 77."""
    numbers, merges = vocabulary()
    # transformers' annotation wants strings, the tokenizers library wants the pairs themselves
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=MAX_TOKENS)
