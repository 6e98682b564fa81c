"""Parses heavy bodies in a process of its own, where the parser blocks no other request.

    python -m muai_lab.server.parse_process

reads requests from stdin and writes the results to stdout, until stdin ends. The server starts it at the first heavy
body.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import pickle
import resource
import signal
import struct
import subprocess
import sys
import threading
from array import array
from collections.abc import Sequence
from http import HTTPStatus
from typing import IO

from muai_lab.server.http_error import HttpError, invalid, unavailable
from muai_lab.server.protocol import AnyRequest, ChatRequest, CompletionRequest, GenerationFields, parse

log = logging.getLogger(__name__)

PARSE_LIMIT_S = 20.0
MAX_RESIDENT_KIB = 300 * 1024  # a larger process ends: its freed memory may never return to the system
_KINDS: tuple[type[GenerationFields], ...] = (CompletionRequest, ChatRequest)
_ASKED = struct.Struct(">BQ")  # kind, bytes of the body that follows
_ANSWERED = struct.Struct(">Q")  # bytes of the pickle that follows


class ParseProcess:
    """The server's side of the process: started at the first use, one body at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()

    def parse(self, kind: type[AnyRequest], parts: Sequence[bytes]) -> AnyRequest:
        """Return the request whose body consists of these parts; blocks, so call it in a thread.

        Raises:
            HttpError: (400) As `muai_lab.server.protocol.parse`; (413) it takes too long; (503) the process failed.
        """
        with self._one_at_a_time:
            try:
                outcome = self._exchange(kind, parts)
            except OSError:  # the process has ended: it had grown too large, or was killed
                self.close()
                try:
                    outcome = self._exchange(kind, parts)
                except OSError as error:
                    self.close()
                    log.warning("the process that parses large requests failed: %s", error)
                    raise unavailable("a large request could not be parsed", "parser_failed") from error
        if isinstance(outcome, tuple):
            raise invalid(*outcome)
        assert isinstance(outcome, kind)
        return outcome

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # the last write never arrived
                        pipe.close()

    def _exchange(self, kind: type[AnyRequest], parts: Sequence[bytes]) -> object:
        process = self._process = self._process or _start()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def abort() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(PARSE_LIMIT_S, abort)
        timer.start()
        try:
            process.stdin.write(_ASKED.pack(_KINDS.index(kind), sum(map(len, parts))))
            for part in parts:
                process.stdin.write(part)
            process.stdin.flush()
            (size,) = _ANSWERED.unpack(_read(process.stdout, _ANSWERED.size))
            return pickle.loads(_read(process.stdout, size))
        except OSError:
            if late.is_set():
                self.close()
                message = f"parsing the body took longer than {PARSE_LIMIT_S:g} s"
                raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, code="body_too_large") from None
            raise
        finally:
            timer.cancel()


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "muai_lab.server.parse_process"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _read(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise ConnectionResetError("the process has ended")
    return data


def _outcome(kind: type[GenerationFields], body: bytes) -> object:
    """Return the request, or the arguments of `invalid` if it is refused."""
    try:
        request = parse(kind, body)
    except HttpError as error:
        return error.message, error.param, error.code
    if isinstance(request, CompletionRequest):
        # As arrays, ids reach the serving process without being created there one by one.
        packed = [array("i", prompt) if isinstance(prompt, list) else prompt for prompt in request.prompt]
        return request.model_copy(update={"prompt": packed})
    return request


def main() -> None:
    """Answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the server ends this one
    gc.disable()  # values from JSON have no cycles, and the search for them takes half of the time
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    while head := stdin.read(_ASKED.size):
        kind, size = _ASKED.unpack(head)
        answer = pickle.dumps(_outcome(_KINDS[kind], stdin.read(size)), protocol=pickle.HIGHEST_PROTOCOL)
        stdout.write(_ANSWERED.pack(len(answer)) + answer)
        stdout.flush()
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MAX_RESIDENT_KIB:
            return


if __name__ == "__main__":
    main()
