"""The viewer in a real browser: a slider moves the picture, a registration runs to its end."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drrkit.cli.io import read_pose
from tests.support.browser import browser
from tests.support.commands import CAMERA, ROOT, write_data

pytestmark = [pytest.mark.slow, pytest.mark.io]

PATIENCE = 60  # seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("viewer"))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    files = [folder / "ct.nii.gz", folder / "xray.npy", "--init", folder / "start.json"]
    options = [*CAMERA, "--no-browser", "--output", folder / "found.json"]
    command = [sys.executable, "-m", "drrkit", "view", *map(str, (*files, *options))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split(" ")[0]
        finally:
            process.terminate()
            process.wait(PATIENCE)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(driver: Any, address: str) -> Any:
    """The page with its first picture drawn."""
    driver.get(address)
    wait(driver, lambda: driver.execute_script("return document.body.dataset.version") is not None)
    wait(driver, lambda: driver.find_element("id", "drawing").get_attribute("src"))
    return driver


def wait(driver: Any, condition: Callable[[], Any]) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, PATIENCE, poll_frequency=0.1).until(lambda _: condition())


def pixels(page: Any, canvas: str = "view") -> str:
    """A digest of what a canvas shows."""
    data = page.execute_script("return document.getElementById(arguments[0]).toDataURL()", canvas)
    return hashlib.sha256(data.encode()).hexdigest()


def greys(page: Any) -> list[int]:
    """The red of every 97th pixel of the view, which is its grey where nothing is marked."""
    return page.execute_script(
        "const view = document.getElementById('view');"
        "const copy = new OffscreenCanvas(view.width, view.height);"
        "const context = copy.getContext('2d', { willReadFrequently: true });"
        "context.drawImage(view, 0, 0);"
        "const { data } = context.getImageData(0, 0, view.width, view.height);"
        "return Array.from(data).filter((_, i) => i % (4 * 97) === 0)"
    )


def shades(page: Any) -> tuple[int, int]:
    found = greys(page)
    return min(found), max(found)


def share_of(page: Any, grey: int) -> float:
    found = greys(page)
    return found.count(grey) / len(found)


def set_slider(page: Any, element: str, value: float) -> None:
    """As a hand does: the value, and the event that comes with it."""
    page.execute_script(
        "const slider = document.getElementById(arguments[0]);"
        "slider.value = arguments[1]; slider.dispatchEvent(new Event('input'))",
        element,
        value,
    )


def press(page: Any, key: str) -> None:
    page.find_element("id", "view").send_keys(key)


def loss(page: Any) -> float:
    return float(page.find_element("id", "loss").text)


def axis(page: Any, number: int) -> float:
    return float(page.find_element("id", f"axis-{number}").get_attribute("value"))


def test_a_slider_a_key_and_the_mouse_move_the_picture(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    seen = [pixels(page)]
    set_slider(page, "axis-5", 60.0)
    wait(page, lambda: pixels(page) != seen[-1])
    seen.append(pixels(page))
    press(page, "a")
    wait(page, lambda: axis(page, 1) == pytest.approx(1.0, abs=0.1))
    wait(page, lambda: pixels(page) != seen[-1])
    view = page.find_element("id", "view")
    ActionChains(page).drag_and_drop_by_offset(view, 80, 0).perform()
    wait(page, lambda: axis(page, 3) > 5.0)
    assert abs(axis(page, 4)) < 1.0
    page.find_element("id", "reset").click()
    wait(page, lambda: axis(page, 3) == axis(page, 5) == 0.0)
    wait(page, lambda: pixels(page) == seen[0])


def test_the_overlays_differ_and_opacity_counts(page: Any) -> None:
    seen = {}
    for key in "123456":
        press(page, key)
        (mode,) = page.find_elements("css selector", "#modes [aria-checked=true]")
        seen[mode.text] = pixels(page)
    assert list(seen) == ["blend", "edges", "checkerboard", "difference", "X-ray", "DRR"]
    assert len(set(seen.values())) == 6
    press(page, "1")
    for opacity, same in ((0, "X-ray"), (1, "DRR")):
        set_slider(page, "opacity", opacity)
        assert pixels(page) == seen[same]
    set_slider(page, "opacity", 0.5)


def test_a_narrower_window_shows_more_contrast_until_a_double_click(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    press(page, "5")
    before = shades(page)
    set_slider(page, "width", 60)
    assert shades(page)[0] == 0 and shades(page)[1] == 255
    black, white = (share_of(page, grey) for grey in (0, 255))
    assert black > 0.05 and white > 0.05
    set_slider(page, "level", 0)
    assert share_of(page, 255) > white
    ActionChains(page).double_click(page.find_element("id", "view")).perform()
    assert (
        shades(page) == before and page.find_element("id", "width").get_attribute("value") == "256"
    )
    press(page, "1")


def test_the_edges_carry_the_patients_directions(page: Any) -> None:
    found = [page.find_element("id", side).text for side in ("left", "top", "right", "bottom")]
    assert found == ["R", "H", "L", "F"]


def test_slices_follow_their_sliders(page: Any) -> None:
    before = [pixels(page, f"slice-{plane}") for plane in ("axial", "coronal")]
    page.execute_script(
        "const slider = document.querySelector('#slice-axial').closest('label')"
        ".querySelector('input'); slider.value = 0.2; slider.dispatchEvent(new Event('input'))"
    )
    wait(page, lambda: pixels(page, "slice-axial") != before[0])
    assert pixels(page, "slice-coronal") == before[1]


def test_a_registration_runs_to_its_end_with_a_lower_loss_and_is_saved(
    page: Any, folder: Path
) -> None:
    before, picture, chart = loss(page), pixels(page), pixels(page, "chart")
    page.find_element("id", "register").click()
    message = page.find_element("id", "message")
    wait(page, lambda: "confidence" in message.text)
    wait(page, lambda: page.find_element("id", "register").is_enabled())
    assert loss(page) < 0.5 * before
    assert pixels(page) != picture and pixels(page, "chart") != chart
    page.find_element("id", "save").click()
    wait(page, lambda: "saved" in message.text)
    assert read_pose(folder / "found.json").camera is not None
    picture_of(page, "viewer.png")


def test_the_loss_is_chosen_and_a_registration_stopped(page: Any) -> None:
    from selenium.webdriver.support.ui import Select

    page.find_element("id", "reset").click()
    Select(page.find_element("id", "similarity")).select_by_value("mi")
    wait(page, lambda: loss(page) < 0)
    Select(page.find_element("id", "strategy")).select_by_value("global")
    page.find_element("id", "register").click()
    wait(page, lambda: page.find_element("id", "stop").is_enabled())
    page.find_element("id", "stop").click()
    message = page.find_element("id", "message")
    wait(page, lambda: "interrupted" in message.text or "confidence" in message.text)


def test_nothing_went_wrong_in_the_page(page: Any) -> None:
    assert page.get_log("browser") == []


def picture_of(page: Any, name: str) -> None:
    """Keeps a picture of the page where DRRKIT_SCREENSHOTS says, for people to look at."""
    target = os.environ.get("DRRKIT_SCREENSHOTS")
    if target:
        page.save_screenshot(str(Path(target) / name))
