import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.errors import SettingsError
from rcnn.shards.names import DIGEST_BYTES, NameSet, ShardIndex, digest

digests = st.lists(st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES))
similar = st.lists(
    st.lists(st.sampled_from([b"\0", b"\1"]), min_size=DIGEST_BYTES, max_size=DIGEST_BYTES).map(b"".join)
)


@given(digests | similar)
def test_a_set_of_names_is_a_set(names: list[bytes]) -> None:
    found, expected = NameSet(), set[bytes]()
    for name in names:
        assert found.add(name) is (name not in expected)
        expected.add(name)
        assert not found.add(name)
    assert len(found) == len(expected)


def test_a_name_takes_less_than_twenty_bytes() -> None:
    names, number = NameSet(), 100_000
    tracemalloc.start()
    for name in range(number):
        names.add(digest(str(name)))
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(names) == number
    assert grown / number < 16


@given(st.text(), st.integers(1, 100))
def test_a_name_is_in_one_shard(name: str, of: int) -> None:
    try:
        key = digest(name)
    except UnicodeEncodeError:
        return  # no name of a file
    assert sum(ShardIndex(index, of).holds(key) for index in range(1, of + 1)) == 1


def test_shards_are_of_equal_size_and_stay_the_same() -> None:
    keys = [digest(f"{number}.jpg") for number in range(10_000)]
    counts = [sum(ShardIndex(index, 4).holds(key) for key in keys) for index in range(1, 5)]
    assert all(2_300 < count < 2_700 for count in counts)
    assert digest("a/1.jpg").hex() == "12604fd65a75f8e2518029b7"


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "a/b", "-1/4", "1/4/2", " 1/4", ""])
def test_a_shard_outside_its_range_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="shard"):
        ShardIndex.parse(text)
    assert ShardIndex.parse("4/4") == ShardIndex(4, 4)
