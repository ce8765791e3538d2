"""An HTTP server between a client and a real S3 server that misbehaves as it is told to."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TARGET_HEADERS = ("content-length", "transfer-encoding", "connection")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    sent: int | None = None
    """How many bytes of the body arrive before the connection breaks; None: all of them."""
    hangs: bool = False
    """Whether the connection is silent instead of broken after those bytes."""


class BrokenConnection(Exception):
    """The client gets no answer."""


class HungConnection(Exception):
    """The client gets no answer, and its connection stays open."""


Send = Callable[[Request], Answer]
Fault = Callable[[Request, Send], Answer]
"""Gets a request and the way to the real server; gives the answer, or raises BrokenConnection."""


@dataclass
class FaultyS3:
    """The server between; it passes everything on until it is given faults."""

    behind: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    unread: float = 0
    """To how many of the next PUTs the server stops listening before the body."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set when connections that hang need do so no longer."""

    def stops_listening(self, method: str) -> bool:
        with self.lock:
            if method != "PUT" or not self.unread:
                return False
            self.unread -= 1
            return True

    def forward(self, request: Request) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(self.behind).netloc, timeout=30)
        try:
            connection.request(request.method, request.path, request.body, request.headers)
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, headers, answer.read())
        finally:
            connection.close()

    def answer(self, request: Request) -> Answer:
        with self.lock:
            self.seen.append(request)
        send: Send = self.forward
        for fault in self.faults:
            send = _with(fault, send)
        return send(request)

    def count(self, method: str) -> int:
        """How many requests of a method have come."""
        return sum(request.method == method for request in self.seen)


def _with(fault: Fault, send: Send) -> Send:
    return lambda request: fault(request, send)


def only(method: str, fault: Fault, times: int | None = None, path: str = "") -> Callable[[], Fault]:
    """Makes the fault for requests of one method whose path holds `path`: for the first `times`, or all of them."""

    def made() -> Fault:
        left, lock = [times], threading.Lock()

        def limited(request: Request, send: Send) -> Answer:
            if request.method != method or path not in request.path:
                return send(request)
            with lock:
                if left[0] == 0:
                    return send(request)
                left[0] = left[0] - 1 if left[0] else None
            return fault(request, send)

        return limited

    return made


def says(status: int, code: str, message: str = "") -> Fault:
    """An error as S3 puts it."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return lambda request, _: Answer(
        status, {"content-type": "application/xml"}, b"" if request.method == "HEAD" else body
    )


def loses_the_answer(request: Request, send: Send) -> Answer:
    """The real server does as it is asked, and the client never hears of it."""
    send(request)
    raise BrokenConnection


def cuts_off_after(count: int) -> Fault:
    """The answer's body breaks off."""
    return lambda request, send: replace(send(request), sent=count)


def never_answers(request: Request, send: Send) -> Answer:
    """The connection is silent from then on; the real server does not hear of the request."""
    raise HungConnection


def stalls_after(count: int) -> Fault:
    """The answer's body stops coming."""
    return lambda request, send: replace(send(request), sent=count, hangs=True)


def damages_the_body(request: Request, send: Send) -> Answer:
    """One bit flips on the way up."""
    return send(replace(request, body=bytes([request.body[0] ^ 1]) + request.body[1:]))


def damages_the_answer(request: Request, send: Send) -> Answer:
    """One bit flips on the way down."""
    answer = send(request)
    return replace(answer, body=bytes([answer.body[0] ^ 1]) + answer.body[1:])


def after(action: Callable[[], object]) -> Fault:
    """The request arrives only after something has happened."""

    def acted(request: Request, send: Send) -> Answer:
        action()
        return send(request)

    return acted


def with_header(name: str, value: str | None) -> Fault:
    """The answer has a header more, or less."""

    def changed(request: Request, send: Send) -> Answer:
        answer = send(request)
        headers = {key: held for key, held in answer.headers.items() if key != name}
        return replace(answer, headers=headers if value is None else {**headers, name: value})

    return changed


def goes_away(method: str, path: str) -> Fault:
    """No request is answered from the first one on of a method whose path holds `path`."""
    is_away = threading.Event()

    def fault(request: Request, send: Send) -> Answer:
        if request.method == method and path in request.path:
            is_away.set()
        if is_away.is_set():
            raise BrokenConnection
        return send(request)

    return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyS3

    def _do(self) -> None:
        if self.faulty.stops_listening(self.command):
            self._hang()
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        try:
            answer = self.faulty.answer(Request(self.command, self.path, headers, body))
        except BrokenConnection:
            self.close_connection = True
            return
        except HungConnection:
            self._hang()
            return
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name not in TARGET_HEADERS:
                self.send_header(name, value)
        size = answer.headers.get("content-length", "0") if self.command == "HEAD" else str(len(answer.body))
        self.send_header("content-length", size)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: answer.sent])
        self.close_connection = answer.sent is not None
        if answer.hangs:
            self._hang()

    def _hang(self) -> None:
        self.wfile.flush()
        self.faulty.over.wait()
        self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _do  # noqa: N815 (http.server's names)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def faulty_s3(behind: str, address: str = "127.0.0.1") -> Iterator[tuple[FaultyS3, str]]:
    """A server before the one `behind`, at an address of this machine; it and its URL."""
    faulty = FaultyS3(behind)
    server = ThreadingHTTPServer((address, 0), type("Handler", (_Handler,), {"faulty": faulty}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that goes away is no news
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield faulty, f"http://{address}:{server.server_port}"
    finally:
        faulty.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
