"""Damaged headers: ten thousand files, none of which may crash, hang or be read as nonsense.

The damaged files are read by another process, so that a crash of native code is seen as one.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from xray_files import carm_tags, write_dicom

import drrkit

pytestmark = [pytest.mark.io, pytest.mark.slow]

COUNT = 10_000
HEADER = {".nii": 352, ".mha": 300, ".nrrd": 300, ".dcm": 1200, ".npy": 128}
"""How many bytes from the start are damaged: the header, and the first of what follows."""


def originals(folder: Path) -> dict[str, bytes]:
    """Small whole files of each format."""
    values = torch.arange(4 * 5 * 6, dtype=torch.float32).reshape(4, 5, 6)
    volume = drrkit.Volume(values, (1.0, 1.5, 2.0), (3.0, 4.0, 5.0))
    for suffix in (".nii", ".mha", ".nrrd"):
        drrkit.write_volume(volume, folder / f"whole{suffix}")
    pixels = np.arange(8 * 9, dtype=np.uint16).reshape(8, 9)
    write_dicom(folder / "whole.dcm", pixels, **carm_tags(PatientOrientation=["L", "F"]))
    np.save(folder / "whole.npy", pixels)
    return {suffix: (folder / f"whole{suffix}").read_bytes() for suffix in HEADER}


def damaged(whole: bytes, length: int, chance: random.Random) -> bytes:
    """The file with bits flipped, bytes replaced, a piece cut out, doubled, or its end missing."""
    content = bytearray(whole)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(length, len(content)))
        kind = chance.random()
        if kind < 0.35:
            content[at] ^= 1 << chance.randrange(8)
        elif kind < 0.6:
            content[at] = chance.choice((0, 255, 45, 48, 57, 92, chance.randrange(256)))
        elif kind < 0.75:
            size = chance.choice((1, 2, 4, 8))
            value = chance.choice((b"\xff", b"\x00", b"\x7f", b"9")) * size
            content[at : at + size] = value
        elif kind < 0.85:
            del content[at : at + chance.randint(1, 16)]
        elif kind < 0.95:
            content[at:at] = content[at : at + chance.randint(1, 16)]
        else:
            del content[chance.randrange(len(content)) :]
        if not content:
            return b""
    return bytes(content)


def read_all(folder: Path) -> Iterator[str]:
    """Reads the files named on stdin; a line an answer. Runs in the process that may crash."""
    for line in sys.stdin:
        path = folder / line.strip()
        read = drrkit.read_xray if path.suffix in (".dcm", ".npy") else drrkit.read_volume
        began = time.perf_counter()
        try:
            found = read(path)
        except (ValueError, TypeError, OSError) as error:
            text = str(error)
            answer = "named" if path.name in text or "frames" in text else f"unnamed {text[:200]}"
        except MemoryError:
            answer = "named"
        except Exception as error:
            answer = f"escaped {type(error).__name__}: {error}"[:300].replace("\n", " ")
        else:
            answer = sense(found)
        yield f"{path.name} {time.perf_counter() - began:.2f} {answer}"


def sense(found: object) -> str:
    """Whether what was read can be what it says it is."""
    if isinstance(found, drrkit.Volume):
        numbers = (*found.spacing, *found.origin)
        good = all(map(math.isfinite, numbers)) and min(found.spacing) > 0
        return "read" if good and found.values.numel() > 0 else f"nonsense {found!r}"[:200]
    image = found.image
    good = image.dim() == 4 and image.numel() > 0 and bool(torch.isfinite(image).all())
    return "read" if good else "nonsense image"


def test_ten_thousand_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    whole = originals(tmp_path)
    chance = random.Random(20)
    names = []
    for number in range(COUNT):
        suffix = chance.choice(list(HEADER))
        name = f"{number}{suffix}"
        (tmp_path / name).write_bytes(damaged(whole[suffix], HEADER[suffix], chance))
        names.append(name)
    here = Path(__file__).resolve()
    code = (
        f"import sys; sys.path[:0] = [{str(here.parent)!r}, {str(here.parents[1])!r}]\n"
        "import pathlib, resource, test_fuzzed_files as t\n"
        "resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))\n"
        f"[print(line, flush=True) for line in t.read_all(pathlib.Path({str(tmp_path)!r}))]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(names),
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    answers = done.stdout.splitlines()
    assert done.returncode == 0, (
        f"the reader died after {len(answers)} files, at {names[len(answers)]}:\n"
        f"{done.stderr[-1000:]}"
    )
    wrong = [line for line in answers if line.split()[2] not in ("read", "named")]
    assert wrong == []
    assert len(answers) == COUNT
    assert max(float(line.split()[1]) for line in answers) < 60.0
    refused = sum(line.endswith("named") for line in answers)
    assert 0.1 * COUNT < refused < 0.95 * COUNT  # the damage is neither nothing nor everything
