"""The commands of ``soundmill``: they read arguments, call what does the work, print, and exit.

``options`` and ``output`` are shared; each other module is a group of commands.
"""
