"""Work that is done side by side, and whose results are wanted in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def in_order(do: Callable[[Argument], Result], arguments: Iterable[Argument], at_a_time: int) -> Iterator[Result]:
    """What `do` gives for each argument, in their order; the next one is taken only when the oldest is done.

    Args:
        do: called by many threads.
        arguments: taken by the thread that asks for results.
        at_a_time: how many calls go side by side; so many results wait at most, and one that is asked for.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(at_a_time, "in-order") as workers:
        try:
            for argument in arguments:
                waiting.append(workers.submit(do, argument))
                if len(waiting) > at_a_time:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            workers.shutdown(cancel_futures=True)
