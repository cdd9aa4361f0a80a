"""Run a command that ends with its parent, as another user if asked.

usage: tether.py SIGNAL USER COMMAND...     USER "-" keeps the user

A test run that is killed leaves no server behind: on Linux the kernel sends SIGNAL to the command
when the process that started it dies. Elsewhere this only runs the command.
"""

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    signal_name, user, *command = sys.argv[1:]
    if user != "-":
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    if sys.platform == "linux":  # after the change of user, which would clear it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.Signals[signal_name]))
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
