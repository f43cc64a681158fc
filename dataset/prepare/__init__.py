"""Fetch, unpack and check data sets: `python -m dataset.prepare NAME`.

Every step leaves its result on disk, so that the same command resumes after a failure.
"""

from dataset.prepare.archives import ARCHIVES, PUBLISHED, Archive
from dataset.prepare.check import BadDataSet, verify
from dataset.prepare.command import main, prepare
from dataset.prepare.disk import require_space
from dataset.prepare.download import download
from dataset.prepare.unpack import unpack

__all__ = [
    "ARCHIVES",
    "PUBLISHED",
    "Archive",
    "BadDataSet",
    "download",
    "main",
    "prepare",
    "require_space",
    "unpack",
    "verify",
]
