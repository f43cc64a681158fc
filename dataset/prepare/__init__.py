"""Fetch, unpack and check data sets: `python -m dataset.prepare NAME`.

Every step leaves its result on disk, so that the same command resumes after a failure.
"""

from dataset.prepare.archives import ARCHIVES, PUBLISHED, Archive
from dataset.prepare.check import BadDataSet, verify
from dataset.prepare.command import main, prepare
from dataset.prepare.disk import CannotWrite, require_space
from dataset.prepare.download import DownloadFailed, download
from dataset.prepare.unpack import BadArchive, unpack

__all__ = [
    "ARCHIVES",
    "PUBLISHED",
    "Archive",
    "BadArchive",
    "BadDataSet",
    "CannotWrite",
    "DownloadFailed",
    "download",
    "main",
    "prepare",
    "require_space",
    "unpack",
    "verify",
]
