"""An HTTP server between a client and a real API server that misbehaves as it is told to. The client is its admin."""

import json
import math
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import urllib3

from examples.cluster.control_plane import ControlPlane
from tests.storage.faulty_s3 import TARGET_HEADERS, BrokenConnection, Request


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    chunks: Iterable[bytes]
    """As they come: a watch goes on."""


Send = Callable[[Request], Answer]
Fault = Callable[[Request, Send], Answer]
"""Gets a request and the way to the API server; gives the answer, or raises BrokenConnection."""


@dataclass
class FaultyApi:
    """The server between; it passes everything on until it is given faults."""

    upstream: urllib3.PoolManager
    server: str
    kubeconfig: Path
    faults: list[Fault] = field(default_factory=list)
    on_request: Callable[[int, str, str], object] = lambda number, method, path: None
    """Called with each request's number, from 1, before it is passed on: the place to kill a client at its k-th."""
    seen: list[Request] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list)
    responses: list[urllib3.BaseHTTPResponse] = field(default_factory=list)
    silent: int = 0
    """The connections up to this number get nothing more."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: Request) -> Answer:
        with self.lock:
            self.seen.append(request)
            number = len(self.seen)
        self.on_request(number, request.method, request.path)
        send: Send = self._forward
        for fault in self.faults:
            send = _with(fault, send)
        return send(request)

    def count(self, method: str, pattern: str) -> int:
        """How many requests of a method have come whose path, with its query, has this pattern in it."""
        return sum(request.method == method and bool(re.search(pattern, request.path)) for request in self.seen)

    def fall_silent(self) -> None:
        """As when a middlebox forgets the connections that there are: they stay open, and nothing comes any more."""
        self.silent = len(self.connections)

    def _forward(self, request: Request) -> Answer:
        response = self.upstream.request(
            request.method,
            self.server + request.path,
            body=request.body or None,
            headers=request.headers,
            preload_content=False,
            retries=False,
            timeout=urllib3.Timeout(connect=5, read=90),
        )
        self.responses.append(response)
        headers = {name.lower(): value for name, value in response.headers.items()}
        chunks = _chunks(response)
        next(chunks)
        if self.over.is_set():
            raise BrokenConnection
        return Answer(response.status, headers, chunks)


def _chunks(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    with closing(response):
        yield b""  # begun, it closes the response also when nobody reads on
        yield from response.stream(65536, decode_content=False)


def _with(fault: Fault, send: Send) -> Send:
    return lambda request: fault(request, send)


def only(method: str, pattern: str, fault: Fault, times: float = math.inf) -> Fault:
    """The fault for the first requests of one method whose path, with its query, has this pattern in it."""
    left, lock = [times], threading.Lock()

    def limited(request: Request, send: Send) -> Answer:
        if request.method != method or not re.search(pattern, request.path):
            return send(request)
        with lock:
            left[0] -= 1
            hits = left[0] >= 0
        return fault(request, send) if hits else send(request)

    return limited


def says(status: int, retry_after: int | None = None) -> Fault:
    """A refusal as Kubernetes puts it."""
    headers = {"content-type": "application/json"} | ({"retry-after": str(retry_after)} if retry_after else {})
    return lambda request, send: Answer(status, headers, [_status(status)])


def tells(status: int) -> Fault:
    """A watch that begins well, and tells of its end in an event."""
    event = b'{"type":"ERROR","object":' + _status(status) + b"}\n"
    return lambda request, send: Answer(200, {"content-type": "application/json"}, [event])


def ends_at_once(request: Request, send: Send) -> Answer:
    """A watch of which nothing comes but its end."""
    return Answer(200, {"content-type": "application/json"}, [])


def loses_the_answer(request: Request, send: Send) -> Answer:
    """The API server does as it is asked, and the client never hears of it."""
    b"".join(send(request).chunks)
    raise BrokenConnection


def cuts_off_after(count: int) -> Fault:
    """The answer breaks off after so many bytes."""

    def cut(chunks: Iterable[bytes]) -> Iterator[bytes]:
        left = count
        for chunk in chunks:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                raise BrokenConnection

    def fault(request: Request, send: Send) -> Answer:
        answer = send(request)
        return replace(answer, chunks=cut(answer.chunks))

    return fault


def _status(code: int) -> bytes:
    told = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": f"a fault: {code}", "code": code}
    return json.dumps(told).encode()


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    faulty: FaultyApi

    def setup(self) -> None:
        super().setup()
        with self.faulty.lock:
            self.faulty.connections.append(self.request)
            self.number = len(self.faulty.connections)

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        try:
            self._hear()
            answer = self.faulty.answer(Request(self.command, self.path, headers, body))
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name not in TARGET_HEADERS:
                    self.send_header(name, value)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for chunk in filter(None, answer.chunks):
                self._hear()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self._hear()
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenConnection, OSError, urllib3.exceptions.HTTPError):
            self.close_connection = True

    do_GET = do_PUT = do_PATCH = do_POST = do_DELETE = _do  # noqa: N815 (http.server's names)

    def _hear(self) -> None:
        """Goes no further on a silent connection."""
        if self.number <= self.faulty.silent:
            self.faulty.over.wait()
            raise BrokenConnection

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def faulty_api(plane: ControlPlane, directory: Path) -> Iterator[FaultyApi]:
    """A server before a control plane's; its kubeconfig is put into a directory."""
    if not plane.server:
        pytest.skip("a person's own cluster is reached as its kubeconfig says, and by no detour")
    pki = plane.directory / "pki"
    upstream = urllib3.PoolManager(
        maxsize=20, ca_certs=str(pki / "ca.crt"), cert_file=str(pki / "admin.crt"), key_file=str(pki / "admin.key")
    )
    faulty = FaultyApi(upstream, plane.server, directory / "faulty.kubeconfig")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"faulty": faulty}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that goes away is no news
    faulty.kubeconfig.write_text(
        f"""{{apiVersion: v1, kind: Config, current-context: faulty,
 contexts: [{{name: faulty, context: {{cluster: faulty, user: nobody}}}}],
 clusters: [{{name: faulty, cluster: {{server: "http://127.0.0.1:{server.server_port}"}}}}],
 users: [{{name: nobody, user: {{}}}}]}}
"""
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield faulty
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        faulty.over.set()
        for connection in faulty.connections:
            with suppress(OSError):  # closed long since
                connection.shutdown(socket.SHUT_RDWR)
        for response in faulty.responses:
            with suppress(OSError, RuntimeError, ValueError):  # read to its end
                response.shutdown()
        upstream.clear()
