"""A server on localhost with the faults of a bad network."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves `files` on localhost with the faults of a bad network."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.longest_answer: int | None = None  # the connection is cut after so many bytes
        self.knows_ranges = True
        self.tells_length = True
        self.refusal: int | None = None
        self.requests: list[tuple[str, int]] = []  # (file, first byte asked for)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.server.requests.append((name, start))
        content = self.server.files[name]
        if self.server.refusal:
            return self.send_error(self.server.refusal)
        if start >= len(content):
            return self.send_error(416)
        first = start if self.server.knows_ranges else 0
        self.send_response(206 if first else 200)
        if self.server.tells_length:
            self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first:][: self.server.longest_answer])
        return None

    def do_HEAD(self) -> None:
        content = self.server.files[self.path.lstrip("/")]
        self.send_response(self.server.refusal or 200)
        if self.server.tells_length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output free of requests."""
