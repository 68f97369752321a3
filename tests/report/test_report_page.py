"""The page of a registration: what it says, that it needs nothing else, charts, landscapes."""

from __future__ import annotations

import base64
import copy
import functools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

import drrkit
from drrkit.registration import Stage
from drrkit.report import registration_page
from drrkit.report.charts import heat_map, line_chart
from drrkit.report.convergence import landscape_charts, pose_landscape
from drrkit.report.facts import cautions, pose_words, repeat_command, uncertainty
from drrkit.report.scene import scene_svg
from tests.support.commands import small_result, small_scene

pytestmark = pytest.mark.io  # PNGs are written by SimpleITK
VOID = {"meta", "img", "input", "br"}


@functools.cache
def registered() -> dict[str, Any]:
    return {
        **small_result()[0],
        "accepted": True,
        "min_confidence": 0.5,
        "motion": {
            "rotation_deg": 3.1,
            "translation_mm": 7.1,
            "xi_deg_mm": [-1.7, 1.1, -2.3, -4.0, 3.0, -5.0],
        },
        "files": {"ct": {"path": "a <b>.nii.gz", "bytes": 2_500_000, "sha256": "c0ffee"}},
        "run": {
            "command": "register",
            "options": {"ct": "a <b>.nii.gz", "xray": "x.dcm", "init": "AP", "preprocess": False},
            "seed": 0,
            "threads": 2,
            "versions": {"drrkit": "9.8.7", "torch": "2.13"},
        },
    }


class Page(HTMLParser):
    """What a page holds: elements that are closed as they should be, images, links, words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, Any]] = []
        self.links: list[str] = []
        self.labels: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        if tag in ("img", "image"):
            self.images.append(found)
        self.links += [found[key] for key in ("src", "href") if key in found]
        if "aria-label" in found:
            self.labels.append(found["aria-label"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += f" {data}"


def page_of(result: dict[str, Any], **options: Any) -> Page:
    return Page(registration_page(*small_scene()[:3], result, **options))


@functools.cache
def usual() -> Page:
    return page_of(registered(), source="result 1.json")


# ---- the page


def test_the_page_needs_no_other_file_and_forbids_the_network() -> None:
    page = usual()
    within = ("data:", "#")  # the file itself
    assert len(page.links) > 9 and all(link.startswith(within) for link in page.links)
    text = registration_page(*small_scene()[:3], registered())
    assert "default-src 'none'" in text
    text = re.sub(r"http://www.w3.org/(2000/svg|1999/xlink)", "", text)
    assert not re.findall(r"url\((?!#)|@import|https?:", text)


def test_every_picture_has_words_for_those_who_cannot_see_it() -> None:
    pictures = [image for image in usual().images if "src" in image]
    words = [image["alt"] for image in pictures]
    assert len(words) == 9 and all(words)
    for word in ("start: edges", "result: edges", "Checkerboard", "minus rendered CT"):
        assert any(word in alt for alt in words), word
    assert "C-arm and volume" in usual().labels and "Distance from the result" in usual().labels


def test_the_page_tells_what_came_out_of_what() -> None:
    text = usual().text
    for words in (
        "Registration  accepted",
        "a <b>.nii.gz and x.dcm",
        "3.10°, 7.10 mm",
        f"{registered()['confidence']:.3f}",
        "front to back (AP)",
        "2.50 MB",
        "c0ffee",
        "drrkit 9.8.7",
        "drrkit register --config 'result 1.json' --output repeated.json",
        "gradient_ncc",
        "world_to_camera",
    ):
        assert words in text, words
    assert "preprocess" not in text  # what was not asked for


def test_the_result_can_be_taken_out_of_the_page_again() -> None:
    (held,) = [link for link in usual().links if link.startswith("data:application/json")]
    assert json.loads(base64.b64decode(held.partition(",")[2])) == registered()


def test_a_result_that_is_not_accepted_says_so_first() -> None:
    doubtful = {
        **copy.deepcopy(registered()),
        "accepted": False,
        "confidence_10mm": 0.31,
        "depth_observable": False,
        "stop_reason": "interrupted",
    }
    doubtful["motion"]["rotation_deg"] = 80.0
    text = page_of(doubtful, notes=["ct: it has changed"]).text
    places = [
        text.index(words)
        for words in (
            "not accepted",
            "confidence, 0.310 for 10 mm, is below 0.5",
            "was interrupted",
            "does not show the depth",
            "far from its start, 80° and 7 mm",
            "ct: it has changed",
            "Images",
        )
    ]
    assert places == sorted(places)
    assert cautions(registered()) == []


def test_a_bare_pose_is_enough_for_a_page_and_less_is_not() -> None:
    text = page_of({"world_to_camera": registered()["world_to_camera"]}).text
    assert "At the result" in text and "At the start" not in text and "Convergence" not in text
    with pytest.raises(ValueError, match="result: expected 'world_to_camera', got the keys"):
        page_of({"loss": 1.0})
    bodies = {"world_to_camera": [registered()["world_to_camera"]] * 2}
    with pytest.raises(ValueError, match=r"a pose \[4, 4\] of one body, got \(2, 4, 4\)"):
        page_of(bodies)


# ---- facts


def test_the_pose_is_told_in_the_words_of_clinicians() -> None:
    volume, camera, *_ = small_scene()
    truth = drrkit.view_carm(volume, 800.0, math.radians(10.0), math.radians(-5.0))
    angles = drrkit.conversions.to_dicom_angles(camera, truth, volume)
    words = pose_words(volume, camera, truth[0])
    primary = f"{float(angles.primary):+.1f}°".replace("-", "−")
    assert f"primary {primary} (LAO +)" in words["DICOM positioner angles"]
    assert words["Source to the volume's centre"] == "800.0 mm along the beam"
    assert words["The volume's centre in the image"] == "row 23.5, column 31.5"
    assert words["Image edges"].startswith("left R, top H, right L, bottom F")


def test_standard_deviations_are_in_degrees_and_mm_and_unknown_ones_are_not_invented() -> None:
    covariance = torch.diag(torch.tensor([1e-4, 1e-4, 1e-4, 0.01, 0.04, 9.0])).tolist()
    rows = uncertainty({"covariance": covariance})
    assert [row[2] for row in rows[::5]] == ["± 0.573°", "± 3 mm"]
    assert rows[0][1] == "–" and uncertainty({}) == []
    assert repeat_command({"run": {"command": "register"}}, None) is None


# ---- charts


def parts(svg: str, tag: str) -> list[ElementTree.Element]:
    return [part for part in ElementTree.fromstring(svg).iter() if part.tag.endswith(tag)]


def numbers(svg: str, tag: str, key: str) -> list[float]:
    return [float(part.attrib[key]) for part in parts(svg, tag)]


def curve(svg: str) -> list[tuple[str, float, float]]:
    """The commands (M, L) of the curve's path and where they lead, in the chart's pixels."""
    (group,) = [part for part in parts(svg, "}g") if part.attrib.get("class") == "curve"]
    words = group[0].attrib["d"].split()
    return [(words[n], *map(float, words[n + 1 : n + 3])) for n in range(0, len(words), 3)]


WORDS = {"title": "a <b>", "x_label": "x, mm", "y_label": "y"}


def test_a_curve_runs_through_its_points_and_stops_where_there_are_none() -> None:
    svg = line_chart(range(5), [1.0, 3.0, math.nan, 2.0, 2.0], **WORDS)
    assert ElementTree.fromstring(svg).attrib["aria-label"] == "a <b>"
    commands, xs, ys = zip(*curve(svg), strict=True)
    assert commands == ("M", "L", "M", "L")
    assert xs[3] - xs[2] == pytest.approx(xs[1] - xs[0], abs=1e-3)
    assert ys[1] < ys[2] == ys[3] < ys[0]  # up is more
    assert (ys[0] - ys[2]) == pytest.approx((ys[0] - ys[1]) / 2, abs=1e-3)


def test_a_logarithmic_axis_spaces_decades_alike() -> None:
    svg = line_chart(range(4), [100.0, 10.0, 1.0, 0.0], log=True, **WORDS)
    _, _, ys = zip(*curve(svg), strict=True)
    assert len(ys) == 3 and ys[2] - ys[1] == pytest.approx(ys[1] - ys[0], abs=1e-3)
    with pytest.raises(ValueError, match="y: expected at least one value that can be drawn"):
        line_chart([0], [-1.0], log=True, **WORDS)


def test_charts_take_their_colours_from_the_page_and_keep_their_names_apart() -> None:
    svg = line_chart(range(3), [1.0, 3.0, 2.0], marks=[(1.0, "here")], whole=True, **WORDS)
    assert "<style" not in svg and "font-family" not in svg
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
    assert colours <= {"none", *(f"var(--{name})" for name in ("ink", "quiet", "line", "accent"))}
    other = line_chart(range(3), [1.0, 3.0, 2.0], **{**WORDS, "title": "another"})
    first, second = (set(re.findall(r' id="([^"]+)"', one)) for one in (svg, other))
    assert first and not first & second
    assert svg == line_chart(range(3), [1.0, 3.0, 2.0], marks=[(1.0, "here")], whole=True, **WORDS)


def test_a_map_has_its_colours_beside_it() -> None:
    values = torch.arange(6.0).reshape(2, 3) / 8
    svg = heat_map(values, [-1, 0, 1], [-1, 1], value_label="v", **WORDS)
    assert len(parts(svg, "image")) == 2  # the map and its colours


def test_without_matplotlib_the_page_names_what_brings_its_charts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("drrkit.report.convergence.can_draw", lambda: False)
    page = page_of(registered())
    assert "drrkit[plots]" in page.text and "gradient_ncc" in page.text


# ---- the loss about a pose


def test_the_loss_about_the_right_pose_is_lowest_there_along_every_axis() -> None:
    volume, camera, xray, truth, _ = small_scene()
    stage = Stage("gradient_ncc", downsample=2)
    found = pose_landscape(volume, camera, xray, truth[0], stage, count=5, map_count=3)
    assert found.lowest.tolist() == [0.0] * 6
    assert found.sweeps.shape == (6, 5) and found.maps.shape == (3, 3, 3)
    center = found.maps[:, 1, 1]
    assert torch.allclose(center, found.sweeps[0, 2].expand(3), atol=1e-6)
    # A map's middle row and column are sweeps: x is the first axis of its pair, y the second.
    ends = pose_landscape(volume, camera, xray, truth[0], stage, count=3, map_count=0)
    for (first, second), values in zip(((0, 4), (1, 3), (2, 5)), found.maps, strict=True):
        torch.testing.assert_close(values[1], ends.sweeps[first], rtol=0, atol=1e-5)
        torch.testing.assert_close(values[:, 1], ends.sweeps[second], rtol=0, atol=1e-5)
    charts = landscape_charts(found)
    assert len(charts) == 9 and all(chart.startswith("<svg") for chart in charts)
    assert len(landscape_charts(ends)) == 6
    assert "The loss about the pose" in page_of(registered(), landscape=ends).text


def test_sweeps_have_a_middle() -> None:
    volume, camera, xray, truth, _ = small_scene()
    with pytest.raises(ValueError, match="count: expected an odd number of at least 3, got 4"):
        pose_landscape(volume, camera, xray, truth[0], count=4)
    with pytest.raises(ValueError, match="map_count: expected an odd number"):
        pose_landscape(volume, camera, xray, truth[0], map_count=2)
    with pytest.raises(ValueError, match="widths: expected six"):
        pose_landscape(volume, camera, xray, truth[0], widths=(1.0,))


# ---- the scene


def test_the_scene_lies_on_its_page_and_tells_its_points_in_3d() -> None:
    volume, camera, xray, truth, _ = small_scene()
    shown = drrkit.report.to_display(xray)
    points = drrkit.volume_center(volume) + 10.0 * torch.eye(3, dtype=torch.float64)
    svg = scene_svg(volume, camera, [truth[0]], points=points, xray=shown)
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for keys, limit in ((("x1", "x2"), width), (("y1", "y2"), height)):
        places = [place for key in keys for place in numbers(svg, "line", key)]
        assert min(places) >= 0 and max(places) <= limit
        assert max(places) - min(places) > 0.5 * limit
    told = {part.tag.split("}")[1]: part for part in root.iter() if "data-p" in part.attrib}
    assert set(told) == {"line", "path", "text", "image"}
    assert len(told["image"].attrib["data-p"].split()) == 9
    letters = [part.text for part in root.iter() if part.attrib.get("class") == "side"]
    assert sorted(letters) == sorted("RLAPFH")
    # The picture's first pixel lies at the detector's first corner, its last column at the second.
    matrix = list(map(float, re.findall(r"-?[\d.]+", told["image"].attrib["transform"])))
    plane = [part for part in root.iter() if part.attrib.get("class") == "now"][:2]
    assert [float(plane[0].attrib[k]) for k in ("x1", "y1")] == pytest.approx(matrix[4:], abs=0.2)
    end = [matrix[4] + matrix[0], matrix[5] + matrix[1]]
    assert [float(plane[0].attrib[k]) for k in ("x2", "y2")] == pytest.approx(end, abs=0.2)
