"""Files of other programs, turned into ours and back."""

from mixshow.formats.concepts import read_concept
from mixshow.formats.mix_of_show import read_mix_of_show, write_mix_of_show

__all__ = ["read_concept", "read_mix_of_show", "write_mix_of_show"]
