"""What every Soundmill process shares. Imports no service.

Two sides that meet only in ``stage``: the pipeline side (``settings, logs, metrics, db, storage,
broker, messages, stage``) and the signal side (``audio, features, chunking, masks, datasets,
soundscapes, losses, checkpoint, training``), which needs torch or decoders and is imported by the
workers alone.
"""
