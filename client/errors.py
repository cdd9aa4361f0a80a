"""What can go wrong on the client's side, for people: each message is one plain sentence.

ClientError
├── NoAudio              nothing in the given paths looks like audio
├── AlreadyRunning       a stack runs in this home already
├── NotRunning           no stack runs in this home
├── PortInUse            the gateway cannot listen on the port asked for
├── StackFailed          a process of the stack did not start
├── GatewayUnreachable   no gateway answers at the address, or its answer broke off
├── NoSuchJob            no job, or more than one, fits what was given for one
├── InputInvalid         an argument or a file of the user's cannot be followed
├── SubmissionBusy       another command is sending the same submission
├── Interrupted          Ctrl-C while a job was followed; the job goes on
└── Problem              the gateway answered with an RFC 9457 problem

Exit codes of the command: 0 done; 1 another error; 2 wrong usage, or no audio found; 3 some
recordings did not succeed; 4 the job was cancelled or expired; 5 the API key is missing, refused
or may not do this; 6 the gateway does not answer; 7 no such job; 130 interrupted.
"""

from __future__ import annotations

from http import HTTPStatus

from common.errors import SoundmillError

SOME_FAILED = 3
JOB_ENDED_EARLY = 4


class ClientError(SoundmillError):
    """Base of the client's errors. ``exit_code`` is that of the ``soundmill`` command."""

    code = "client_error"
    exit_code = 1


class NoAudio(ClientError):
    code = "no_audio"
    exit_code = 2


class AlreadyRunning(ClientError):
    code = "already_running"


class NotRunning(ClientError):
    code = "not_running"


class PortInUse(ClientError):
    code = "port_in_use"


class StackFailed(ClientError):
    code = "stack_failed"


class GatewayUnreachable(ClientError):
    code = "gateway_unreachable"
    exit_code = 6


class NoSuchJob(ClientError):
    code = "no_such_job"
    exit_code = 7


class InputInvalid(ClientError):
    code = "input_invalid"
    exit_code = 2


class SubmissionBusy(ClientError):
    code = "submission_busy"


class Interrupted(ClientError):
    code = "interrupted"
    exit_code = 130


EXIT_CODE_OF: dict[int, int] = {
    HTTPStatus.UNAUTHORIZED: 5,
    HTTPStatus.FORBIDDEN: 5,
    HTTPStatus.NOT_FOUND: 7,
}


class Problem(ClientError):
    """``status`` is the HTTP status, ``code`` the stable code that the gateway gave."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.exit_code = EXIT_CODE_OF.get(status, 1)
