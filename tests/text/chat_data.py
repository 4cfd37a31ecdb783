"""Conversations, templates of models, and what transformers renders: tools/make_chat_data.py."""

import json
import lzma
import os
from pathlib import Path

from rocmforge_jax.text import ChatTemplate

FILE = Path(__file__).resolve().parents[1] / "data" / "chat.json.xz"
DATA = json.loads(lzma.decompress(Path(os.environ.get("ROCMFORGE_CHAT_DATA", FILE)).read_bytes()))


def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(DATA["templates"][name]["template"], bos_token="<s>", eos_token="</s>")
