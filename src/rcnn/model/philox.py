"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a counter-based generator.

The n-th number of a seed is a function of n and the seed alone, in integer arithmetic, so that every device computes
the same numbers. Words of 32 bits are held in int64.
"""

import torch
from torch import Tensor

ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Encrypt counters of four words 0..2^32 - 1, int64, in shapes that broadcast; the result has the same form.

    Args:
        counter: the least significant word first, as in Random123.
        key: two words.
    """
    c0, c1, c2, c3 = counter
    rounds = torch.arange(ROUNDS, device=key[0].device)
    keys = [((word[..., None] + rounds * weyl) & _WORD).unbind(-1) for word, weyl in zip(key, _WEYL, strict=True)]
    for k0, k1 in zip(*keys, strict=True):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # Only the lower halves of c1 and c3 matter, so the products are not masked until the end.
        c0, c1 = ((second >> 32) ^ c1 ^ k0) & _WORD, second
        c2, c3 = ((first >> 32) ^ c3 ^ k1) & _WORD, first
    return c0, c1 & _WORD, c2, c3 & _WORD


def uniform(seeds: Tensor, count: int) -> Tensor:
    """(B,) int64 seeds -> (B, count) float64 in [0, 1), multiples of 2^-53.

    Column n depends neither on `count` nor on the other seeds.
    """
    key = (seeds[:, None] & _WORD, (seeds[:, None] >> 32) & _WORD)  # (B, 1)
    index = torch.arange((count + 1) // 2, device=seeds.device)[None]
    zero = torch.zeros_like(index)
    words = philox((index, zero, zero, zero), key)  # (B, n) each
    pairs = [(words[i] << 21) | (words[i + 1] >> 11) for i in (0, 2)]  # 32 + 21 bits
    return torch.stack(pairs, dim=2).flatten(1)[:, :count].double() * 2.0**-53
