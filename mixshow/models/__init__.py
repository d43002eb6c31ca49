"""Base models: load, save, describe, encode prompts. Every number about a model is asked of the model here."""

from mixshow.models.base import Base, load_base, save_base
from mixshow.models.prompt_reading import PromptReading, aligned, read_ids, read_prompts
from mixshow.models.prompts import PromptStates, encode_prompts, prompt_states
from mixshow.models.schedule import make_scheduler
from mixshow.models.topology import Topology, cross_attention_layers, self_attention_layers
from mixshow.models.vocabulary import ConceptVocabulary

__all__ = [
    "Base",
    "ConceptVocabulary",
    "PromptReading",
    "PromptStates",
    "Topology",
    "aligned",
    "cross_attention_layers",
    "encode_prompts",
    "load_base",
    "make_scheduler",
    "prompt_states",
    "read_ids",
    "read_prompts",
    "save_base",
    "self_attention_layers",
]
