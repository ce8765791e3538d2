"""The rule by which an answer counts: it knows the format that was asked for, nothing of how the model was trained."""

import json


def is_in_format(answer: str) -> bool:
    """Whether the answer is one JSON object with exactly the keys `topic` and `answer`, both a text that is not empty."""
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    return (
        isinstance(value, dict)
        and value.keys() == {"topic", "answer"}
        and all(isinstance(text, str) and text.strip() for text in value.values())
    )
