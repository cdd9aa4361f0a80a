"""The Python client and the ``soundmill`` command.

``api`` talks to a gateway. ``home``, ``stack`` and ``control`` run all of Soundmill on one machine
(embedded mode). ``sources``, ``submit``, ``follow``, ``fetch`` and ``report`` are the steps of
``soundmill process``; ``cli`` joins them into a command. ``demo`` makes an archive to try it on.
"""
