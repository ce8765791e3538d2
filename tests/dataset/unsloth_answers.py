"""Run as a script: what Unsloth's chat templates and its response masking make of chats. Reads and writes JSON files."""

import json
import sys
from pathlib import Path
from typing import Any

from unsloth.chat_templates import get_chat_template  # isort: skip
from transformers import AutoTokenizer
from unsloth_zoo.dataset_utils import train_on_responses_only


def answers(question: dict[str, Any]) -> list[dict[str, Any]]:
    """One answer for each chat of a question."""
    tokenizer = AutoTokenizer.from_pretrained(question["directory"])
    if question["template"]:
        tokenizer = get_chat_template(tokenizer, question["template"], map_eos_token=False)
    try:
        mask = train_on_responses_only(None, tokenizer=tokenizer, return_function=True)
    except ValueError:  # it asks for the turns' markers
        mask = None

    def render(chat: dict[str, Any], prompt: bool) -> str | None:
        try:
            text = tokenizer.apply_chat_template(
                chat["messages"], tools=chat.get("tools"), tokenize=False, add_generation_prompt=prompt
            )
        except Exception:  # whatever a template makes Python raise
            return None
        return str(text)

    made = []
    for chat in question["chats"]:
        text = render(chat, False)
        ids = tokenizer(text or "", add_special_tokens=False).input_ids
        labels = mask({"input_ids": [ids]})["labels"][0] if mask else None
        made.append({"text": text, "prompt": render(chat, True), "ids": ids, "labels": labels})
    return made


if __name__ == "__main__":
    questions = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([answers(question) for question in questions]))
