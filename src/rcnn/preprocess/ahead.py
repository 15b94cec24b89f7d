"""Work ahead in threads: what comes next is made while others use what came before."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Asked = TypeVar("Asked")
Made = TypeVar("Made")


def ahead(make: Callable[[Asked], Made], asked: Iterable[Asked], threads: int) -> Generator[Made, None, None]:
    """Yield `make` of everything asked, in order, made by threads that are at most two pieces each ahead.

    Args:
        make: is called in threads. What it raises is raised where its result would have come.
        asked: is read in the caller's thread.
        threads: at least 1.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            for one in asked:
                waiting.append(pool.submit(make, one))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
