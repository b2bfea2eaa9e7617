# SPDX-License-Identifier: Apache-2.0
"""A release page and a model hub on the loopback, for the real clients: a proxy that answers in their names.

A client that is told of the proxy asks it for a connection to ``github.com``; the proxy itself then speaks TLS with a
certificate that is made here and that the client is told to trust.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

HOSTS = ("github.com", "raw.githubusercontent.com")
COMMIT = "a" * 40


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Certificate and key for ``HOSTS``, by openssl."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = ",".join(f"DNS:{host}" for host in HOSTS)
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=stand-in"),
            *("-addext", f"subjectAltName={names}", "-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


class Server(ThreadingHTTPServer):
    """Answers from ``root/HOST/PATH``; notes what was asked for."""

    daemon_threads = True

    def __init__(self, root: Path, certificate: tuple[Path, Path] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.asked = root, list[str]()
        self.tls = None if certificate is None else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self.tls is not None and certificate is not None:
            self.tls.load_cert_chain(*certificate)

    @property
    def url(self) -> str:
        """Of the server itself."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Let a server answer while the block runs."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    host = "127.0.0.1"

    def do_CONNECT(self) -> None:  # noqa: N802 - the name that http.server calls
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        assert self.server.tls is not None
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")
        self.host, self.close_connection = self.path.partition(":")[0], False

    def do_GET(self) -> None:  # noqa: N802 - as above
        self._answer()

    def do_HEAD(self) -> None:  # noqa: N802 - as above
        self._answer()

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append(f"{self.host}{path}")
        if path.startswith("/api/models/"):
            repository, _, question = path.removeprefix("/api/models/OWNER/").partition("/")
            return self._send(200, json.dumps(_hub(self.server.root / "hub" / repository, question)).encode())
        file = self.server.root / self.host / path.lstrip("/")
        if "/resolve/" in path:
            repository, _, name = path.removeprefix("/OWNER/").partition("/resolve/")
            file = self.server.root / "hub" / repository / name.partition("/")[2]
        return self._send(200, file.read_bytes()) if file.is_file() else self._send(404, b"not found")

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _hub(folder: Path, question: str) -> Any:
    """What a model hub says of a repository: its versions, or its files."""
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    if question == "refs":
        tag = {"name": "0.1.0", "ref": "refs/tags/0.1.0", "targetCommit": COMMIT}
        return {"branches": [{**tag, "name": "main", "ref": "refs/heads/main"}], "tags": [tag], "converts": []}
    if question.startswith("tree/"):
        sizes = {name: (folder / name).stat().st_size for name in files}
        return [{"type": "file", "oid": COMMIT, "size": size, "path": name} for name, size in sizes.items()]
    siblings = [{"rfilename": name} for name in files]
    return {"id": f"OWNER/{folder.name}", "sha": COMMIT, "private": False, "siblings": siblings}
