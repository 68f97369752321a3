"""Real X-rays: knee implants in fluoroscopy, a chest phantom's radiograph, a head phantom's scout.

    knee      seven frames, two implants each, from starts about an expert's poses: how many starts
              end at one optimum, how far that is from the expert, and how well the silhouettes
              overlap with one drawn by hand. What `register` does by default for a mesh.
    lungman   a PA radiograph, from starts all around: how far apart the ends are. No true pose is
              known. A start from the wrong side (AP) is told by its agreement.
    scout     a CT's localizer: how far ends are from the header's geometry.
    twin      simulated, with a truth: one bone of a phantom in two views of all of it, 60 degrees
              apart, with noise, from a finer grid.

The data are in the folder real of DRRKIT_DATA, see its README. Per case the rows are in
NAME.jsonl of --output, so that an interrupted run goes on; the table is README.md beside them.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import drrkit
from bench.studies.study import (
    appended,
    data_file,
    markdown,
    origin,
    read_rows,
    recorded,
    write_json,
    write_text,
)
from drrkit.conversions import read_jointtrack, read_jointtrack_calibration
from drrkit.geometry import perturb, volume_center
from drrkit.registration import Bodies, Registrar, ScanScene, motion_of, rig_of
from drrkit.volume import Volume, read_mesh
from drrkit.xray import read_localizer

STARTS = {  # degrees, mm in plane, mm of depth: the largest of each axis
    "knee": {"near": (5.0, 5.0, 20.0), "far": (10.0, 10.0, 40.0)},
    "lungman": {"wide": (10.0, 50.0, 200.0)},
    "scout": {"wide": (5.0, 10.0, 30.0)},
    "twin": {"near": (5.0, 3.0, 3.0), "far": (10.0, 8.0, 8.0)},
}
SAME = {"knee": (0.3, 0.5)}  # mm in plane, degrees: one optimum
METAL = 0.3
"""Attenuation of the implants, 1/mm, chosen on the frames of TUNED; cobalt-chromium has more, but
scatter and the detector's range leave less of its contrast."""
TUNED = ("left/0", "left/1", "right/0")
"""Frames that settings were chosen on; the others were not looked at before."""


def options(add: Any) -> None:
    add("--only", nargs="*", default=[], help="only cases whose names contain one of these")
    add("--starts", type=int, default=10, help="per case and protocol (10)")
    add("--seed", type=int, default=1, help="of the starts (1)")


def run(options: argparse.Namespace) -> None:
    rows = options.output / "rows.jsonl"
    done = {(row["case"], row["protocol"]) for row in read_rows(rows)}
    with appended(rows) as add, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one view: the depth is not observable
        for protocol in ("near", "far", "wide"):
            for case in cases():
                reach = STARTS[case.kind].get(protocol)
                wanted = not options.only or any(word in case.name for word in options.only)
                if reach and wanted and (case.name, protocol) not in done:
                    add({"protocol": protocol, **case.measured(reach, options)})
    table = report(read_rows(rows))
    record = recorded(options, starts=STARTS, mu=METAL, tuned=TUNED)
    write_json(options.output / "record.json", record)
    write_text(options.output / "README.md", "\n".join([*table, "", origin(record), ""]))
    print("\n".join(table))


class Case:
    """One X-ray with a volume in it and a pose that starts are drawn about."""

    def __init__(
        self,
        kind: str,
        name: str,
        volume: Any,
        camera: Any,
        xray: Any,
        pose: Tensor,
        **registered: Any,
    ) -> None:
        self.kind, self.name, self.volume, self.camera = kind, name, volume, camera
        self.xray, self.pose, self.registered = xray, pose, registered
        self.center = volume_center(volume) if isinstance(volume, Volume) else volume.center
        self.label: Tensor | None = None
        self.mask: Tensor | None = None

    def starts(self, reach: tuple[float, float, float], count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        draw = 2 * torch.rand(count, 6, dtype=torch.float64, generator=generator) - 1
        turn, plane, depth = math.radians(reach[0]), reach[1], reach[2]
        xi = draw * draw.new_tensor([turn, turn, turn, plane, plane, depth])
        return perturb(self.pose.expand(count, 4, 4), xi, self.center)

    def errors(self, found: Tensor, truth: Tensor) -> Tensor:
        """[N, 3] of poses [N, 4, 4]: mm in plane at the object, degrees, mm of depth."""
        turn = motion_of(truth, found, self.center)[:, :3].norm(dim=1).rad2deg()
        seen = found[:, :3, :3] @ self.center + found[:, :3, 3]
        wanted = truth[:3, :3] @ self.center + truth[:3, 3]
        across = (seen[:, :2] / seen[:, 2:] - wanted[:2] / wanted[2:]).norm(dim=1) * wanted[2]
        return torch.stack((across, turn, seen[:, 2] - wanted[2]), 1)

    def measured(self, reach: tuple[float, float, float], options: argparse.Namespace) -> Any:
        """A row: where the starts end."""
        registrar = Registrar(self.volume, self.camera, **self.registered)
        starts = self.starts(reach, options.starts, options.seed)
        results = [registrar(self.xray, start, mask=self.mask) for start in starts]
        poses = torch.stack([result.world_to_camera for result in results])
        plane, turn = SAME.get(self.kind, (0.5, 0.5))
        alike = torch.stack([self._within(poses, pose, plane, turn) for pose in poses])
        mode = int(alike.sum(1).argmax())
        error = self.errors(poses, self.pose)
        row = {
            "case": self.name,
            "kind": self.kind,
            "starts": len(poses),
            "alike": int(alike[mode].sum()),
            "plane_mm": float(error[mode, 0]),
            "turn_deg": float(error[mode, 1]),
            "depth_mm": float(error[mode, 2]),
            "spread_mm": float(self.errors(poses, poses[mode])[alike[mode], 0].amax()),
            "spread_depth_mm": float(self.errors(poses, poses[mode])[alike[mode], 2].abs().amax()),
            "agreement": results[mode].agreement,
            "loss": results[mode].loss,
            "ends": error.tolist(),
        }
        if self.kind == "lungman":
            wrong = registrar(self.xray, drrkit.view_ap(self.volume, 1650.0))
            row["from_ap"] = {"agreement": wrong.agreement, "loss": wrong.loss}
        if self.label is not None:
            row["overlap"], row["expert"] = self._overlap(poses[mode]), self._overlap(self.pose)
        return row

    def _within(self, poses: Tensor, pose: Tensor, plane: float, turn: float) -> Tensor:
        error = self.errors(poses, pose)
        return (error[:, 0] < plane) & (error[:, 1] < turn)

    def _overlap(self, pose: Tensor) -> float:
        """Intersection over union of silhouettes, rays of more than 0.3 mm inside."""
        assert self.label is not None
        seen = drrkit.render(self.volume, self.camera, pose)[0, 0] > 0.3 * METAL
        return float((seen & self.label).sum() / (seen | self.label).sum())


def cases() -> Iterator[Case]:
    yield from knee(data_file("real") / "knee")
    yield lungman(data_file("real") / "lungman")
    yield scout(data_file("real") / "scout")
    yield from twins()


def knee(folder: Path) -> Iterator[Case]:
    """Both implants in every frame; bone and metal are dark in these images."""
    for side in ("left", "right"):
        frames = sorted(f for f in (folder / side).glob("*.tif") if "label" not in f.name)
        for bone in ("fem", "tib"):
            volume = read_mesh(next((folder / side).glob(f"*_{bone}.stl")), METAL)
            poses = read_jointtrack(folder / side / f"{bone}.jts")
            for number, (frame, pose) in enumerate(zip(frames, poses, strict=True)):
                xray = -drrkit.read_xray(frame).image
                size = (int(xray.shape[-2]), int(xray.shape[-1]))
                camera = read_jointtrack_calibration(folder / side / "calibration.txt", size)
                name = f"{side}/{number} {bone}"
                case = Case("knee", name, volume, camera, xray, pose, xray_kind="display")
                label = frame.with_name(f"{frame.stem}_label_{bone}.tif")
                case.label = drrkit.read_xray(label).image[0, 0] > 0
                yield case


def lungman(folder: Path) -> Case:
    """The radiograph as seen from the source: the figure is mirrored, as chests are displayed.

    Rows 200 to 1710 and columns 50 to 1770 of the detector, whose middle the beam's axis meets.
    """
    figure = drrkit.read_xray(folder / "xray.png").image
    rows, cols = int(figure.shape[-2]), int(figure.shape[-1])
    shrunk = 1510 / rows, 1720 / cols
    row, col = (940 - 200 + 0.5) / shrunk[0] - 0.5, (935 - 50 + 0.5) / shrunk[1] - 0.5
    pitch = (0.194556 * shrunk[0], 0.194556 * shrunk[1])
    camera = drrkit.CArm(1800.0, (rows, cols), pitch, (cols - 1 - col, row))
    volume = drrkit.read_volume(folder / "ct.nii.gz").to_mu()
    pose = drrkit.view_pa(volume, 1650.0)[0]
    return Case("lungman", "lungman", volume, camera, figure.flip(-1), pose)


def scout(folder: Path) -> Case:
    """The localizer, without the rows at the CT's ends and beyond."""
    scan = read_localizer(folder / "localizer.dcm")
    scene = ScanScene(drrkit.read_volume(folder / "ct.nii.gz").to_mu())
    case = Case("scout", "scout", scene, scan.camera, scan.image, scan.world_to_camera)
    seen = scene.render(scan.camera, scan.world_to_camera).amax(-1)[0, 0] > 0.05
    rows = seen.nonzero().flatten().tolist()
    case.mask = torch.zeros_like(scan.image)
    case.mask[:, :, rows[0] + 8 : rows[-1] - 7] = 1.0
    return case


def twins() -> Iterator[Case]:
    """Bones of the torso phantom in biplane X-rays of all of it."""
    camera = drrkit.CArm(1020.0, (256, 256), 1.0)
    whole, coarser = drrkit.phantoms.torso(1.5), drrkit.phantoms.torso(2.0)
    labels = coarser.labels
    assert labels is not None
    for bone in ("vertebra_L3", "femur_left"):
        label = drrkit.phantoms.TORSO_LABELS[bone]
        (volume,) = Bodies.from_labels(coarser.to_mu(), [label]).bodies
        pose = drrkit.view_ap(volume, 800.0)[0]
        turn = torch.tensor([0.0, math.radians(60.0), 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        side = perturb(pose[None], turn, volume_center(volume))[0]
        rig = rig_of(torch.stack((pose, side)))
        xrays = [drrkit.simulate_xray(whole, camera, one[None]) for one in (pose, side)]
        options = {"rig_to_camera": rig, "stages": "part"}
        yield Case("twin", bone, volume, [camera, camera], xrays, pose, **options)


def report(rows: list[dict[str, Any]]) -> list[str]:
    """The tables' lines."""
    lines = ["# Real X-rays", ""]
    for protocol, reach in STARTS["knee"].items():
        found = [row for row in rows if row["kind"] == "knee" and row["protocol"] == protocol]
        if not found:
            continue
        lines += [
            f"## Knee implants, starts within {reach[0]:g} degrees, {reach[1]:g} mm in plane and "
            f"{reach[2]:g} mm of depth ({protocol})",
            "",
            "Ends alike: within 0.3 mm in plane and 0.5 degrees. Differences are to an expert's "
            "pose, whose own repeatability is not known. Settings were chosen on the frames with a "
            "star.",
            "",
        ]
        head = ["frame", "ends alike", "in plane mm", "degrees", "depth mm", "overlap (expert's)"]
        lines += markdown(head, [_knee_row(row) for row in found])
        alike = sum(row["alike"] for row in found)
        close = sum(row["plane_mm"] < 1.0 and row["turn_deg"] < 2.0 for row in found)
        lines += [
            "",
            f"{alike} of {sum(row['starts'] for row in found)} starts at their case's one optimum, "
            f"{close} of {len(found)} optima within 1 mm in plane and 2 degrees of the expert.",
            "",
        ]
    for row in (row for row in rows if row["kind"] == "lungman"):
        reach = STARTS["lungman"]["wide"]
        lines += [
            f"## Chest phantom, starts within {reach[0]:g} degrees, {reach[1]:g} mm in plane and "
            f"{reach[2]:g} mm of depth",
            "",
            f"{row['alike']} of {row['starts']} starts end within 0.5 mm in plane and 0.5 degrees "
            f"of one pose; these within {row['spread_mm']:.2f} mm in plane and "
            f"{row['spread_depth_mm']:.1f} mm of depth. Agreement {row['agreement']:.3f}, loss "
            f"{row['loss']:.3f}; from an AP start {row['from_ap']['agreement']:.3f} and "
            f"{row['from_ap']['loss']:.3f}.",
            "",
        ]
    for row in (row for row in rows if row["kind"] == "scout"):
        reach, ends = STARTS["scout"]["wide"], torch.tensor(row["ends"]).abs().amax(0).tolist()
        lines += [
            f"## Scout of a head phantom, starts within {reach[0]:g} degrees, {reach[1]:g} mm in "
            f"plane and {reach[2]:g} mm of depth",
            "",
            f"All {row['starts']} ends are within {ends[0]:.2f} mm in plane, {ends[1]:.2f} degrees "
            f"and {ends[2]:.1f} mm of depth of the header's geometry.",
            "",
        ]
    twin = [row for row in rows if row["kind"] == "twin"]
    if twin:
        head = ["bone", "starts", "ends below 1 mm in 3D", "median mm", "median degrees"]
        lines += ["## One bone of a phantom in two views of all of it", ""]
        lines += [*markdown(head, [_twin_row(row) for row in twin]), ""]
    return lines


def _twin_row(row: dict[str, Any]) -> list[str]:
    ends = torch.tensor(row["ends"])
    away = ends[:, [0, 2]].norm(dim=1)
    reach = STARTS["twin"][row["protocol"]]
    return [
        row["case"],
        f"{reach[0]:g} degrees, {reach[1]:g} mm",
        f"{int((away < 1.0).sum())} of {len(ends)}",
        f"{float(away.median()):.2f}",
        f"{float(ends[:, 1].median()):.2f}",
    ]


def _knee_row(row: dict[str, Any]) -> list[str]:
    star = "*" if row["case"].split()[0] in TUNED else ""
    return [
        row["case"] + star,
        f"{row['alike']} of {row['starts']}",
        *(f"{row[key]:.2f}" for key in ("plane_mm", "turn_deg")),
        f"{row['depth_mm']:+.1f}",
        f"{row['overlap']:.3f} ({row['expert']:.3f})",
    ]


THREADS = 1
