"""Threads that work ahead change neither order nor errors, and are never far ahead."""

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.images.stream import ahead


@given(st.lists(st.integers(), max_size=20), st.integers(1, 4))
def test_it_is_the_same_as_map(asked: list[int], threads: int) -> None:
    assert list(ahead(lambda one: one + 1, asked, threads)) == [one + 1 for one in asked]


def test_results_are_in_the_order_of_the_arguments() -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        return number

    assert list(ahead(slow_at_first, range(8), 4)) == list(range(8))


def test_an_error_comes_where_its_result_would_have_come() -> None:
    def fail(one: int) -> int:
        if one == 2:
            raise ValueError(f"{one}")
        return one

    results, found = ahead(fail, range(5), 2), []
    with pytest.raises(ValueError, match="2"):
        found.extend(results)
    assert found == [0, 1]


def test_what_is_made_and_not_yet_wanted_is_bounded_and_ends_with_the_reader() -> None:
    asked: list[int] = []

    def numbers() -> Iterator[int]:
        for one in range(1000):
            asked.append(one)
            yield one

    results = ahead(lambda one: one, numbers(), 2)
    assert next(results) == 0
    assert len(asked) == 5
    results.close()
    assert len(asked) == 5
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()])
def test_nothing_is_lost_where_no_more_can_be_asked(error: BaseException) -> None:
    def numbers() -> Iterator[int]:
        yield from range(3)
        raise error

    results = ahead(lambda one: one, numbers(), 4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)):
        next(results)
