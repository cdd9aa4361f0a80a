"""What can go wrong on the client's side, for people: each message is one plain sentence.

ClientError
├── NoAudio              nothing in the given paths looks like audio
├── AlreadyRunning       a stack runs in this home already
├── NotRunning           no stack runs in this home
├── PortInUse            the gateway cannot listen on the port asked for
├── StackFailed          a process of the stack did not start
├── GatewayUnreachable   no gateway answers at the address
├── SendingBroke         the connection broke in the middle of an upload
└── Problem              the gateway answered with an RFC 9457 problem
"""

from __future__ import annotations

from common.errors import SoundmillError


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


class SendingBroke(ClientError):
    code = "sending_broke"


class Problem(ClientError):
    """``status`` is the HTTP status, ``code`` the stable code that the gateway gave."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
