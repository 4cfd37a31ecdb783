"""Makes tests/data/chat.json.xz: conversations, and the texts that transformers renders from them.

    pip install "transformers==5.24.0"
    python tools/make_chat_data.py llama.cpp/models/templates

The file in the repository only contains templates of models under the licences MIT and Apache 2.0.
`--all FILE` writes all templates of the folder to another file, for ROCMFORGE_CHAT_DATA.
"""

import argparse
import json
import lzma
import types
from pathlib import Path

from transformers.utils import chat_template_utils

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "chat.json.xz"
KEPT = (
    "Apertus-8B-Instruct",
    "ByteDance-Seed-OSS",
    "GLM-4.6",
    "HuggingFaceTB-SmolLM3-3B",
    "MiMo-VL",
    "MiniMax-M1",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "Qwen-QwQ-32B",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen3-Coder",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-ai-DeepSeek-V3.1",
    "deepseek-ai-DeepSeek-V3.2",
    "ibm-granite-granite-3.3-2B-Instruct",
    "ibm-granite-granite-4.0",
    "inclusionai-ling-3.0-flash",
    "llama-cpp-deepseek-r1",
    "llama-cpp-rwkv-world",
    "meetkai-functionary-medium-v3.1",
    "meetkai-functionary-medium-v3.2",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Ministral-3-14B-Reasoning-2512",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "openai-gpt-oss-120b",
    "unsloth-Apriel-1.5",
    "unsloth-mistral-Devstral-Small-2507",
)
#: Templates that test whether the content of a tool call is none. `apply_chat_template` of
#: transformers removes such a content, so their texts come from `render_jinja_template`.
ASK_FOR_NONE = (
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "llama-cpp-rwkv-world",
)
#: Templates that print the arguments of a tool call and therefore need them as JSON text. All
#: others need an object.
PRINT_ARGUMENTS = ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "meetkai-functionary-medium-v3.2")
VARIABLES = {
    "fireworks-ai-llama-3-firefunction-v2": {"functions": "[]", "datetime": "28 November 2026"}
}

ARGUMENTS = {"city": 'Zürich <b>&</b> "日本"', "days": 3, "units": ["°C", None], "exact": True}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city, 'as it is'.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "A city, e.g. Malmö."},
                    "days": {"type": "integer", "enum": [1, 3, 7]},
                },
                "required": ["city"],
            },
        },
    },
]
HI = {"role": "user", "content": 'Grüß Gott! 2 < 3 & "so"?\n'}
YES = {"role": "assistant", "content": "Yes; 日本語 too."}
WHY = {"role": "user", "content": "And why?"}


def call(arguments, content) -> list[dict]:
    """Returns a conversation with a tool call."""
    function = {"name": "get_weather", "arguments": arguments}
    calls = [{"id": "call00001", "type": "function", "function": function}]
    return [
        HI,
        {"role": "assistant", "content": content, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "sunny"},
        YES,
        WHY,
    ]


def system(role="system") -> dict:
    """Returns a system message."""
    return {"role": role, "content": "Be brief, mon ami."}


THOUGHT = [HI, YES | {"reasoning_content": "Well,\nit holds."}, WHY]
PREFIX = [HI, {"role": "assistant", "content": "Sure, 1, 2, "}]
#: Requests of a client: name -> arguments of `ChatTemplate.render`.
SENT = {
    "one": {"messages": [HI]},
    "turns": {"messages": [system(), HI, YES, WHY]},
    "offer": {"messages": [HI], "tools": TOOLS},
    "call": {"messages": call(json.dumps(ARGUMENTS), None), "tools": TOOLS},
    "thought": {"messages": THOUGHT},
    "developer": {"messages": [system("developer"), HI]},
    "prefix": {"messages": PREFIX, "continue_final_message": True},
    "no prompt": {"messages": [HI, YES], "add_generation_prompt": False},
    "after assistant": {"messages": [HI, YES]},
}


def as_transformers_wants(name: str, template: str, sent: dict) -> dict:
    """Converts a request to the form that this template needs in transformers."""
    messages = sent["messages"]
    if any("tool_calls" in message for message in messages):
        messages = call(
            json.dumps(ARGUMENTS) if name in PRINT_ARGUMENTS else ARGUMENTS,
            None if name in ASK_FOR_NONE else "",
        )
    if "developer" not in template:  # as in llama.cpp
        messages = [
            message | {"role": message["role"].replace("developer", "system")}
            for message in messages
        ]
    prompt = sent.get("add_generation_prompt", "continue_final_message" not in sent)
    return sent | {"messages": messages, "add_generation_prompt": prompt}


def mend(environment):
    """Allows a sandbox what llama.cpp also allows: changing lists, and tojson of a generator."""
    tojson, is_safe = environment.filters["tojson"], environment.is_safe_attribute
    environment.filters["tojson"] = lambda value, **options: tojson(
        list(value) if isinstance(value, types.GeneratorType) else value, **options
    )
    environment.is_safe_attribute = lambda owner, name, value: (
        type(owner) is list and name in ("append", "pop") or is_safe(owner, name, value)
    )


class Formats:
    """Replaces `datetime`: a date is printed as its format in double angle brackets."""

    @classmethod
    def now(cls):
        """Returns an instance without a time."""
        return cls()

    def strftime(self, form: str) -> str:
        """Returns the format in double angle brackets."""
        return f"<<{form}>>"


def rendered(name: str, template: str, sent: dict) -> dict:
    """Renders a request with transformers; returns the text or the error message."""
    wanted = as_transformers_wants(name, template, sent) | VARIABLES.get(name, {})
    try:
        mend(chat_template_utils._compile_jinja_template(template).environment)
        texts, _ = chat_template_utils.render_jinja_template(
            [wanted.pop("messages")],
            chat_template=template,
            bos_token="<s>",
            eos_token="</s>",
            **wanted,
        )
        return {"text": texts[0]}
    except Exception as error:
        return {"error": str(error)}


def main():
    """Writes the file and prints its size."""
    parser = argparse.ArgumentParser(description="make the texts of chat templates for the tests")
    parser.add_argument("templates", type=Path, help="the folder of *.jinja")
    parser.add_argument("--all", type=Path, metavar="FILE", help="write all templates to this file")
    options = parser.parse_args()
    chat_template_utils.datetime = Formats
    templates = {}
    for path in sorted(options.templates.glob("*.jinja")):
        if options.all or path.stem in KEPT:
            text = path.read_text("utf-8")
            templates[path.stem] = {
                "template": text,
                "variables": VARIABLES.get(path.stem, {}),
                "rendered": {case: rendered(path.stem, text, sent) for case, sent in SENT.items()},
            }
    data = json.dumps({"sent": SENT, "templates": templates}, ensure_ascii=False)
    path = options.all or DATA
    path.write_bytes(lzma.compress(data.encode(), preset=9))
    print(f"{len(templates)} templates, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
