"""Results in the forms that people and other programs read. Pure: values in, text or bytes out.

``tables`` and ``parquet`` write rows of any table, ``labels`` writes events for audio programs,
``zips`` packs files. All of them stream: memory does not grow with what is written.
"""
