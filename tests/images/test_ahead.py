"""Threads that work ahead keep the order and the errors, and work only a few results ahead."""

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.images.stream import ahead


@given(st.lists(st.integers(), max_size=20), st.integers(1, 4))
def test_results_equal_those_of_map(numbers: list[int], threads: int) -> None:
    assert list(ahead(lambda number: number + 1, numbers, threads)) == [number + 1 for number in numbers]


def test_results_are_in_the_order_of_the_arguments() -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        return number

    assert list(ahead(slow_at_first, range(8), 4)) == list(range(8))


def test_an_error_is_raised_in_place_of_its_result() -> None:
    def fail(one: int) -> int:
        if one == 2:
            raise ValueError(f"{one}")
        return one

    results, found = ahead(fail, range(5), 2), []
    with pytest.raises(ValueError, match="2"):
        found.extend(results)
    assert found == [0, 1]


def test_results_made_ahead_are_bounded_and_end_with_their_reader() -> None:
    taken: list[int] = []
    before = set(threading.enumerate())  # other tests may have left generators that were not closed

    def numbers() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = ahead(lambda number: number, numbers(), 2)
    assert next(results) == 0
    assert len(taken) == 5
    results.close()
    assert len(taken) == 5
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("ahead")]


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()])
def test_an_error_of_the_arguments_is_raised_after_all_results(error: BaseException) -> None:
    def numbers() -> Iterator[int]:
        yield from range(3)
        raise error

    results = ahead(lambda number: number, numbers(), 4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)):
        next(results)
