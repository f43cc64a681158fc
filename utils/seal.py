"""Checksums of `torch.save` files: the SHA-256 is stored as the zip archive's comment.

So it stays with the file, and any torch can still read the file.
"""

import hashlib
import os
import struct
from io import BufferedRandom
from pathlib import Path

# A zip archive ends with a record of 22 bytes; the last two are the comment's length.
_END_RECORD = b"PK\x05\x06"
_END_RECORD_BYTES = 22
_SEAL = b"PAnS SHA-256 "
_SEAL_BYTES = len(_SEAL) + hashlib.sha256().digest_size


def seal(file: BufferedRandom) -> None:
    """Store the archive's SHA-256 as its comment."""
    end = file.seek(-_END_RECORD_BYTES, os.SEEK_END)
    if file.read(len(_END_RECORD)) != _END_RECORD:
        raise RuntimeError("torch.save has not written a zip archive without a comment")
    file.seek(end + _END_RECORD_BYTES - 2)
    file.write(struct.pack("<H", _SEAL_BYTES))
    file.seek(0)
    file.write(_SEAL + hashlib.file_digest(file, "sha256").digest())


def seal_is_broken(path: Path) -> bool:
    """Whether the file's checksum is wrong; files of other programs have none."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        tail_start = file.seek(max(0, size - 2 * _SEAL_BYTES))
        before, seal, digest = file.read().rpartition(_SEAL)
        if not seal:
            return False
        unread = tail_start + len(before)
        file.seek(0)
        found = hashlib.sha256()
        while block := file.read(min(unread, 1 << 20)):
            found.update(block)
            unread -= len(block)
    return found.digest() != digest
