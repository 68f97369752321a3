"""Real X-rays made ready: polarity, logarithm, shutters, vignette, scale, crop and camera."""

from __future__ import annotations

import math

import pytest
import torch

import drrkit
from drrkit import CArm, Volume, phantoms
from drrkit.geometry import project_points
from drrkit.xray import bone_is_bright, preprocess_xray, simulate_xray
from drrkit.xray.prepare import convex_depth, opened

SIZE = 128
CAMERA = CArm(1020.0, (SIZE, SIZE), 2.2, principal_point=(60.0, 70.0))
ROW, COL = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
SHUTTERS = {
    "rectangle": (ROW > 14) & (ROW < 110) & (COL > 20) & (COL < 100),
    "circle": (ROW - 60) ** 2 + (COL - 66) ** 2 < 52**2,
    "tilted": ((ROW - 64) * 0.94 + (COL - 64) * 0.34).abs() < 45,
}


@pytest.fixture(scope="module")
def subjects() -> list[Volume]:
    kinds = (("pelvis", 0), ("spine", 0), ("spine", 1), ("skull", 0), ("skull", 1))
    return [phantoms.torso(6.0), *(phantoms.random_anatomy(k, s, shape=48) for k, s in kinds)]


@pytest.fixture(scope="module")
def lines(subjects: list[Volume]) -> list[torch.Tensor]:
    """X-rays on the scale of line integrals, bone bright."""
    views = (drrkit.view_ap, drrkit.view_left_lateral)
    return [
        simulate_xray(ct, CAMERA, view(ct, 800.0), scatter=0.1, supersample=1)
        for ct in subjects
        for view in views
    ]


def overlap(mask: torch.Tensor, truth: torch.Tensor) -> float:
    mask = mask[0, 0] > 0
    return float((mask & truth).sum() / (mask | truth).sum())


def test_polarity_is_told_from_the_picture(lines: list[torch.Tensor]) -> None:
    for line in lines:
        assert bone_is_bright(line) and bone_is_bright(1000.0 + 30.0 * line)
        assert not bone_is_bright(-line) and not bone_is_bright(torch.exp(-line))


@pytest.mark.parametrize("shape", SHUTTERS)
def test_shutters_hide_neither_the_polarity_nor_themselves(
    lines: list[torch.Tensor], shape: str
) -> None:
    is_open = SHUTTERS[shape]
    for line in lines:
        intensity = torch.where(is_open, torch.exp(-line), 0.0)
        bright = torch.where(is_open, line, line.max() + 1.0)
        for pixels, kind in ((intensity, "intensity"), (bright, "line")):
            found = preprocess_xray(pixels, CAMERA, border=0, crop=False)
            assert found.kind == kind
            assert overlap(found.mask, is_open) > 0.97
            narrower = preprocess_xray(pixels, CAMERA, border=3, crop=False).mask[0, 0] > 0
            assert not (narrower & ~is_open).any()


@pytest.mark.parametrize("behind", [0.0, 0.5, 1.5])
def test_what_a_known_mask_hides_counts_for_nothing(
    lines: list[torch.Tensor], behind: float
) -> None:
    """Some machines fill what the shutters hide with white, or with any number."""
    is_open = SHUTTERS["circle"]
    for line in lines[2:]:
        intensity = torch.where(is_open, 1000.0 * torch.exp(-line), 1000.0 * behind)
        for pixels, kind in ((intensity, "intensity"), (-intensity, "line")):
            found = preprocess_xray(
                pixels, CAMERA, mask=is_open.float(), vignette=False, border=0, crop=False
            )
            assert found.kind == kind
            assert not (found.mask[0, 0] > 0)[~is_open].any()
            assert overlap(found.mask, is_open) > 0.97
            if kind == "intensity":
                brightest = float(torch.quantile(intensity[0, 0][is_open], 0.995))
                assert found.i0 == pytest.approx(brightest, rel=0.02)


@pytest.mark.parametrize("leak", [0.0008, 0.004, 0.015])
def test_shutters_that_leak_are_found_too(lines: list[torch.Tensor], leak: float) -> None:
    generator = torch.Generator().manual_seed(0)
    line, is_open = lines[2], SHUTTERS["rectangle"]  # a pelvis
    noise = torch.rand(SIZE, SIZE, generator=generator)
    seen = torch.exp(-line) + 0.03  # of the open field's brightest pixel, at least a third
    intensity = torch.where(is_open, seen, leak * seen[0, 0][is_open].max() * noise)
    found = preprocess_xray(intensity, CAMERA, kind="intensity", border=0, crop=False)
    assert overlap(found.mask, is_open) > 0.95


def test_without_shutters_everything_is_open(lines: list[torch.Tensor]) -> None:
    for line in lines:
        for pixels, kind in ((torch.exp(-line), "intensity"), (line, "line")):
            found = preprocess_xray(pixels, CAMERA, kind=kind)
            assert found.mask.all() and found.image.shape == line.shape
            assert found.camera.size == CAMERA.size


def test_intensities_become_line_integrals(lines: list[torch.Tensor]) -> None:
    line = lines[-2]  # a skull with air around
    counts = (30000.0 * torch.exp(-line)).round().to(torch.int32)
    found = preprocess_xray(counts, CAMERA, kind="intensity", vignette=False, percentiles=None)
    assert found.i0 == pytest.approx(30000.0, rel=0.03)
    inside = (line < 6.0) & (line > 0.2)
    difference = (found.image - line)[inside]
    assert float(difference.abs().max()) < 0.05
    settings = {"kind": "intensity", "vignette": False, "percentiles": None}
    known = preprocess_xray(counts[0, 0], CAMERA, i0=30000.0, **settings)
    assert known.i0 == 30000.0
    assert float((known.image - line)[inside].abs().max()) < 0.02


def test_inverted_and_line_keep_their_scale(lines: list[torch.Tensor]) -> None:
    line = lines[0]
    kept = preprocess_xray(line, CAMERA, kind="line", percentiles=None)
    assert torch.equal(kept.image, line) and kept.i0 is None
    turned = preprocess_xray(5.0 - line, CAMERA, kind="inverted", percentiles=None)
    torch.testing.assert_close(turned.image, line - 5.0)


def test_a_vignette_is_taken_out_where_air_shows_it(lines: list[torch.Tensor]) -> None:
    line = lines[-2]
    square = ((ROW - 63.5) ** 2 + (COL - 63.5) ** 2) / 64.0**2
    falloff = torch.exp(-0.18 * square - 0.03 * square**2)
    pixels = torch.exp(-line) * falloff
    settings = {"kind": "intensity", "percentiles": None, "shutter_level": None}
    kept = preprocess_xray(pixels, CAMERA, vignette=False, **settings)
    cleaned = preprocess_xray(pixels, CAMERA, **settings)
    air = line < 0.05
    assert float(kept.image[air].std()) > 0.06
    assert float(cleaned.image[air].std()) < 0.02
    flat = preprocess_xray(pixels, CAMERA, flat_field=7.0 * falloff, **settings)
    assert float(flat.image[air].std()) < 0.02


def test_a_field_full_of_patient_is_not_taken_for_a_vignette() -> None:
    ct = phantoms.torso(6.0)
    close = CArm(1020.0, (SIZE, SIZE), 1.2)
    intensity = simulate_xray(ct, close, drrkit.view_ap(ct, 800.0), output="intensity")
    settings = {"kind": "intensity", "percentiles": None}
    kept = preprocess_xray(intensity, close, vignette=False, **settings)
    assert torch.equal(preprocess_xray(intensity, close, **settings).image, kept.image)


def test_scaling_is_by_percentiles_of_the_open_field(lines: list[torch.Tensor]) -> None:
    bright = torch.where(SHUTTERS["circle"], lines[0], lines[0].max() + 50.0)
    found = preprocess_xray(bright, CAMERA, kind="line", percentiles=(2.0, 98.0))
    seen = found.image[found.mask > 0]
    assert float(torch.quantile(seen, 0.02)) == pytest.approx(0.0, abs=1e-4)
    assert float(torch.quantile(seen, 0.98)) == pytest.approx(1.0, abs=1e-4)


def test_the_crop_takes_the_principal_point_along(lines: list[torch.Tensor]) -> None:
    intensity = torch.where(SHUTTERS["rectangle"], torch.exp(-lines[0]), 0.0)
    whole = preprocess_xray(intensity, CAMERA, kind="intensity", crop=False)
    window = preprocess_xray(intensity, CAMERA, kind="intensity")
    seen = whole.mask[0, 0] > 0
    top, left = int(seen.any(1).nonzero()[0]), int(seen.any(0).nonzero()[0])
    rows, cols = window.camera.size
    assert (rows, cols) == window.image.shape[-2:] and rows < 100 and cols < 84
    part = (slice(None), slice(None), slice(top, top + rows), slice(left, left + cols))
    assert torch.equal(window.image, whole.image[part])
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).double() * 40
    pose = drrkit.view_ap(phantoms.torso(12.0), 800.0).double()
    before = project_points(CAMERA, pose, points)
    after = project_points(window.camera, pose, points)
    shift = torch.tensor([float(top), float(left)], dtype=torch.float64)
    torch.testing.assert_close(after + shift, before)


def test_a_preprocessed_x_ray_registers_inside_its_mask() -> None:
    ct = phantoms.torso(8.0)
    camera = CArm(1020.0, (64, 64), 4.4)
    truth = drrkit.view_ap(ct, 800.0)
    intensity = simulate_xray(ct, camera, truth, scatter=0.1, supersample=1, output="intensity")
    row, col = ROW[:64, :64], COL[:64, :64]
    intensity = torch.where((row - 32) ** 2 + (col - 32) ** 2 < 28**2, intensity, 0.0)
    ready = preprocess_xray(1000.0 * intensity, camera, kind="intensity", vignette=False)
    center = drrkit.volume_center(ct)
    xi = torch.tensor([0.04, -0.03, 0.05, 5.0, -4.0, 10.0])
    start = drrkit.perturb(truth, xi.to(truth), center)
    result = drrkit.register(ct.to_mu(), ready.camera, ready.image, start, mask=ready.mask)
    found = result.world_to_camera.double().reshape(4, 4)
    expected = truth.double().reshape(4, 4)
    motion = found @ torch.linalg.inv(expected)
    middle = torch.cat([center.double(), torch.ones(1).double()])
    assert math.degrees(float(drrkit.so3_log(motion[:3, :3]).norm())) < 1.0
    assert float(((found - expected) @ middle)[:2].norm()) < 2.0


def test_the_depth_in_a_hull_is_the_distance_to_its_edge() -> None:
    mask = torch.zeros(1, 1, 20, 30, dtype=torch.bool)
    mask[..., 5:15, 8:25] = True
    mask[..., 8:12, 12:20] = False  # a hole counts for nothing
    depth = convex_depth(mask)[0, 0]
    box = torch.zeros(20, 30, dtype=torch.bool)
    box[5:15, 8:25] = True
    assert torch.equal(depth >= 0, box)
    assert float(depth[5, 10]) == 0.0 and float(depth[9, 12]) == 4.0 and float(depth[2, 15]) == -3.0
    line = torch.zeros_like(mask)
    line[..., 4, 4] = True
    assert float(convex_depth(line)[0, 0, 4, 4]) == 0.0


def test_opening_removes_specks_and_keeps_the_edge_of_the_image() -> None:
    mask = torch.zeros(1, 1, 20, 30, dtype=torch.bool)
    mask[..., 0:9, 0:9] = True
    found = opened(mask | (torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.02))
    assert torch.equal(found, mask)


@pytest.mark.parametrize(
    ("pixels", "settings", "error", "match"),
    [
        (torch.zeros(SIZE, SIZE), {}, ValueError, "all 0"),
        (torch.zeros(3, SIZE, SIZE), {}, ValueError, "pixels: expected"),
        (torch.zeros(8, 8), {}, ValueError, "camera's size"),
        ([1.0], {}, TypeError, "pixels"),
        (ROW * math.nan, {}, ValueError, "finite"),
        (ROW - 5.0, {"kind": "intensity", "shutter_level": None}, ValueError, "0 or more"),
        (ROW, {"kind": "negative"}, ValueError, "kind"),
        (ROW, {"shutter_level": 1.5}, ValueError, "shutter_level"),
        (ROW, {"border": -1}, ValueError, "border"),
        (ROW, {"percentiles": (5.0, 5.0)}, ValueError, "percentiles"),
        (ROW, {"i0": 0.0, "kind": "intensity"}, ValueError, "i0"),
        (ROW, {"mask": torch.zeros(SIZE, SIZE)}, ValueError, "mask: expected some"),
        (ROW, {"mask": torch.ones(SIZE, 3)}, ValueError, "mask: expected the pixels' size"),
        (ROW, {"mask": (ROW == 3).float()}, ValueError, "open pixels are all 3"),
        (ROW, {"flat_field": torch.zeros(SIZE, SIZE)}, ValueError, "flat_field"),
    ],
)
def test_bad_x_rays_are_named(pixels: object, settings: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        preprocess_xray(pixels, CAMERA, **settings)
