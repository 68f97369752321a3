"""Pictures: display conversions, edges, overlays, image files that appear whole or not at all."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import drrkit
from drrkit.files import fingerprint, whole_file
from drrkit.report import (
    checkerboard,
    difference,
    edges,
    line_to_absorption,
    line_to_transmission,
    overlay_edges,
    pose_overlays,
    save_image,
    scene_svg,
    to_display,
)
from drrkit.report.pictures import _connected
from tests.support.commands import small_ct


def disc(rows: int = 80, cols: int = 100, radius: float = 25.0) -> torch.Tensor:
    """A bright disc with a soft rim of one pixel about (40, 50)."""
    row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    return torch.sigmoid(4.0 * (radius - torch.hypot(row - 40.0, col - 50.0)))


# ---- display


def test_transmission_and_absorption_add_to_one_and_follow_the_exponential() -> None:
    line = torch.tensor([0.0, 1e-9, 0.5, 20.0], dtype=torch.float64)
    expected = [1.0, 1.0 - 1e-9, math.exp(-0.5), math.exp(-20.0)]
    assert line_to_transmission(line).tolist() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(line_to_transmission(line) + line_to_absorption(line), 1 + 0 * line)
    # Thin objects keep their digits.
    assert float(line_to_absorption(line)[1]) == pytest.approx(1e-9, rel=1e-8)


def test_percentiles_become_black_and_white_and_the_rest_is_linear() -> None:
    image = torch.arange(101.0).reshape(1, 1, 1, 101)
    full = to_display(image, window=(0, 100))
    assert full.dtype == torch.uint8 and full.shape == (1, 101)
    assert full[0].tolist() == [round(255 * n / 100) for n in range(101)]
    part = to_display(image, window=(10, 60))
    assert part[0, 10] == 0 and part[0, 60] == 255 and part[0, 35] in (127, 128)
    assert part[0, :10].max() == 0 and part[0, 61:].min() == 255


def test_inverting_exchanges_black_and_white() -> None:
    image = disc()
    difference = to_display(image).int() + to_display(image, invert=True).int() - 255
    assert int(difference.abs().max()) <= 1  # both round


def test_gain_and_offset_do_not_change_a_picture() -> None:
    image = disc().double()
    assert torch.equal(to_display(image), to_display(3.0 * image + 7.0))


def test_a_constant_image_is_black_and_a_few_bright_pixels_are_seen() -> None:
    assert int(to_display(torch.full((4, 5), 3.0)).max()) == 0
    spots = torch.zeros(100, 100)
    spots[3, 4] = 1.0
    shown = to_display(spots)
    assert shown[3, 4] == 255 and int(shown.sum()) == 255


@pytest.mark.parametrize(
    ("image", "window", "words"),
    [
        (np.eye(3), (0, 100), r"image: expected a tensor .* ndarray"),
        (torch.zeros(2, 3, 4), (0.5, 99.5), r"image: expected one image .* \(2, 3, 4\)"),
        (torch.zeros(0, 4), (0.5, 99.5), "image: expected one image"),
        (torch.tensor([[0.0, math.nan]]), (0.5, 99.5), "image: contains 1 non-finite"),
        (torch.eye(3), (60, 40), r"window: expected percentiles .* \(60, 40\)"),
        (torch.eye(3), (-1, 40), "window: expected percentiles"),
    ],
)
def test_what_is_no_image_or_window_is_named(image, window, words: str) -> None:
    with pytest.raises(TypeError if isinstance(image, np.ndarray) else ValueError, match=words):
        to_display(image, window=window)


# ---- edges


def test_the_edge_of_a_disc_is_its_circle_one_pixel_wide() -> None:
    row, col = torch.nonzero(edges(disc(), sigma_px=1.0, low=0.0, high=0.5)).double().unbind(1)
    radius = torch.hypot(row - 40.0, col - 50.0)
    assert float((radius - 25.0).abs().max()) < 1.0
    angles = torch.atan2(row - 40.0, col - 50.0).sort().values
    gaps = torch.cat([angles.diff(), (angles[0] + 2 * math.pi - angles[-1])[None]])
    assert float(gaps.max()) < math.radians(6)  # closed
    assert len(row) < 1.5 * 2 * math.pi * 25  # thin


def test_edges_do_not_depend_on_gain_and_offset_or_sign() -> None:
    image = disc() + 0.3 * disc(radius=10.0)
    first, second = edges(image), edges(-5.0 * image + 3.0)
    assert int(first.sum()) > 80
    for one, other in ((first, second), (second, first)):
        # Ties between neighbours may fall either way.
        near = torch.nn.functional.max_pool2d(other[None].float(), 3, stride=1, padding=1)[0] > 0
        assert float((one & near).sum() / one.sum()) > 0.98


def test_a_flat_image_has_no_edges() -> None:
    assert not bool(edges(torch.full((30, 40), 1e6)).any())


def test_a_faint_structure_is_seen_beside_many_strong_ones() -> None:
    row, col = torch.meshgrid(torch.arange(120), torch.arange(240), indexing="ij")
    stripes = torch.sin(col * (2 * math.pi / 12)) * (col < 120)
    faint = 0.6 * torch.sigmoid(2.0 * (25.0 - torch.hypot(row - 60.0, col - 190.0)))
    found = edges(stripes + faint)
    assert int(found[:, 150:].sum()) > 130  # the circle's 157 pixels


def test_weak_edges_are_kept_only_where_a_chain_joins_them_to_strong_ones() -> None:
    weak = torch.zeros(9, 9, dtype=torch.bool)
    for row, col in ((1, 1), (2, 2), (3, 1), (4, 2), (4, 3), (1, 6), (2, 6), (7, 7)):
        weak[row, col] = True
    strong = torch.zeros_like(weak)
    strong[1, 1] = strong[7, 7] = True
    kept = _connected(strong, weak)
    expected = weak.clone()
    expected[1, 6] = expected[2, 6] = False
    assert torch.equal(kept, expected)


def test_a_higher_threshold_leaves_fewer_edges() -> None:
    image = disc() + 0.5 * disc(radius=10.0)
    counts = [int(edges(image, low=low, high=low).sum()) for low in (0.0, 0.5, 0.9)]
    assert counts[0] > counts[1] > counts[2] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"low": 0.9, "high": 0.5}, "low, high: expected 0 <= low <= high <= 1, got 0.9 and 0.5"),
        ({"sigma_px": 0.0}, "sigma_px: expected a positive number"),
    ],
)
def test_thresholds_out_of_order_are_named(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        edges(disc(), **options)


# ---- overlays


def test_edges_are_drawn_in_green_on_grey() -> None:
    picture, edge = to_display(disc()), torch.zeros(80, 100, dtype=torch.bool)
    edge[3, 4] = True
    drawn = overlay_edges(picture, edge)
    assert drawn[3, 4].tolist() == [0, 255, 0]
    assert torch.equal(drawn[~edge], picture[..., None].expand(-1, -1, 3)[~edge])
    with pytest.raises(ValueError, match=r"edge: expected .* as the picture"):
        overlay_edges(picture, edge[:-1])


def test_the_edges_of_the_right_pose_lie_on_the_x_ray_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drrkit.report.pictures.OVERLAY_ROWS", 250)
    ct = small_ct()
    camera = drrkit.CArm(1020.0, (128, 140), 2.6)
    right = drrkit.view_ap(ct, 800.0)
    wrong = drrkit.perturb(
        right, torch.tensor([0.0, 0.0, 0.1, 12.0, 8.0, 0.0]), drrkit.volume_center(ct)
    )
    mu = ct.to_mu()
    xray = drrkit.render(ct.to_mu(60.0), camera, right)
    drawn = pose_overlays(mu, camera, xray, [wrong[0], right[0]])
    assert drawn.shape == (256, 2 * 280 + 8, 3)
    green = (drawn == torch.tensor([0, 255, 0], dtype=torch.uint8)).all(-1)
    assert not bool(green[:, 280:288].any())  # the gap
    fine = camera.rescale(0.5)
    expected = edges(drrkit.render(ct.to_mu(60.0), fine, right), sigma_px=2.4)
    near = torch.nn.functional.max_pool2d(expected[None].float(), 7, stride=1, padding=3)[0] > 0
    share = [float((half & near).sum() / half.sum()) for half in (green[:, :280], green[:, 288:])]
    assert share[1] > 0.95 > 0.6 > share[0]


def test_a_large_x_ray_is_not_enlarged() -> None:
    ct = small_ct()
    camera = drrkit.CArm(1020.0, (520, 30), 1.0)
    drawn = pose_overlays(ct.to_mu(), camera, torch.rand(520, 30), [drrkit.view_ap(ct, 800.0)[0]])
    assert drawn.shape == (520, 30, 3)


def test_an_overlay_names_what_does_not_fit() -> None:
    ct = small_ct().to_mu()
    camera, pose = drrkit.CArm(1020.0, (20, 30), 10.0), drrkit.view_ap(ct, 800.0)[0]
    with pytest.raises(ValueError, match=r"xray: expected \(20, 30\) pixels .* \(20, 31\)"):
        pose_overlays(ct, camera, torch.rand(20, 31), [pose])
    with pytest.raises(ValueError, match="poses: expected at least one"):
        pose_overlays(ct, camera, torch.rand(20, 30), [])


# ---- files


@pytest.mark.io
@pytest.mark.parametrize("channels", [0, 3])
def test_a_png_holds_the_picture(tmp_path: Path, channels: int) -> None:
    import SimpleITK

    shape = (7, 9, 3) if channels else (7, 9)
    picture = torch.arange(math.prod(shape), dtype=torch.uint8).reshape(shape)
    save_image(picture, tmp_path / "a.png")
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "a.png")))
    assert np.array_equal(found, picture.numpy())


@pytest.mark.io
@pytest.mark.parametrize("suffix", ["tif", "tiff", "nii", "nii.gz", "nrrd", "mha"])
def test_numbers_and_spacing_survive_in_float_formats(tmp_path: Path, suffix: str) -> None:
    import SimpleITK

    image = torch.randn(1, 1, 7, 9, dtype=torch.float64)
    save_image(image, tmp_path / f"a.{suffix}", pixel_spacing=(1.5, 0.25))
    found = SimpleITK.ReadImage(str(tmp_path / f"a.{suffix}"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(found), image[0, 0].float().numpy())
    assert found.GetSpacing() == pytest.approx((0.25, 1.5))


def test_npy_needs_no_simpleitk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    save_image(torch.eye(3, dtype=torch.float64), tmp_path / "a.npy")
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == np.float32 and np.array_equal(found, np.eye(3))


@pytest.mark.parametrize(
    ("image", "name", "error", "words"),
    [
        (torch.eye(3), "a.jpg", ValueError, r"a\.jpg: expected one of \.png"),
        (torch.eye(3), "a.png", TypeError, "uint8 for .png .*float32"),
        (torch.zeros(3, 3, 4, dtype=torch.uint8), "a.png", ValueError, r"\(3, 3, 4\)"),
        (torch.zeros(2, 3, 3), "a.npy", ValueError, r"\(2, 3, 3\)"),
        (torch.eye(3), "none/a.npy", OSError, "none/a.npy: cannot write to the folder"),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(
    tmp_path: Path, image, name: str, error: type, words: str
) -> None:
    with pytest.raises(error, match=words):
        save_image(image, tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_file(target) as staged:
        staged.write_text("half")
        assert target.read_text() == "old"
        raise RuntimeError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    with whole_file(target) as staged:
        staged.write_text("new")
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]
    # As open() would have made it, not private to this user as temporary files are.
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_fingerprint_tells_files_and_folders_apart(tmp_path: Path) -> None:
    first, folder = tmp_path / "a", tmp_path / "folder"
    first.write_bytes(b"abc")
    told = fingerprint(first)
    assert told["bytes"] == 3 and str(told["sha256"]).startswith("ba7816bf8f01cfea414140de5dae2223")
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "b").write_bytes(b"abc")
    before = fingerprint(folder)
    assert before["bytes"] == 3 and before["sha256"] != told["sha256"]
    (folder / "inner" / "b").rename(folder / "inner" / "c")
    assert fingerprint(folder)["sha256"] != before["sha256"]
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "none")


def test_a_checkerboard_shows_both_pictures_in_turn() -> None:
    first, second = (torch.full((16, 24), value, dtype=torch.uint8) for value in (10, 200))
    board = checkerboard(first, second, fields=4)
    assert board[0, 0] == 10
    assert board[0, 4] == 200
    assert board[4, 4] == 10
    assert int((board == 10).sum()) == int((board == 200).sum())
    with pytest.raises(ValueError, match=r"second: expected .* as the picture"):
        checkerboard(first, second[:, 1:])


def test_a_difference_is_grey_where_pictures_agree() -> None:
    first = torch.tensor([[0, 255, 100]], dtype=torch.uint8)
    second = torch.tensor([[0, 0, 255]], dtype=torch.uint8)
    assert difference(first, second).tolist() == [[128, 255, 50]]
    assert difference(second, first).tolist() == [[128, 0, 205]]


def test_the_scene_draws_a_c_arm_a_pose() -> None:
    ct = drrkit.phantoms.torso(spacing=20.0)
    camera = drrkit.CArm(1000.0, (100, 200), 1.5)
    drawing = scene_svg(ct, camera, [drrkit.view_pa(ct, 700.0), drrkit.view_ap(ct, 800.0)])
    assert drawing.startswith("<svg") and drawing.count("<line") == 12 + 2 * 9
