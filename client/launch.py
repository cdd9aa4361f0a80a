"""Starts a program that dies with its parent: ``python launch.py PARENT_PID SIGNAL PROGRAM ...``.

Asks Linux to send SIGNAL when the parent goes (``prctl(PR_SET_PDEATHSIG)``, kept across ``exec``),
then becomes the program. Elsewhere it only becomes the program. A small script of its own, run with
``-I -S``, because code between ``fork`` and ``exec`` in the parent would have to be signal-safe.
"""

import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, signal_number, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)
        if os.getppid() != parent:  # it went before we asked
            sys.exit(1)
    os.execv(program[0], program)  # noqa: S606  a fixed program, no shell wanted


if __name__ == "__main__":
    main()
