"""The page of a registration in a real browser: it fits, it turns, it asks for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drrkit.report import registration_page, save_page
from drrkit.report.convergence import pose_landscape
from tests.support.browser import browser
from tests.support.commands import small_result, small_scene

pytestmark = [pytest.mark.slow, pytest.mark.io]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    volume, camera, xray, truth, _ = small_scene()
    result = {
        **small_result()[0],
        "accepted": False,
        "files": {
            "ct": {"path": "/a/long/path/" * 9, "bytes": 1, "sha256": "0123456789abcdef" * 4}
        },
    }
    around = pose_landscape(volume, camera, xray, truth[0], count=5, map_count=3)
    file = tmp_path_factory.mktemp("page") / "page.html"
    save_page(registration_page(volume, camera, xray, result, landscape=around), file)
    return Path(file).as_uri()


@pytest.fixture
def page(driver: Any, address: str) -> Any:
    driver.get(address)
    return driver


def test_the_page_loads_all_its_pictures_and_nothing_from_elsewhere(page: Any) -> None:
    images = "Array.from(document.images)"
    assert page.execute_script(f"return {images}.length") == 9
    assert page.execute_script(f"return {images}.every((one) => one.naturalWidth > 300)")
    fetched = page.execute_script(
        "return performance.getEntriesByType('resource').map((r) => r.name)"
    )
    assert all(name.startswith("data:") for name in fetched)
    assert page.get_log("browser") == []


@pytest.mark.parametrize("width", [390, 800, 1400])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        shot = page.find_element("css selector", ".shot").size
        assert shot["width"] / shot["height"] == pytest.approx(64 * 5.5 / (48 * 6), rel=0.02)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_ink_stands_out_from_the_ground_by_day_and_by_night(page: Any) -> None:
    found = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        found.append(
            page.execute_script(
                "const style = getComputedStyle(document.body);"
                "return [style.color, style.backgroundColor].map("
                "(colour) => colour.match(/\\d+/g).slice(0, 3).map(Number))"
            )
        )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    (ink, ground), (light, night) = ([sum(colour) / 3 for colour in pair] for pair in found)
    assert ground - ink > 180 and light - night > 180


def test_a_drag_turns_the_scene_and_keeps_it_on_its_page(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    scene = page.find_element("css selector", "svg.scene")
    page.execute_script("arguments[0].scrollIntoView({ block: 'center' })", scene)
    before = ends(page)
    ActionChains(page).drag_and_drop_by_offset(scene, 120, 80).perform()
    after = ends(page)
    assert after != before
    width, height = 560, 400
    assert all(0 <= x <= width and 0 <= y <= height for x, y in after)


def test_a_slider_leads_from_the_x_ray_to_the_rendered_ct(page: Any) -> None:
    shown = []
    for value in (0.0, 1.0):
        page.execute_script(
            "const slider = document.querySelector('.compare input');"
            "slider.value = arguments[0]; slider.dispatchEvent(new Event('input'))",
            value,
        )
        front = page.find_element("css selector", ".front")
        shown.append(float(front.value_of_css_property("opacity")))
    assert shown == [0.0, 1.0]


def ends(page: Any) -> list[tuple[float, float]]:
    """Where the scene's lines end."""
    found = page.execute_script(
        "return Array.from(document.querySelectorAll('svg.scene line')).flatMap((line) =>"
        "[['x1', 'y1'], ['x2', 'y2']].map((keys) => keys.map((k) => Number(line.getAttribute(k)))))"
    )
    return [(x, y) for x, y in found]
