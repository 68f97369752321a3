"""Random subjects: repeatable, different from each other, asymmetric, in HU with labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import drrkit
from drrkit.phantoms import ANATOMY_LABELS, random_anatomy, torso
from drrkit.volume import Volume

KINDS = ("pelvis", "spine", "skull")


def bone(volume: Volume) -> torch.Tensor:
    return (volume.labels == ANATOMY_LABELS["bone"]).float()


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2.0 * (a * b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_one_subject_and_leaves_the_global_generator_alone(kind: str) -> None:
    state = torch.get_rng_state()
    first, again = random_anatomy(kind, 5), random_anatomy(kind, 5)
    assert torch.equal(first.values, again.values) and torch.equal(first.labels, again.labels)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tissue_has_its_hounsfield_units(kind: str) -> None:
    for seed in range(6):
        subject = random_anatomy(kind, seed, shape=64)
        hu, labels = subject.values, subject.labels
        assert subject.unit == "HU" and hu.shape == labels.shape == (64, 64, 64)
        assert hu.min() == -1000.0 and 700.0 < hu.max() <= 1500.0
        inside = hu[labels == ANATOMY_LABELS["soft_tissue"]]
        assert 20.0 < inside.median() < 60.0
        cortical = hu[labels == ANATOMY_LABELS["bone"]]
        assert 450.0 < cortical.median() < 1500.0 and cortical.quantile(0.98) > 650.0
        assert (hu[labels == ANATOMY_LABELS["air"]] <= -400.0).all()
        share = bone(subject).mean()
        assert 0.01 < share < 0.12
        assert (labels == ANATOMY_LABELS["other_bone"]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_subjects_overlap_as_one_does_with_itself(kind: str) -> None:
    masks = [bone(random_anatomy(kind, seed)) for seed in range(12)]
    pairs = [overlap(a, b) for i, a in enumerate(masks) for b in masks[:i]]
    assert max(pairs) < 0.8  # a copy has 1
    assert min(pairs) > 0.02  # the same anatomy about the same place all the same
    volumes = torch.stack([mask.mean() for mask in masks])
    assert volumes.std() / volumes.mean() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_no_subject_has_a_mirror_twin(kind: str) -> None:
    for seed in range(8):
        mask = bone(random_anatomy(kind, seed))
        # The best shift along x takes out that the subject does not lie in the middle.
        twins = [overlap(mask, mask.flip(-1).roll(shift, -1)) for shift in range(-8, 9)]
        assert max(twins) < 0.85, seed


def test_every_grid_shows_the_same_subject() -> None:
    coarse = random_anatomy("pelvis", 3, shape=(48, 40, 44), spacing=6.0, texture=0.0)
    fine = random_anatomy("pelvis", 3, shape=(96, 80, 88), spacing=3.0, texture=0.0)
    assert drrkit.volume_center(coarse).abs().max() < 1e-3
    averaged = torch.nn.functional.avg_pool3d(fine.values[None], 2)[0]
    difference = (averaged - coarse.values).abs()
    assert difference.mean() < 20.0
    assert difference.median() < 1.0  # all of it lies at surfaces
    far = random_anatomy("pelvis", 3, shape=24, spacing=(6.0, 6.0, 6.0), texture=0.0)
    assert torch.equal(far.labels, coarse.labels[10:34, 8:32, 12:36])


@pytest.mark.parametrize("kind", KINDS)
def test_surfaces_are_partial_volumes(kind: str) -> None:
    hu = random_anatomy(kind, 0, texture=0.0).values
    step = (hu > -900.0) & (hu < -200.0)
    assert 0.005 < step.float().mean() < 0.2  # between air and fat, which hard edges never show


class Numbers(TorchDispatchMode):
    """Counts the numbers that torch's operations write."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count += result.numel() if isinstance(result, torch.Tensor) else 0
        return result


@pytest.mark.parametrize("paint", [torso, *(partial(random_anatomy, kind) for kind in KINDS)])
def test_shapes_are_painted_in_their_boxes_not_in_the_whole_grid(paint: Callable) -> None:
    with Numbers() as numbers:
        volume = paint()
    # 440 to 790 per voxel; 3300 to 6000 if every shape were painted everywhere.
    assert numbers.count < 1000 * volume.values.numel()


def test_the_texture_can_be_turned_off() -> None:
    plain, textured = (random_anatomy("skull", 2, texture=texture).values for texture in (0.0, 1.0))
    brain = (plain - 40.0).abs() < 1e-3
    assert brain.float().mean() > 0.1
    assert 1.0 < textured[brain].std() < 30.0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kind": "hand"}, "kind: expected one of pelvis, spine, skull"),
        ({"seed": -1}, "seed: expected an integer >= 0"),
        ({"seed": True}, "seed: expected an integer >= 0, got True"),
        ({"shape": 4}, "shape: expected 8 to 512"),
        ({"shape": 48.0}, "shape: expected an integer >= 8, got 48.0"),
        ({"shape": (48, 48)}, "shape: expected 8 to 512, .*three"),
        ({"spacing": 0.0}, "spacing: expected 0.3 to 30"),
        ({"spacing": (1.0, 2.0)}, "spacing: .*three"),
        ({"texture": -1.0}, "texture: expected a number >= 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        random_anatomy(**arguments)
