"""A row's JSON: orjson reads it; where orjson cannot decide, or refuses, Python's own parser says why."""

import json
from collections import Counter
from typing import Any, NoReturn

import orjson

from job.dataset.rejects import BadRow


def parse_row(line: bytes, last: bool = False) -> dict[str, Any]:
    """The object in one line.

    Args:
        line: the line, with or without its end.
        last: the file ends in this very line, without a line break.

    Raises:
        BadRow: saying why it is none.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _explained(line, error, last) from error
    if type(value) is not dict:
        raise BadRow("not_an_object", "the row is not a JSON object", excerpt=line)
    # Neither parser minds a key that is given twice. Each key ends in `":`, which inside a string would read `\":`,
    # so one more of them than there are keys asks for a closer look.
    try:
        if line.count(b'":') - line.count(b'\\":') != _count_keys(value):
            _refuse_duplicates(line.decode())
    except RecursionError as error:  # orjson goes a little deeper than Python does
        raise BadRow("not_json", "nested too deeply", excerpt=line) from error
    return value


def _count_keys(value: dict[str, Any] | list[Any]) -> int:
    """The keys of all objects in a value."""
    count = len(value) if type(value) is dict else 0
    for item in value.values() if type(value) is dict else value:
        if type(item) is dict or type(item) is list:
            count += _count_keys(item)
    return count


def _refuse_duplicates(text: str) -> None:
    def refuse(pairs: list[tuple[str, Any]]) -> None:
        keys = Counter(key for key, _ in pairs)
        if keys.total() > len(keys):
            raise BadRow("duplicate_key", "a key is given twice in one object", excerpt=keys.most_common(1)[0][0])

    json.loads(text, object_pairs_hook=refuse)


def _refuse_constant(name: str) -> NoReturn:
    """For Python's parser, which takes NaN and Infinity for numbers."""
    raise BadRow("not_json", f"{name} is not JSON: write null", excerpt=name)


def _explained(line: bytes, error: orjson.JSONDecodeError, last: bool) -> BadRow:
    """Why orjson refuses a line, in plain words."""
    if b"\x00" in line:
        return BadRow("not_json", "the row holds NUL bytes", excerpt=line[: line.index(b"\x00")][-60:])
    try:
        text = line.decode()
    except UnicodeDecodeError as utf8_error:
        start = utf8_error.start
        return BadRow(
            "not_utf8", f"not UTF-8 at byte {start} of the row", excerpt=line[max(0, start - 30) : start + 30]
        )
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except BadRow as bad:
        return bad
    except RecursionError:
        return BadRow("not_json", "nested too deeply", excerpt=text)
    except json.JSONDecodeError as python_error:
        return _json_error(text, python_error, last)
    except ValueError:  # an integer of more than 4,300 digits
        return BadRow("not_json", "a number is too large", excerpt=text)
    what = error.msg
    if "infinity" in what:
        what = "a number is too large"
    elif "surrogate" in what:
        what = "an escape such as \\ud800 is half a character"
    return BadRow("not_json", what, excerpt=text[max(0, error.pos - 30) : error.pos + 30])


def _json_error(text: str, error: json.JSONDecodeError, last: bool) -> BadRow:
    if last and (error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")):
        return BadRow("cut_off", "the file ends in the middle of this row", excerpt=text[-60:])
    near = text[max(0, error.pos - 30) : error.pos + 30]
    return BadRow("not_json", f"not JSON at character {error.pos + 1}: {error.msg}", excerpt=near)
