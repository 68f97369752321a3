"""The viewer's server: who may talk to it, what it serves, and what it makes of any message."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import drrkit
from drrkit.registration import SIMILARITIES
from drrkit.viewer import PLANES, Picture, Session, protocol
from drrkit.viewer.server import MOST_CONNECTIONS, STATIC, application
from tests.support.commands import ROOT, run

TOKEN, PORT = "a-secret-of-some-length", 8123
ORIGIN = f"http://127.0.0.1:{PORT}"
HERE = {"host": f"127.0.0.1:{PORT}", "origin": ORIGIN}  # TestClient's websockets need the host
LIVE = f"/{TOKEN}/live"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    volume = drrkit.phantoms.torso(12.0).to_mu()
    camera = drrkit.CArm(1020.0, (24, 32), 10.0)
    xray = drrkit.render(volume, camera, drrkit.view_ap(volume, 800.0))
    start = drrkit.view_ap(volume, 780.0)

    def save(pose: torch.Tensor, known: dict[str, Any]) -> str:
        (tmp_path / "pose.json").write_text(json.dumps(pose.tolist()))
        return "pose.json"

    return Session(volume, camera, xray, start, save=save)


@pytest.fixture
def client(session: Session) -> TestClient:
    return TestClient(application(session, TOKEN, PORT, "a title"), base_url=ORIGIN)


def connected(client: TestClient, path: str = LIVE, headers: dict[str, str] = HERE) -> Any:
    return client.websocket_connect(path, headers=dict(headers))


class Page:
    """A page's end of the websocket."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket

    def send(self, **message: Any) -> None:
        self.socket.send_text(json.dumps(message))

    def next(self) -> dict[str, Any]:
        """The next message; a frame as one of type frame."""
        event = self.socket.receive()
        if event.get("bytes") is None:
            return json.loads(event["text"])
        kind, fine, _, version, rows, cols, *_ = struct.unpack_from("<BBHIIIff", event["bytes"])
        pixels = event["bytes"][24:]
        assert len(pixels) == rows * cols
        found = {"type": "frame", "kind": protocol.KINDS[kind], "fine": bool(fine)}
        return found | {"version": version, "size": (rows, cols), "pixels": pixels}

    def until(self, **wanted: Any) -> dict[str, Any]:
        """The next message with these values; pictures on the way are drawn."""
        for _ in range(300):
            message = self.next()
            if message["type"] == "frame" and message["kind"] == "drr":
                self.send(type="drawn")
            if all(message.get(key) == value for key, value in wanted.items()):
                return message
        raise AssertionError(f"no message with {wanted}")


@pytest.fixture
def page(client: TestClient) -> Iterator[Page]:
    with connected(client) as socket:
        yield Page(socket)


# ---- who may talk to it


def test_the_page_and_its_files_are_served_under_the_secret_address(client: TestClient) -> None:
    page = client.get(f"/{TOKEN}/")
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    for name in ("viewer.js", "pictures.js", "chart.js", "style.css"):
        assert client.get(f"/{TOKEN}/{name}").text == (STATIC / name).read_text()
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["x-content-type-options"] == "nosniff"


def test_the_page_needs_no_other_server() -> None:
    for file in STATIC.iterdir():
        text = file.read_text()
        assert "http://" not in text and "https://" not in text and "//cdn" not in text, file


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/wrong/",
        "/wrong/viewer.js",
        f"/{TOKEN[:-1]}/",
        f"/{TOKEN}x/",
        f"/{TOKEN}/server.py",
        f"/{TOKEN}/../session.py",
        f"/{TOKEN}/..%2fsession.py",
        f"/{TOKEN}/%2e%2e/session.py",
        f"/{TOKEN}//etc/passwd",
        f"/{TOKEN}/%2fetc%2fpasswd",
        f"/{TOKEN}/static/viewer.js",
        "/%ff%fe/",
    ],
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_nothing_can_be_posted(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert client.request(method, f"/{TOKEN}/").status_code == 405


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": f"evil.example:{PORT}"},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:1"},
        {"host": f"127.0.0.1:{PORT}.evil.example"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": f"https://127.0.0.1:{PORT}"},
        {"origin": f"http://localhost:{PORT}"},  # not the host that was asked
        {"origin": "http://127.0.0.1"},
    ],
)
def test_requests_under_other_names_or_from_other_pages_are_refused(
    client: TestClient, headers: dict[str, str]
) -> None:
    assert client.get(f"/{TOKEN}/", headers=headers).status_code == 403
    with (
        pytest.raises(WebSocketDisconnect),
        connected(client, LIVE, {**HERE, **headers}),
    ):
        pass


def test_localhost_is_this_host_too(client: TestClient) -> None:
    headers = {"host": f"localhost:{PORT}", "origin": f"http://localhost:{PORT}"}
    assert client.get(f"/{TOKEN}/", headers=headers).status_code == 200
    with connected(client, LIVE, headers) as socket:
        assert Page(socket).next()["type"] == "hello"


@pytest.mark.parametrize(
    "path, headers",
    [
        (LIVE, {"host": HERE["host"]}),
        ("/wrong/live", HERE),
        ("/live", HERE),
        (f"{LIVE}/x", HERE),
    ],
)
def test_websockets_need_the_secret_and_an_origin(
    client: TestClient, path: str, headers: dict[str, str]
) -> None:
    with pytest.raises(WebSocketDisconnect), connected(client, path, headers):
        pass


def test_the_number_of_pages_is_limited(client: TestClient) -> None:
    open_pages = [connected(client) for _ in range(MOST_CONNECTIONS)]
    with client:  # all in one event loop
        for page in open_pages:
            page.__enter__()
        with (
            pytest.raises(WebSocketDisconnect),
            connected(client),
        ):
            pass
        open_pages.pop().__exit__(None, None, None)
        for _ in range(1200):  # as long as a minute, where something is wrong
            try:
                with connected(client) as socket:
                    assert Page(socket).next()["type"] == "hello"
                break
            except WebSocketDisconnect:
                time.sleep(0.05)
        else:
            raise AssertionError("a closed page left no room for another")
        for page in open_pages:
            page.__exit__(None, None, None)


# ---- what is said


def test_a_page_is_told_what_there_is_and_shown_everything(page: Page, session: Session) -> None:
    hello = page.next()
    assert hello["type"] == "hello" and hello["title"] == "a title" and hello["can_save"]
    assert hello["similarities"] == list(SIMILARITIES) and hello["planes"] == list(PLANES)
    xray = page.next()
    assert xray["kind"] == "xray" and xray["size"] == (hello["rows"], hello["cols"]) == (24, 32)
    assert xray["pixels"] == session.xray.pixels.numpy().tobytes()
    assert {page.next()["kind"] for _ in PLANES} == set(PLANES)
    state = page.until(type="state", fine=True)
    assert state["xi"] == pytest.approx([0.0] * 6, abs=1e-9)
    assert state["geometry"].startswith("The source is") and state["drawing"].startswith("<svg")
    drr = page.until(type="frame", kind="drr", fine=True)
    assert drr["pixels"] == session.look().picture.pixels.numpy().tobytes()


def test_a_moved_pose_comes_back_with_its_picture_in_degrees_and_mm(
    page: Page, session: Session
) -> None:
    before = page.until(type="frame", kind="drr", fine=True)
    page.send(type="place", xi=[9.0, 0, 0, 0, 0, 25])
    state = page.until(type="state", pose_version=1)
    assert state["xi"] == pytest.approx([9.0, 0, 0, 0, 0, 25], abs=1e-9)
    assert page.until(type="frame", kind="drr", version=1)["pixels"] != before["pixels"]
    page.send(type="nudge", xi=[0, 0, 0, 1.5, 0, 0])
    assert page.until(type="state", pose_version=2)["xi"][3] == pytest.approx(1.5, abs=0.2)
    page.send(type="reset")
    assert page.until(type="state", pose_version=3)["xi"] == pytest.approx([0.0] * 6, abs=1e-9)
    page.send(type="choose", similarity="mi")
    assert page.until(type="state", similarity="mi")["loss"] < 0


def test_pictures_never_queue_the_newest_pose_wins(page: Page, session: Session) -> None:
    page.until(type="frame", kind="drr", fine=True)
    page.send(type="nudge", xi=[0, 0, 0, 0.1, 0, 0])
    while page.next()["type"] != "frame":  # a picture that the page has not drawn yet
        pass
    for _ in range(100):
        page.send(type="nudge", xi=[0, 0, 0, 0.1, 0, 0])
    while session.look(fine=False).pose_version < 101:
        time.sleep(0.01)
    page.send(type="drawn")
    versions = [page.until(type="frame", kind="drr")["version"]]
    while versions[-1] < 101:
        versions.append(page.until(type="frame", kind="drr")["version"])
    assert len(versions) <= 2


def test_slices_come_on_demand(page: Page, session: Session) -> None:
    page.until(type="frame", kind="drr", fine=True)
    page.send(type="slice", plane="coronal", share=0.25)
    found = page.until(type="frame", kind="coronal")
    assert found["pixels"] == session.slices.cut("coronal", 0.25).pixels.numpy().tobytes()


def test_a_registration_is_shown_until_its_end_and_the_pose_saved(
    page: Page, tmp_path: Path
) -> None:
    first = page.until(type="state", fine=True)
    page.send(type="register", strategy="auto")
    assert page.until(type="state", running=True)["similarity"] == "gradient_ncc"
    page.send(type="nudge", xi=[1, 0, 0, 0, 0, 0])  # refused, if it is still running
    last = page.until(type="state", running=False, fine=True)
    assert last["loss"] < first["loss"] and "confidence" in last["message"]
    page.send(type="save")
    assert page.until(type="state", message="saved pose.json")
    saved = torch.tensor(json.loads((tmp_path / "pose.json").read_text()))
    torch.testing.assert_close(saved, torch.tensor(last["world_to_camera"]))


def test_a_registration_can_be_stopped_from_another_page(
    client: TestClient, session: Session
) -> None:
    with (
        client,
        connected(client) as one,
        connected(client) as other,
    ):
        Page(one).send(type="register", strategy="throughout")
        Page(other).until(type="state", running=True)
        Page(other).send(type="stop")
        state = Page(one).until(type="state", running=False, fine=True)
        while not state["message"]:  # from before the registration
            state = Page(one).until(type="state", running=False, fine=True)
    assert session.wait(60)


# ---- malformed messages


BAD = [
    "",
    "{",
    "null",
    "[]",
    "7",
    '"reset"',
    "{}",
    '{"type": null}',
    '{"type": ["reset"]}',
    '{"type": "reset", "type": "reset"}',
    '{"type": "reset", "more": 1}',
    '{"type": "unknown"}',
    '{"type": "__init__"}',
    '{"type": "place"}',
    '{"type": "place", "xi": null}',
    '{"type": "place", "xi": [0, 0, 0, 0, 0]}',
    '{"type": "place", "xi": [0, 0, 0, 0, 0, NaN]}',
    '{"type": "place", "xi": [0, 0, 0, 0, 0, Infinity]}',
    '{"type": "place", "xi": [0, 0, 0, 0, 0, 1e999]}',
    '{"type": "place", "xi": [0, 0, 0, 0, 0, true]}',
    '{"type": "place", "xi": [0, 0, 0, 0, 0, "1"]}',
    '{"type": "place", "xi": [361, 0, 0, 0, 0, 0]}',
    '{"type": "place", "xi": [0, 0, 0, 0, 0, 1e8]}',
    '{"type": "nudge", "xi": [0, 0, 0, 0, 0, ' + "9" * 400 + "]}",
    '{"type": "nudge", "xi": [[0], 0, 0, 0, 0, 0]}',
    '{"type": "choose", "similarity": "nnc"}',
    '{"type": "choose", "similarity": ["ncc"]}',
    '{"type": "register", "strategy": {}}',
    '{"type": "slice", "plane": "axial", "share": -0.1}',
    '{"type": "slice", "plane": "../axial", "share": 0.5}',
    '{"type": "slice", "plane": "axial", "share": 1e400}',
    '{"type": "save", "path": "/tmp/x.json"}',
    "[" * 2000,
    '{"a":' * 400,
    "9" * 2047,
    "x" * 5000,
    "\ud83d\ude00",
    "\x00",
]


def test_every_malformed_message_gets_an_answer_and_the_page_lives_on(
    page: Page, session: Session
) -> None:
    page.until(type="frame", kind="drr", fine=True)
    for text in BAD:
        page.socket.send_text(text)
        assert page.until(type="error")["text"], text
    page.socket.send_bytes(b"\x00\xff")
    assert "binary" in page.until(type="error")["text"]
    assert session.version == 0
    page.send(type="nudge", xi=[0, 0, 0, 5, 0, 0])
    assert page.until(type="state", pose_version=1)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
KEYS = st.sampled_from(["type", "xi", "similarity", "strategy", "plane", "share", "path"])
TYPES = st.sampled_from(
    ["place", "nudge", "reset", "choose", "register", "stop", "save", "slice", "drawn"]
)
NEARLY = st.builds(
    lambda kind, more: {**more, "type": kind}, TYPES | ANYTHING, st.dictionaries(KEYS, ANYTHING)
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.text(max_size=60) | st.binary(max_size=9) | ANYTHING.map(json.dumps) | NEARLY.map(json.dumps)
)
def test_any_message_is_understood_or_refused_with_a_reason(text: Any) -> None:
    try:
        message = protocol.parse(text)
    except ValueError as error:
        assert str(error)
        protocol.error(str(error)).encode()
        return
    assert json.loads(text)["type"] == message.type
    xi = message.values.get("xi")
    assert xi is None or bool(xi.isfinite().all())


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=st.lists(NEARLY.map(json.dumps) | st.text(max_size=30), max_size=6))
def test_no_sequence_of_messages_ends_the_connection(session: Session, messages: list[str]) -> None:
    client = TestClient(application(session, TOKEN, PORT), base_url=ORIGIN)
    with connected(client) as socket:
        page = Page(socket)
        for text in messages:
            socket.send_text(text)
        page.send(type="slice", plane="axial", share=2)  # the last answer
        while "share" not in page.until(type="error")["text"]:
            pass
    session.stop()
    assert session.wait(60)


def test_a_save_that_fails_is_an_answer_not_an_end(client: TestClient, session: Session) -> None:
    def broken(pose: torch.Tensor, known: dict[str, Any]) -> str:
        raise OSError("disk full")

    session._save = broken
    with connected(client) as socket:
        Page(socket).send(type="save")
        assert Page(socket).until(type="error")["text"] == "disk full"
        session._save = None
        Page(socket).send(type="save")
        assert "--output" in Page(socket).until(type="error")["text"]


def test_a_frame_says_what_it_is() -> None:
    picture = Picture(torch.arange(6, dtype=torch.uint8).reshape(2, 3), 2.0, 0.5)
    data = protocol.frame("coronal", picture, version=7, fine=False)
    assert struct.unpack("<BBHIIIff", data[:24]) == (3, 0, 0, 7, 2, 3, 2.0, 0.5)
    assert data[24:] == bytes(range(6))


# ---- the command


def test_the_command_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    (tmp_path / "ct.npy").write_bytes(b"")
    for arguments, message in (
        (["view", tmp_path / "ct.npy"], "XRAY is missing"),
        (["view", "--init", "AP"], "--init goes with a CT and an X-ray"),
        (["view", "--port", "70000"], "70000 is not in the range"),
        (["view", "-o", tmp_path / "pose.txt"], "ending in .json"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and message in result.output, result.output


def test_the_command_serves_files_to_this_machine_only_until_interrupted(tmp_path: Path) -> None:
    from tests.support.commands import write_data

    data = write_data(tmp_path)
    files = [data / "ct.nii.gz", data / "xray.npy", "--init", data / "start.json"]
    command = [sys.executable, "-m", "drrkit", "view", "--no-browser", *map(str, files)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            address = line.split(" ")[0]
            assert address.startswith("http://127.0.0.1:"), line + process.stderr.read()
            with urllib.request.urlopen(address, timeout=300) as answer:
                assert b"drrkit view" in answer.read()
            port = int(address.split(":")[2].split("/")[0])
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=300)
            with socket.socket() as elsewhere, pytest.raises(OSError):
                elsewhere.connect(("127.0.0.2", port))
        finally:
            process.send_signal(2)
            process.wait(300)
        assert process.returncode == 0, process.stderr.read()
