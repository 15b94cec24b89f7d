"""Work ahead in threads: what comes next is made while others use what came before."""

import os
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
        asked: is read in the caller's thread. What it raises is raised after the results of what came before.
        threads: 0: everything is made in the caller's thread when it is wanted.
    """
    if not threads:
        yield from map(make, asked)
        return
    waiting: deque[Future[Made]] = deque()
    more, failed = iter(asked), None
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            while failed is None:
                try:
                    waiting.append(pool.submit(make, next(more)))
                except BaseException as error:  # after the results of what was asked before
                    failed = error
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    if not isinstance(failed, StopIteration):
        raise failed


def spare_cores() -> int:
    """Cores of this process but one. Those of a machine are shared by the processes that torchrun started on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)
