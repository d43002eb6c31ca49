"""Base models: load, save, describe, encode prompts. Every number about a model is asked of the model here."""

from mixshow.models.base import Base, load_base, make_scheduler, save_base
from mixshow.models.prompts import encode_prompts
from mixshow.models.topology import Topology, cross_attention_layers
from mixshow.models.vocabulary import ConceptVocabulary

__all__ = [
    "Base",
    "ConceptVocabulary",
    "Topology",
    "cross_attention_layers",
    "encode_prompts",
    "load_base",
    "make_scheduler",
    "save_base",
]
