"""The Python client and the ``soundmill`` command.

``api`` talks to a gateway, from threads or asyncio. ``home``, ``stack`` and ``control`` run all of
Soundmill on one machine (embedded mode); ``place`` says which gateway is meant. ``sources`` and
``inputs`` find out what is to be sent, ``submit`` and ``multipart`` send it in parallel,
``journal`` remembers what was sent, ``watched`` sends what turns up in a folder. ``follow`` shows
how far a job is, ``fetch`` and ``report`` bring its results. ``process`` does all of it in a row.
``commands`` make the ``soundmill`` command of these, ``cli`` puts it together. ``demo`` makes an
archive to try it on.
"""
