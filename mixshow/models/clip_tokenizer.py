"""CLIP's tokenizer, which single-file checkpoints leave out: all of Stable Diffusion 1.x, 2.x and XL have this one.

Its merges are OpenAI's (`clip/`, MIT licence).
"""

from __future__ import annotations

import gzip
from importlib import resources

from transformers import CLIPTokenizer

_START, _END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(*, length: int, pad_with_zero: bool = False) -> CLIPTokenizer:
    """The tokenizer.

    Args:
        length: of a padded prompt, start and end token included.
        pad_with_zero: pad with the token of id 0, as OpenCLIP's encoders (2.x, XL's second) do, not with the end token.
    """
    packed = (resources.files("mixshow.models") / "clip" / "merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").splitlines()[1:]  # the first line names a version
    merges = [tuple(line.split()) for line in lines if line.strip()]
    symbols = _byte_symbols()
    pieces = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in merges), _START, _END]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    pad = pieces[0] if pad_with_zero else _END
    return CLIPTokenizer(numbers, merges, pad_token=pad, model_max_length=length)


def _byte_symbols() -> list[str]:
    """The characters that stand for the 256 bytes: printable ones for themselves, first; then those for the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(256 - len(printable))]
