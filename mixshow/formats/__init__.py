"""Files of other programs, turned into ours and back."""

from mixshow.formats.concepts import is_concept_file, named_by, read_concept, read_network_concept
from mixshow.formats.embeddings import read_embedding
from mixshow.formats.mix_of_show import read_mix_of_show, write_mix_of_show

__all__ = [
    "is_concept_file",
    "named_by",
    "read_concept",
    "read_embedding",
    "read_mix_of_show",
    "read_network_concept",
    "write_mix_of_show",
]
