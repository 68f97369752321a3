"""The viewer without its web: poses, pictures, losses, slices, a registration and its end."""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit.registration import AUTO, GLOBAL, SIMILARITIES
from drrkit.report import to_display
from drrkit.viewer import STRATEGIES, Session, Slices, strategy_stages

CAMERA = drrkit.CArm(1020.0, (48, 64), 5.0)
OFFSET = torch.tensor([0.06, -0.05, 0.04, 8.0, -6.0, 10.0], dtype=torch.float64)


@lru_cache
def attenuation() -> drrkit.Volume:
    return drrkit.phantoms.torso(8.0).to_mu()


def truth() -> Tensor:
    return drrkit.view_ap(attenuation(), 800.0)


def start() -> Tensor:
    return drrkit.perturb(truth(), OFFSET, drrkit.volume_center(attenuation()))


@lru_cache
def xray() -> Tensor:
    return drrkit.render(attenuation(), CAMERA, truth(), supersample=2)


def session(**options: Any) -> Session:
    return Session(attenuation(), CAMERA, xray(), start(), **options)


# ---- poses


def test_a_placed_pose_is_the_start_perturbed_and_is_told_as_it_was_given() -> None:
    shown, xi = session(), torch.tensor([0.1, -0.2, 0.3, 4.0, -5.0, 60.0]).double()
    shown.place(xi)
    wanted = drrkit.perturb(start(), xi, drrkit.volume_center(attenuation()))[0]
    torch.testing.assert_close(shown.world_to_camera, wanted)
    torch.testing.assert_close(shown.xi, xi)
    shown.place(-xi)  # from the start, not from where it is
    torch.testing.assert_close(shown.xi, -xi)


def test_nudges_add_up_and_reset_goes_back() -> None:
    shown, turn = session(), torch.tensor([0.0, 0.0, 0.1, 0.0, 0.0, 0.0])
    shift = torch.tensor([0.0, 0.0, 0.0, 3.0, 0.0, 0.0])
    for step in (turn, shift, turn, shift):
        shown.nudge(step)
    # In camera axes about the volume's centre: the turns leave the shifts alone.
    moved = shown.world_to_camera @ torch.tensor([*drrkit.volume_center(attenuation()), 1.0])
    before = start()[0] @ torch.tensor([*drrkit.volume_center(attenuation()), 1.0])
    torch.testing.assert_close(moved - before, torch.tensor([6.0, 0, 0, 0]).double())
    torch.testing.assert_close(shown.xi[:3], 2 * turn[:3].double())
    shown.reset()
    assert torch.equal(shown.world_to_camera, start()[0])


@pytest.mark.parametrize(
    "xi", [[0.0] * 5, [math.nan] + [0.0] * 5, [7.0] + [0.0] * 5, [0.0] * 5 + [1e6], [math.inf] * 6]
)
def test_motions_that_mean_nothing_are_refused_and_change_nothing(xi: list[float]) -> None:
    shown = session()
    for action in (shown.place, shown.nudge):
        with pytest.raises(ValueError, match="xi: expected"):
            action(torch.tensor(xi))
    assert shown.version == 0 and torch.equal(shown.world_to_camera, start()[0])


def test_nudges_do_not_lead_out_of_reach_either() -> None:
    shown = session()
    with pytest.raises(ValueError, match="expected a pose within"):
        for _ in range(9):
            shown.nudge(torch.tensor([0.0, 0.0, 0.0, 4000.0, 0.0, 0.0]))
    assert bool(shown.world_to_camera.isfinite().all())


# ---- looks


def test_a_look_shows_the_rendered_volume_the_loss_and_the_geometry() -> None:
    shown = session()
    shown.choose("ncc")
    look = shown.look()
    drr = drrkit.render(attenuation(), CAMERA, start())
    assert torch.equal(look.picture.pixels, to_display(drr))
    assert look.loss == pytest.approx(float(drrkit.losses.ncc(drr, xray())), abs=1e-5)
    assert look.similarity == "ncc" and not look.running
    assert look.geometry is not None and "source" in look.geometry
    assert look.drawing is not None and look.drawing.startswith("<svg")
    torch.testing.assert_close(
        torch.tensor(look.world_to_camera).double(), start()[0], rtol=1e-6, atol=1e-4
    )


def test_large_xrays_have_a_preview_of_the_same_scene() -> None:
    camera = drrkit.CArm(1020.0, (300, 600), 0.5)
    image = drrkit.render(attenuation(), camera, truth())
    shown = Session(attenuation(), camera, image, truth())
    preview, fine = shown.look(fine=False), shown.look(fine=True)
    assert shown.has_preview and not preview.fine and preview.drawing is None
    assert tuple(preview.picture.pixels.shape) == (100, 200)
    assert tuple(fine.picture.pixels.shape) == tuple(shown.xray.pixels.shape) == (300, 600)
    pooled = torch.nn.functional.avg_pool2d(fine.picture.pixels[None].float(), 3)[0]
    assert (pooled - preview.picture.pixels.float()).abs().mean() < 4
    assert preview.loss == fine.loss


def test_looks_follow_the_pose_and_are_not_rendered_again_without_need() -> None:
    shown = session()
    first = shown.look(fine=False)
    assert shown.look(fine=False).picture is first.picture
    shown.nudge(torch.tensor([0.0, 0.0, 0.0, 5.0, 0.0, 0.0]))
    second = shown.look(fine=False)
    assert second.version > first.version and second.pose_version > first.pose_version
    assert not torch.equal(second.picture.pixels, first.picture.pixels)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_loss_can_be_chosen_and_is_a_number_or_nothing(similarity: str) -> None:
    shown = session()
    shown.choose(similarity)
    look = shown.look(fine=False)
    assert look.similarity == similarity
    assert look.loss is not None and math.isfinite(look.loss)


def test_a_loss_that_the_image_is_too_small_for_is_none() -> None:
    camera = drrkit.CArm(1020.0, (4, 4), 60.0)
    image = drrkit.render(attenuation(), camera, truth())
    shown = Session(attenuation(), camera, image, start())
    found = set()
    for similarity in SIMILARITIES:
        shown.choose(similarity)
        found.add(shown.look(fine=False).loss is None)
    assert True in found


def test_pixels_outside_the_mask_do_not_count_in_the_loss() -> None:
    mask = torch.ones(1, 1, 48, 64)
    mask[..., :20, :] = 0.0
    spoiled = xray().clone()
    spoiled[..., :20, :] = 99.0
    shown = Session(attenuation(), CAMERA, spoiled, truth(), mask=mask)
    assert shown.look().loss == pytest.approx(
        Session(attenuation(), CAMERA, xray(), truth(), mask=mask).look().loss, abs=1e-6
    )


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"similarity: expected one of .*ncc.*got 'nnc'"):
        session().choose("nnc")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"volume": drrkit.phantoms.torso(16.0)}, "volume: expected attenuation"),
        ({"start": torch.eye(4).repeat(2, 1, 1)}, r"start: expected one pose"),
        ({"xray": torch.zeros(9, 9)}, r"xray: expected shape"),
    ],
)
def test_a_session_of_things_that_do_not_fit_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    arguments = {"volume": attenuation(), "camera": CAMERA, "xray": xray(), "start": start()}
    with pytest.raises(ValueError, match=message):
        Session(**{**arguments, **changes})


# ---- registration


def test_strategies_end_with_the_chosen_loss() -> None:
    assert strategy_stages("auto", AUTO[-1].name) == AUTO
    assert strategy_stages("global", "mi")[:-1] == GLOBAL[:-1]
    for strategy in STRATEGIES:
        assert strategy_stages(strategy, "mi")[-1].similarity == "mi"
    assert {stage.similarity for stage in strategy_stages("throughout", "mi")} == {"mi"}
    with pytest.raises(ValueError, match="strategy: expected one of auto"):
        strategy_stages("magic", "mi")


def test_a_registration_is_followed_and_ends_near_the_truth() -> None:
    shown, versions = session(), []
    before = shown.look(fine=False)
    points = drrkit.metrics.bone_points(drrkit.phantoms.torso(8.0), count=100)
    shown.listen(lambda: versions.append(shown.version))
    shown.register("auto")
    assert shown.wait(120)
    after = shown.look(fine=False)
    assert after.steps > 5 and len(versions) > after.steps
    assert before.loss is not None and after.loss is not None and after.loss < before.loss
    assert "confidence" in after.message and not after.running
    error = drrkit.metrics.mtre(shown.world_to_camera, truth(), points)
    assert float(error) < 1.5


def test_a_registration_can_be_stopped_and_keeps_what_it_found() -> None:
    shown, moved = session(), threading.Event()
    shown.listen(lambda: moved.set() if shown.running else None)

    def stop() -> None:
        if shown.running and shown._state.steps >= 2:
            shown.stop()

    shown.listen(stop)
    shown.register("throughout")
    assert moved.wait(60) and shown.wait(60)
    look = shown.look(fine=False)
    assert look.message.startswith("interrupted") and look.steps == 2
    assert not torch.equal(shown.world_to_camera, start()[0])
    shown.reset()
    shown.register()  # a second one is possible, and not stopped by the first one's stop
    assert shown.running
    shown.stop()
    assert shown.wait(60)


def test_nothing_is_moved_while_a_registration_runs() -> None:
    shown, go = session(), threading.Event()
    shown.listen(lambda: go.wait(60) if shown._state.steps else None)
    shown.register()
    try:
        for action in (
            lambda: shown.nudge(OFFSET),
            lambda: shown.place(OFFSET),
            shown.reset,
            lambda: shown.choose("mi"),
            shown.register,
        ):
            with pytest.raises(ValueError, match="a registration is running"):
                action()
    finally:
        shown.stop()
        go.set()
    assert shown.wait(60)


def test_a_registration_that_fails_says_so_and_leaves_the_session_usable() -> None:
    parallel = drrkit.CArm(1020.0, (48, 64), 5.0, beam="parallel")
    image = drrkit.render(attenuation(), parallel, truth())
    shown = Session(attenuation(), parallel, image, start())
    shown.register("global")  # a search needs a cone beam
    assert shown.wait(60)
    assert "failed: camera: a search needs a cone beam" in shown.look(fine=False).message
    shown.nudge(OFFSET)


def test_who_no_longer_listens_is_not_called() -> None:
    shown, calls = session(), []
    end = shown.listen(lambda: calls.append(1))
    shown.reset()
    end()
    end()
    shown.reset()
    assert calls == [1]


# ---- saving


def test_the_pose_is_saved_where_the_user_said_only() -> None:
    with pytest.raises(ValueError, match="nothing to save into"):
        session().save()
    saved = []

    def save(pose: Tensor, known: dict[str, Any]) -> str:
        saved.append((pose, known))
        return "there.json"

    shown = session(save=save)
    shown.nudge(OFFSET)
    assert shown.save() == "there.json"
    torch.testing.assert_close(saved[0][0], shown.world_to_camera)
    assert saved[0][1]["similarity"] == "gradient_ncc"
    assert shown.look(fine=False).message == "saved there.json"


# ---- slices


def labelled(direction: list[list[float]], shape: tuple[int, int, int]) -> drrkit.Volume:
    """A CT in which a voxel's value is x + 1.5 y + 2 z of its world position, in units of 1 mm."""
    matrix = torch.tensor(direction, dtype=torch.float64)
    volume = drrkit.Volume(torch.zeros(shape), (1.0, 1.0, 1.0), direction=matrix, unit="mu")
    grid = torch.cartesian_prod(*(torch.arange(n) for n in reversed(shape))).double()
    world = volume.index_to_world(grid)
    values = torch.zeros(shape)
    x, y, z = grid.long().unbind(1)
    values[z, y, x] = (world @ torch.tensor([1.0, 1.5, 2.0]).double()).float()
    return drrkit.Volume(values, (1.0, 1.0, 1.0), direction=matrix, unit="mu")


@pytest.mark.parametrize(
    "direction",
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[-1, 0, 0], [0, 1, 0], [0, 0, -1]],
        [[0, 0, 1], [1, 0, 0], [0, -1, 0]],
        [[0.96, 0.28, 0], [-0.28, 0.96, 0], [0, 0, 1]],
    ],
)
def test_slices_lie_as_radiologists_look_at_them(direction: list[list[float]]) -> None:
    slices = Slices(labelled(direction, (3, 5, 4)))
    for plane, (right, down) in {
        "axial": (1, 1),  # patient's left (x), back (y)
        "coronal": (1, -1),  # left, foot (-z)
        "sagittal": (1, -1),  # back (y), foot
    }.items():
        pixels = slices.cut(plane, 0.5).pixels.int()
        assert ((pixels[:, 1:] - pixels[:, :-1]) * right >= 0).all(), plane
        assert ((pixels[1:] - pixels[:-1]) * down >= 0).all(), plane
        ends = [slices.cut(plane, share).pixels.float().mean() for share in (0.0, 1.0)]
        assert ends[0] < ends[1]


def test_slices_know_their_spacing_and_are_never_large() -> None:
    values = torch.rand(3, 6, 1200)
    slices = Slices(drrkit.Volume(values, (0.5, 1.0, 2.0), unit="mu"))
    axial, sagittal = slices.cut("axial", 1.0), slices.cut("sagittal", 0.0)
    assert axial.pixels.shape == (2, 400) and (axial.row_mm, axial.col_mm) == (3.0, 1.5)
    assert sagittal.pixels.shape == (3, 6) and (sagittal.row_mm, sagittal.col_mm) == (2.0, 1.0)
    flat = Slices(drrkit.Volume(torch.zeros(2, 2, 2), (1.0, 1.0, 1.0), unit="mu"))
    assert int(flat.cut("axial", 0.0).pixels.max()) == 0
