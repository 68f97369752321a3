"""Matches of several cameras' searches that agree: candidates of all of them together.

A match in one X-ray tells where the volume's centre is across its ray to about a pixel of the
search, and along it only as well as a magnification tells a distance. A match in a view from
elsewhere knows just that. Two matches agree where they turn the volume alike and see its centre at
one place, each within its own uncertainty; the place between them, weighed by these, is better
known than either's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Matches", "agreeing"]


@dataclass(frozen=True)
class Matches:
    """Poses that a search in one view found, in the coordinates of the rig's first camera.

    Attributes:
        world_to_camera: [N, 4, 4] float64 of the first camera.
        score: [N] float64, 0 to 1.
        center: [3] world mm, the point whose place is compared.
        source: [3] where this view's source is, in the first camera's coordinates.
        turn: standard deviation of the rotations, rad.
        across, along: of the centre, as shares of its distance from the source, across the ray and
            along it.
    """

    world_to_camera: Tensor
    score: Tensor
    center: Tensor
    source: Tensor
    turn: float
    across: float
    along: float

    @staticmethod
    def joined(parts: Sequence[Matches]) -> Matches:
        """The matches of several searches in one view."""
        pose = torch.cat([part.world_to_camera for part in parts])
        return replace(
            parts[0], world_to_camera=pose, score=torch.cat([part.score for part in parts])
        )

    @property
    def rotation(self) -> Tensor:
        """[N, 3, 3]."""
        return self.world_to_camera[:, :3, :3]

    @cached_property
    def place(self) -> Tensor:
        """[N, 3] the centre, first camera's coordinates."""
        return self.rotation @ self.center + self.world_to_camera[:, :3, 3]

    @cached_property
    def distance(self) -> Tensor:
        """[N] of the centre from this view's source, mm."""
        return (self.place - self.source).norm(dim=-1)

    @cached_property
    def ray(self) -> Tensor:
        """[N, 3] unit vectors from this view's source to the centre."""
        return (self.place - self.source) / self.distance[:, None]

    @cached_property
    def spread(self) -> Tensor:
        """[N, 3] along the ray, sqrt(along^2 - across^2) mm long: the covariance of a place is
        across^2 I + spread spread'."""
        return self.ray * (self.distance * (self.along**2 - self.across**2) ** 0.5)[:, None]

    @property
    def information(self) -> Tensor:
        """[N, 3, 3] inverse covariances of the places, 1 / mm^2."""
        both = self.ray[:, :, None] * self.ray[:, None, :]
        eye = torch.eye(3).to(both)
        across, along = (
            (self.distance * share).square()[:, None, None] for share in (self.across, self.along)
        )
        return (eye - both) / across + both / along


def agreeing(views: Sequence[Matches]) -> tuple[Tensor, Tensor]:
    """Every match together with those of the other views that agree with it best.

    The score of a match is the mean over the views of its own and, of every other view, the highest
    product of a match's score with how well it agrees: exp(-d^2 / 2), d the difference in
    deviations. Its place is the mean of the places, weighed by their information and agreement, its
    rotation that of the rotations, weighed by the products.

    Returns:
        poses [N, 4, 4] float64 of the first camera, N of all views together, and losses [N], one
        minus score.
    """
    poses, losses = [], []
    for number, own in enumerate(views):
        score, rotation = own.score.clone(), own.score[:, None, None] * own.rotation
        information = own.information
        moment = information @ own.place[..., None]
        for other in (view for k, view in enumerate(views) if k != number):
            agreement = _agreement(own, other)
            product, best = (agreement * other.score).max(1)
            weight = agreement.gather(1, best[:, None])[..., None]
            known = weight * other.information[best]
            score = score + product
            rotation = rotation + product[:, None, None] * other.rotation[best]
            information = information + known
            moment = moment + known @ other.place[best][..., None]
        place = torch.linalg.solve(information, moment)[..., 0]
        poses.append(_poses(_nearest_rotation(rotation), place, own.center))
        losses.append(1.0 - score / len(views))
    return torch.cat(poses), torch.cat(losses)


def _agreement(one: Matches, other: Matches) -> Tensor:
    """exp(-d^2 / 2) of every pair of matches, [N, M]: d^2 is that of turns and that of places."""
    cosine = 0.5 * (one.rotation.flatten(1) @ other.rotation.flatten(1).mT - 1.0)
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    turned = angle.square() / (one.turn**2 + other.turn**2)
    return torch.exp(-0.5 * (turned + _apart(one, other)))


def _apart(one: Matches, other: Matches) -> Tensor:
    """Squared Mahalanobis distances [N, M] between places.

    The covariance of a difference is a I + S S' with a = the variances across together and
    S = (spread of one, spread of the other), so that its inverse is, by Woodbury's formula,
    (I - S (a I + S' S)^-1 S') / a, and the inverse in it is one of 2 x 2.
    """
    a = (one.distance * one.across).square()[:, None] + (other.distance * other.across).square()
    squared = torch.cdist(one.place, other.place).square()
    mine = (one.place * one.spread).sum(-1)[:, None] - one.spread @ other.place.mT
    its = one.place @ other.spread.mT - (other.place * other.spread).sum(-1)
    first = a + one.spread.square().sum(-1)[:, None]
    second = a + other.spread.square().sum(-1)
    mixed = one.spread @ other.spread.mT
    seen = second * mine.square() - 2.0 * mixed * mine * its + first * its.square()
    return (squared - seen / (first * second - mixed.square())).clamp_min(0.0) / a


def _nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotations [N, 3, 3] nearest to matrices."""
    left, _, right = torch.linalg.svd(matrix)
    sign = torch.linalg.det(left @ right)
    flip = torch.ones_like(matrix[..., 0])
    flip[:, 2] = sign
    return left @ (flip[..., None] * right)


def _poses(rotation: Tensor, place: Tensor, center: Tensor) -> Tensor:
    """[N, 4, 4] with these rotations and the centre at these places."""
    pose = torch.eye(4).to(rotation).repeat(len(rotation), 1, 1)
    pose[:, :3, :3] = rotation
    pose[:, :3, 3] = place - rotation @ center
    return pose
