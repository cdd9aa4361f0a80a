"""Backup and restore of a whole Soundmill: its database, and every object that it names.

A backup is a folder. The database is copied as rows, so it may be restored into the other kind of
database; objects are copied as they are, those that are there already are not copied again::

    manifest.json              what belongs to it, with counts and hashes; written last
    copy-TIME/TABLE.jsonl.gz   the rows of a table, one JSON array a line
    copy-TIME/objects.jsonl.gz every object: key, size, SHA-256, media type
    objects/KEY                the objects themselves
    index.db                   what is copied so far; may be lost

Whoever may read it may read every recording and the secrets of webhooks. API keys are hashes.
The order is what keeps it right: first the database, in one snapshot, then the objects, which were
stored before they were recorded and never change. ``make`` says what happens to those that are
removed meanwhile.
"""
