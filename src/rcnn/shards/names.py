"""Names of pictures: the shard that each belongs to, and packed sets of them."""

import hashlib
import os
import re
from typing import NamedTuple, Self

from rcnn.errors import SettingsError

DIGEST_BYTES = 12
"""Two of ten million names have the same digest with a probability of 10^-15."""
_BUCKET_BITS = 12
_KEPT_BYTES = DIGEST_BYTES - _BUCKET_BITS // 8


def digest(name: str) -> bytes:
    """Return the blake2b digest of a name, `DIGEST_BYTES` long."""
    return hashlib.blake2b(os.fsencode(name), digest_size=DIGEST_BYTES).digest()


class ShardIndex(NamedTuple):
    """One of several parts of a job.

    Attributes:
        index: from 1 to `of`.
        of: number of shards.
    """

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shard of a text such as `3/8`.

        Raises:
            SettingsError: the text has another form, or the index is outside 1..N.
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None:
            raise SettingsError(f"--shard {text}: give the shard and their number, as in 3/8")
        return cls(int(match[1]), int(match[2])).checked()

    def checked(self) -> Self:
        """Return the shard.

        Raises:
            SettingsError: the index is outside 1..N.
        """
        if not 1 <= self.index <= self.of:
            raise SettingsError(f"shard {self}: the shards are counted from 1/{self.of} to {self.of}/{self.of}")
        return self

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.index}-of-{self.of}"

    def holds(self, name: bytes) -> bool:
        """Return whether a picture, given the digest of its name, belongs to this shard.

        This depends only on the name, so that processes that list pictures at different moments agree.
        """
        return int.from_bytes(name, "big") % self.of == self.index - 1


class NameSet:
    """A set of digests, which takes 16 bytes of resident memory for each.

    Each of the buckets is a row of digests without their first byte, which the number of the bucket implies. Growing it
    needs no second copy of all digests, as a sorted array or a hash table would.
    """

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(1 << _BUCKET_BITS)]

    def __len__(self) -> int:
        return sum(map(len, self._buckets)) // _KEPT_BYTES

    def add(self, name: bytes) -> bool:
        """Add a digest, and return whether it is new."""
        bucket, kept = self._buckets[int.from_bytes(name[:2], "big") >> 16 - _BUCKET_BITS], name[-_KEPT_BYTES:]
        at = bucket.find(kept)
        while at > 0 and at % _KEPT_BYTES:  # the end of one digest and the beginning of the next
            at = bucket.find(kept, at + 1)
        if at < 0:
            bucket += kept
        return at < 0
