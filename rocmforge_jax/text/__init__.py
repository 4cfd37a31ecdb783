"""Tokenizers from GGUF metadata, streaming text decoding and chat templates."""

from rocmforge_jax.text.chat import ChatTemplate, chat_template_from_metadata
from rocmforge_jax.text.messages import ChatTemplateError, without_oldest_turn
from rocmforge_jax.text.stream import StopStrings, TextStream
from rocmforge_jax.text.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_metadata

__all__ = [
    "ChatTemplate",
    "ChatTemplateError",
    "StopStrings",
    "TextStream",
    "Tokenizer",
    "chat_template_from_metadata",
    "load_tokenizer",
    "tokenizer_from_metadata",
    "without_oldest_turn",
]
