"""The server of the browser window: its routes, and what keeps other people's pages away from it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from treadle.algorithms.base import require
from treadle.errors import InvalidSetting, TreadleError
from treadle.window import messages
from treadle.window.runs import Runs
from treadle.window.session import Options, Session
from treadle.window.stage import LOGGER

DEFAULT_PORT = 7865
PORTS_TRIED = 20
GONE = 1008
"""The code of WebSockets by which a page learns that there is no such run."""
PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


class Sessions:
    """The runs that are being shown at the moment, by name."""

    def __init__(self, runs: Runs, options: Options):
        self._runs, self._options = runs, options
        self._sessions: dict[str, Session] = {}
        self._endings: dict[str, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def joined(self, name: str, folder: Path) -> AsyncIterator[tuple[Session, Any]]:
        """A client of the session of a run, which is made if there is none."""
        ending = self._endings.pop(name, None)
        if ending is not None:
            ending.cancel()
        if name not in self._sessions:
            self._sessions[name] = Session(folder, name, self._options)
        session = self._sessions[name]
        client = session.join()
        try:
            yield session, client
        finally:
            session.leave(client)
            if not session.is_watched and self._sessions.get(name) is session:
                self._endings[name] = asyncio.create_task(self._end_later(name))

    async def _end_later(self, name: str) -> None:
        await asyncio.sleep(self._options.linger_seconds)
        del self._endings[name]
        await self._sessions.pop(name).close()

    async def close(self) -> None:
        for ending in self._endings.values():
            ending.cancel()
        sessions, self._sessions, self._endings = list(self._sessions.values()), {}, {}
        for session in sessions:
            await session.close()


def make_app(runs: Runs, options: Options, is_own: Callable[[str], bool] = lambda host: True) -> Any:
    """The ASGI application. It answers to values of the header Host for which `is_own` is true."""
    sessions = Sessions(runs, options)
    pages = _page_files()

    async def page(request: Request) -> Response:
        return _file(pages.get(request.path_params.get("file", "index.html")))

    async def run_page(request: Request) -> Response:
        known = await asyncio.to_thread(runs.folder_of, request.path_params["name"])
        return _not_found() if known is None else await page(request)

    async def about(request: Request) -> Response:
        return _json(await asyncio.to_thread(runs.about, request.path_params.get("name")))

    async def listed(request: Request) -> Response:
        return _json(await asyncio.to_thread(runs.listed))

    async def socket_of(web_socket: WebSocket) -> None:
        name = web_socket.path_params["name"]
        folder = await asyncio.to_thread(runs.folder_of, name)
        with contextlib.suppress(WebSocketDisconnect, OSError):  # gone before it was answered
            await web_socket.accept()
            if folder is None:
                # Refused before, the page would not learn why.
                return await web_socket.close(GONE)
            async with sessions.joined(name, folder) as (session, client):
                await _talk(web_socket, session, client, 1 / options.frames_per_second)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await sessions.close()

    routes = [
        Route("/", page),
        Route("/run/{name}", run_page),
        Route("/page/{file:path}", page),
        Route("/api/about", about),
        Route("/api/about/{name}", about),
        Route("/api/runs", listed),
        WebSocketRoute("/ws/{name}", socket_of),
    ]
    return Guard(Starlette(routes=routes, lifespan=lifespan), is_own)


async def _talk(web_socket: WebSocket, session: Session, client: Any, frame_seconds: float) -> None:
    """Until the page goes away, or the server."""

    async def listen() -> None:
        while True:
            message = await web_socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            await session.receive(client, message.get("text"))

    async def speak() -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):  # in the middle of a message
            await client.send_all(web_socket.send_text, frame_seconds)

    speaking, listening = asyncio.create_task(speak()), asyncio.create_task(listen())
    try:
        await asyncio.wait([speaking, listening], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (speaking, listening):
            task.cancel()
        await asyncio.gather(speaking, listening, return_exceptions=True)


class Guard:
    """Answers only to the names that the server goes by, and only to pages of its own.

    A page of somebody else's that is open in the same browser could otherwise open a WebSocket here, or have its own
    name point to this machine (DNS rebinding). What is no browser sends no Origin.
    """

    def __init__(self, app: Any, is_own: Callable[[str], bool]):
        self._app, self._is_own = app, is_own

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        is_socket = scope["type"] == "websocket"
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if not self._may_pass(headers, is_plain=not is_socket and scope["method"] in ("GET", "HEAD")):
            if is_socket:
                await receive()
                return await send({"type": "websocket.close", "code": 1008})
            refused = PlainTextResponse("Only pages of this server are answered.\n", 403, HEADERS)
            return await refused(scope, receive, send)

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            await self._app(scope, receive, guarded)
        except Exception:
            LOGGER.exception("an error in answering %s", ascii(scope["path"])[:100])
            if is_socket:
                with contextlib.suppress(Exception):
                    await send({"type": "websocket.close", "code": 1011})

    def _may_pass(self, headers: dict[str, str], is_plain: bool) -> bool:
        host = headers.get("host", "").lower()
        if not self._is_own(host):
            return False
        origin = headers.get("origin")
        return is_plain or origin is None or origin.lower() in (f"http://{host}", f"https://{host}")


def _page_files() -> dict[str, Path]:
    """The files of the page, by their paths in its folder."""
    found = (path for path in PAGE.rglob("*") if path.suffix in TYPES and path.is_file() and not path.is_symlink())
    return {path.relative_to(PAGE).as_posix(): path for path in found}


def _file(path: Path | None) -> Response:
    try:
        return _not_found() if path is None else Response(path.read_bytes(), media_type=TYPES[path.suffix])
    except OSError:
        return _not_found()


def _json(content: dict[str, Any] | None) -> Response:
    return _not_found() if content is None else Response(messages.encode(content), media_type="application/json")


def _not_found() -> Response:
    return PlainTextResponse("There is nothing here.\n", 404)


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens. Without a port it is the default one, or one of those after it.

    Raises `TreadleError` for an address that cannot be used.
    """
    require(bool(host), "host", repr(host), "an address or a name of this machine, such as 127.0.0.1")
    ports = range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED) if port is None else [port]
    problem: OSError | None = None
    for candidate in ports:
        try:
            return _bound(host, candidate)
        except OSError as error:
            problem = error
        except UnicodeError:
            raise InvalidSetting(f"host (--host) was {host!a}, which is no machine's name.") from None
    assert problem is not None
    why = problem.strerror or problem
    if port is None:
        tried = f"none of the ports {ports[0]} to {ports[-1]} can be used on {host}: {why}"
        raise TreadleError(f"{tried}. Give another with --port, or another address with --host.")
    raise TreadleError(f"port {port} cannot be used on {host}: {why}. Give another with --port, or leave it out.")


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # where it lets a port be used again at once; elsewhere it lets two servers share one
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError:
        made.close()
        raise
    return made


def is_local(address: str) -> bool:
    """Whether what listens on this address, in numbers, is for this machine alone."""
    return ipaddress.ip_address(address).is_loopback


def own_hosts(address: str, port: int, host: str = "localhost") -> Callable[[str], bool]:
    """Which values of the header Host, in lower case, name a server on this address that was asked for as `host`.

    For this machine alone there are few. Other machines may come by any number, which nobody can make point elsewhere
    than it does, but of names only by this machine's own.
    """
    names = {"localhost", host.lower()}
    if is_local(address):
        names |= {"127.0.0.1", "[::1]", f"[{address}]" if ":" in address else address}
        known = {f"{name}:{port}" for name in names} | (names if port == 80 else set())
        return known.__contains__
    names |= {name.lower() for name in (socket.gethostname(), f"{socket.gethostname()}.local", socket.getfqdn())}

    def is_own(given: str) -> bool:
        name = re.sub(r":\d+$", "", given)
        return name in names or _is_number(name.removeprefix("[").removesuffix("]"))

    return is_own


def _is_number(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def make_server(runs: Runs, options: Options, address: str, port: int, host: str = "localhost") -> uvicorn.Server:
    """To be run with a socket that `listen` gave, of which this is the address in numbers."""
    config = uvicorn.Config(
        make_app(runs, options, own_hosts(address, port, host)),
        ws="websockets-sansio",
        ws_max_size=messages.LONGEST,
        ws_per_message_deflate=False,
        log_level="critical",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
        lifespan="on",
    )
    return uvicorn.Server(config)


def serve(
    runs: Runs,
    options: Options,
    host: str = "127.0.0.1",
    port: int | None = None,
    listening: Callable[[str, bool], None] = lambda url, is_local: None,
) -> None:
    """Serve until a signal comes; `listening` is called with the address once there is one, and with whether it is for
    this machine alone."""
    sock = listen(host, port)
    address, number = sock.getsockname()[:2]
    server = make_server(runs, options, address, number, host)
    shown = "localhost" if ipaddress.ip_address(address).is_unspecified else host
    listening(f"http://{f'[{shown}]' if ':' in shown else shown}:{number}/", is_local(address))
    server.run(sockets=[sock])
