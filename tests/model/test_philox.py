"""The generator of keys against Random123's published vectors, and against a reference in Python's integers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcnn.model.philox import philox, uniform

WORD = st.integers(0, 2**32 - 1)
SEED = st.integers(0, 2**63 - 1)


def reference(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    for _ in range(10):
        low, high = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = (
            (high >> 32) ^ counter[1] ^ key[0],
            high % 2**32,
            (low >> 32) ^ counter[3] ^ key[1],
            low % 2**32,
        )
        key = ((key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32)
    return counter


def ours(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    return tuple(int(word) for word in philox((c0, c1, c2, c3), (torch.tensor([key[0]]), torch.tensor([key[1]]))))


VECTORS = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
"""Counter, key and answer of `philox4x32 10` in Random123's kat_vectors."""


@pytest.mark.parametrize("vector", VECTORS)
def test_it_gives_the_published_answers(vector: tuple[str, ...]) -> None:
    counter, key, answer = (tuple(int(word, 16) for word in part.split()) for part in vector)
    assert ours(counter, key) == reference(counter, key) == answer


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_it_equals_a_reference_in_python_integers(counter: tuple[int, ...], key: tuple[int, ...]) -> None:
    assert ours(counter, key) == reference(counter, key)


@given(SEED, st.integers(0, 9))
def test_a_number_is_53_bits_of_its_seed_and_place(seed: int, count: int) -> None:
    expected = []
    for place in range(count):
        words = reference((place // 2, 0, 0, 0), (seed % 2**32, seed >> 32))[place % 2 * 2 :]
        expected.append((words[0] * 2**32 + words[1] >> 11) / 2**53)
    (found,) = uniform(torch.tensor([seed]), count).tolist()
    assert found == expected


@given(st.lists(SEED, min_size=1, max_size=4), st.integers(0, 20))
def test_a_row_depends_on_its_seed_alone(seeds: list[int], count: int) -> None:
    together = uniform(torch.tensor(seeds), count)
    for row, seed in zip(together, seeds, strict=True):
        assert torch.equal(uniform(torch.tensor([seed]), 25)[0, :count], row)


def test_no_seeds_give_no_rows() -> None:
    assert uniform(torch.zeros(0, dtype=torch.int64), 5).shape == (0, 5)


def test_numbers_are_uniform_and_neighbours_unlike() -> None:
    numbers = uniform(torch.arange(20), 5000)
    tenths = (numbers * 10).long().flatten().bincount(minlength=10)
    assert ((tenths - 10000).abs() < 500).all()  # five standard deviations
    assert numbers.unique().numel() == numbers.numel()
    for pair in ((numbers[:-1], numbers[1:]), (numbers[:, :-1], numbers[:, 1:])):
        correlation = torch.corrcoef(torch.stack([part.flatten() for part in pair]))[0, 1]
        assert correlation.abs() < 0.02
