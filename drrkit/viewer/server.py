"""The viewer as a local web page: its files, a websocket, and access control.

Only this machine can connect: the server listens on 127.0.0.1. Other web pages in the user's
browser cannot use it either: the address holds a secret, requests must name this host (which stops
foreign DNS names that point here), and websockets must come from the page itself. Nothing but the
page's own files is served, and no message names a file.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.utils import ClientDisconnected

from drrkit.viewer import protocol
from drrkit.viewer.session import Session

HOST = "127.0.0.1"
MOST_CONNECTIONS = 8
STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
GONE = (WebSocketDisconnect, ClientDisconnected)
_log = logging.getLogger(__name__)


def application(session: Session, token: str, port: int, title: str = "drrkit") -> ASGIApp:
    """The page of a session under /TOKEN/ as an ASGI application.

    Args:
        session: what is shown.
        token: the secret part of the address.
        port: the one that the page is reached by: requests must name it.
        title: of the page.
    """
    files = {path.name: path for path in STATIC.iterdir() if path.suffix in MEDIA_TYPES}
    connections: set[Connection] = set()

    async def page(request: Request) -> Response:
        if not _same(request.path_params["token"], token):
            return PlainTextResponse("unknown address", 404, HEADERS)
        path = files.get(request.path_params.get("name") or "index.html")
        if path is None:
            return PlainTextResponse("unknown address", 404, HEADERS)
        media = MEDIA_TYPES[path.suffix]
        return Response(path.read_bytes(), headers=HEADERS, media_type=media)

    async def live(websocket: WebSocket) -> None:
        if not _same(websocket.path_params["token"], token):
            await websocket.close(1008)
            return
        if len(connections) >= MOST_CONNECTIONS:
            await websocket.close(1013)
            return
        connection = Connection(websocket, session, title)
        connections.add(connection)
        try:
            await connection.run()
        finally:
            connections.discard(connection)

    routes = [
        WebSocketRoute("/{token}/live", live),
        Route("/{token}/", page),
        Route("/{token}/{name}", page),
    ]
    return OwnPageOnly(Starlette(routes=routes), port)


class OwnPageOnly:
    """Refuses requests that do not name this host or that come from another page.

    Args:
        app: what the others get to.
        port: of this host.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and not self._allowed(HTTPConnection(scope)):
            if scope["type"] == "http":
                await PlainTextResponse("not from here", 403, HEADERS)(scope, receive, send)
            else:
                await WebSocket(scope, receive, send).close(1008)
            return
        await self.app(scope, receive, send)

    def _allowed(self, connection: HTTPConnection) -> bool:
        hosts = connection.headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return False
        origins = connection.headers.getlist("origin")
        if not origins:
            # Browsers leave it out when a page is opened, never for a websocket.
            return connection.scope["type"] == "http"
        return origins == [f"http://{hosts[0].lower()}"]


class Connection:
    """One open page.

    Its messages only change what is to be shown; the newest state is sent whenever the page has
    drawn the last picture, so that nothing queues however fast the mouse moves.
    """

    def __init__(self, websocket: WebSocket, session: Session, title: str) -> None:
        self.websocket, self.session, self.title = websocket, session, title
        self.changed, self.drawn = asyncio.Event(), asyncio.Event()
        self.slices = dict.fromkeys(protocol.PLANES, 0.5)

    async def run(self) -> None:
        """Until the page is closed."""
        loop = asyncio.get_running_loop()
        await self.websocket.accept()
        ended = self.session.listen(lambda: _from_any_thread(loop, self.changed.set))
        work = [asyncio.create_task(part()) for part in (self._listen, self._show)]
        try:
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended()
            for task in work:
                task.cancel()
            # Not gather: cancelled itself, it raises its children's cancellation for its own.
            await asyncio.wait(work)
            for task in work:
                error = None if task.cancelled() else task.exception()
                if error is not None and not isinstance(error, GONE):
                    _log.error("the viewer's connection failed", exc_info=error)

    async def _listen(self) -> None:
        """Follow the page's messages; a wrong one is answered with an error."""
        while True:
            event = await self.websocket.receive()
            if event["type"] == "websocket.disconnect":
                return
            text = event.get("text")
            try:
                message = protocol.parse(text if text is not None else event.get("bytes"))
                await self._follow(message)
            except (ValueError, OSError) as error:
                await self.websocket.send_text(protocol.error(str(error)))

    async def _follow(self, message: protocol.Message) -> None:
        kind, values, session = message.type, message.values, self.session
        if kind == "drawn":
            self.drawn.set()
        elif kind == "slice":
            self.slices[values["plane"]] = values["share"]
            self.changed.set()
        elif kind == "save":
            await asyncio.to_thread(session.save)
        else:
            actions: dict[str, Callable[..., None]] = {
                "place": session.place,
                "nudge": session.nudge,
                "reset": session.reset,
                "choose": session.choose,
                "register": session.register,
                "stop": session.stop,
            }
            actions[kind](**values)

    async def _show(self) -> None:
        """Send what has changed, the newest first and only, with all pixels once it rests."""
        session = self.session
        await self.websocket.send_text(protocol.hello(session, self.title))
        await self.websocket.send_bytes(protocol.frame("xray", session.xray))
        shown = detailed = -1
        while True:
            while self.slices:
                plane, share = self.slices.popitem()
                picture = await asyncio.to_thread(session.slices.cut, plane, share)
                await self.websocket.send_bytes(protocol.frame(plane, picture))
            if shown != session.version:
                shown = await self._send_look(fine=False)
            rests = shown == session.version and not self.changed.is_set() and not session.running
            if rests and detailed != shown:
                detailed = await self._send_look(fine=True)
            await self.changed.wait()
            self.changed.clear()

    async def _send_look(self, fine: bool) -> int:
        """Send the scene and wait until the page has drawn it; its version."""
        look = await asyncio.to_thread(self.session.look, fine)
        self.drawn.clear()
        await self.websocket.send_text(protocol.state(self.session, look))
        picture = protocol.frame("drr", look.picture, version=look.pose_version, fine=look.fine)
        await self.websocket.send_bytes(picture)
        await self.drawn.wait()
        return look.version


def serve(
    session: Session,
    *,
    port: int = 0,
    title: str = "drrkit",
    browser: bool = True,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the page until Ctrl-C; a registration under way is stopped then.

    Args:
        session: what is shown.
        port: on 127.0.0.1; 0 for any that is free.
        title: of the page.
        browser: open the user's browser.
        announce: is given the page's address once it can be opened.

    Raises:
        OSError: the port is taken.
    """
    token = secrets.token_urlsafe(24)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            raise OSError(f"port {port} of {HOST}: {error.strerror or error}") from error
        listening.listen(64)
        own = listening.getsockname()[1]
        config = uvicorn.Config(
            application(session, token, own, title),
            log_level="warning",
            lifespan="off",
            ws="websockets-sansio",
            ws_max_size=protocol.LARGEST_MESSAGE * 4,
            timeout_graceful_shutdown=1,
            server_header=False,
        )
        address = f"http://{HOST}:{own}/{token}/"
        announce(address)
        if browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        try:
            with suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[listening])
        finally:
            session.stop()
            session.wait(5.0)


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def _from_any_thread(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop has ended, and the page with it
        loop.call_soon_threadsafe(function)
