"""Tool calls and tools, in the shapes that real dumps have, to the one that chat templates take."""

from typing import Any

import orjson

from job.dataset.rejects import BadRow


def read_tool_call(call: Any, where: str) -> dict[str, Any]:
    """A tool call as templates want it: a function with a name and arguments that are an object.

    Args:
        call: OpenAI's shape, with the arguments as JSON text or as an object, or the function alone.
        where: its place in the row.

    Raises:
        BadRow: when it is none.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow("bad_tools", "a tool call must name its function", where, call)
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments) if arguments.strip() else {}
        except orjson.JSONDecodeError as error:
            raise BadRow("bad_tools", "the arguments of a tool call are not JSON", where, arguments) from error
    if not isinstance(arguments, dict):
        raise BadRow("bad_tools", "the arguments of a tool call must be an object", where, arguments)
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return made | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def read_function_call(text: str, where: str) -> dict[str, Any]:
    """ShareGPT's way to call a function: a turn of its own whose text is the call.

    Raises:
        BadRow: when it is none.
    """
    try:
        call = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRow("bad_tools", "a function_call must be JSON with a name and arguments", where, text) from error
    return read_tool_call(call, where)


def read_tools(tools: Any) -> list[Any]:
    """The functions on offer, also where a dump keeps them as text.

    Raises:
        BadRow: when they are no list of objects.
    """
    if isinstance(tools, str):
        try:
            tools = orjson.loads(tools)
        except orjson.JSONDecodeError as error:
            raise BadRow("bad_tools", "tools is not JSON", "tools", tools) from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("bad_tools", "tools must be a list of objects", "tools", tools)
    return tools
