"""Fetch, unpack and check data sets: `python -m dataset.prepare NAME`.

Every step leaves its result on disk, so that the same command resumes after a failure.
"""
