"""The sdist and the wheel work where a user installs them; a build that cannot work says why."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    if check and result.returncode:
        pytest.fail(f"{command} failed:\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
    return result


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what git would ship: nothing that was built in place can help."""
    target = tmp_path_factory.mktemp("source") / "drrkit"
    skip = shutil.ignore_patterns(
        ".venv*",
        ".git",
        "build",
        "dist",
        "*.so",
        "_build.py",
        "*.egg-info",
        "__pycache__",
        ".*_cache",
    )
    shutil.copytree(ROOT, target, ignore=skip)
    return target


@pytest.fixture(scope="module")
def distributions(source) -> Path:
    """python -m build makes the sdist, then the wheel from the sdist."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory) -> Path:
    """An environment that has torch and all the rest, but no drrkit.

    A .pth file lends it this environment's packages; .pth files inside those, an editable drrkit
    among them, are not followed.
    """
    home = tmp_path_factory.mktemp("clean") / "env"
    venv.create(
        home, with_pip=False
    )  # pip, too, is lent: an old one of its own would bring old tools
    python = home / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", where, cwd=home).stdout.strip())
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert run(python, "-c", "import torch, drrkit", cwd=home, check=False).returncode != 0
    return python


SMOKE = """
import drrkit, torch
from pathlib import Path
assert "site-packages" in drrkit.__file__, drrkit.__file__
frames = torch.tensor([[[2.2, -30.0, 3.1], [0.1, 40.0, 0.2], [1.0, 0, 0], [0, 0, 1.0]]])
frames.requires_grad_()
image = drrkit.project(torch.ones(6, 7, 8), frames, (5, 6))
image.sum().backward()
assert image.max() > 6 and frames.grad.abs().sum() > 0
print("works", drrkit.__version__)
"""


REGISTRATION = """
import drrkit, torch
ct = drrkit.phantoms.torso(8.0)
camera = drrkit.CArm(1020.0, (48, 64), 6.0)
truth = drrkit.view_ap(ct, 800.0)
xray = drrkit.simulate_xray(ct, camera, truth, photons=None)
xi = torch.tensor([[0.06, -0.05, 0.08, 8.0, -6.0, 10.0]], dtype=torch.float64)
start = drrkit.perturb(truth, xi, drrkit.volume_center(ct))
volume = ct.to_mu()
stages = drrkit.registration.FOLLOW
found = drrkit.register(volume, camera, xray, start, stages=stages).world_to_camera
targets = drrkit.volume_center(ct) + 50.0 * torch.cat((torch.eye(3), -torch.eye(3)))
print("mtre", float(drrkit.metrics.mtre(found[None], truth, targets)))
"""

# Reads everything of the package that is not code, as an importer of another program does.
DATA = """
from importlib.resources import files
def below(folder):
    for one in folder.iterdir():
        yield from below(one) if one.is_dir() else [one]
read = {one.name: len(one.read_bytes()) for one in below(files("drrkit"))}
assert "py.typed" in read and read["_C.pyi"] > 100, read
print("read", len(read))
"""


def test_both_hold_all_that_the_sources_hold_and_nothing_else(distributions, source):
    result = run(sys.executable, source / "packaging/check_distributions.py", "dist", cwd=source)
    assert "drrkit-" in result.stdout
    (wheel,) = distributions.glob("*.whl")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.split("-")[2:4] == [python, python]  # one wheel for each CPython


def test_wheel_works_from_another_directory(distributions, clean_python, tmp_path):
    (wheel,) = distributions.glob("*.whl")
    run(clean_python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    assert "works" in run(clean_python, "-c", SMOKE, cwd=tmp_path).stdout
    assert "read" in run(clean_python, "-c", DATA, cwd=tmp_path).stdout
    found = run(clean_python, "-c", REGISTRATION, cwd=tmp_path).stdout
    assert float(found.split()[-1]) < 1.0, found
    drrkit = clean_python.parent / "drrkit"
    assert "torch" in run(drrkit, "info", cwd=tmp_path).stdout
    doctor = json.loads(run(drrkit, "doctor", "--json", cwd=tmp_path).stdout)
    assert doctor
    run(clean_python, "-m", "pip", "uninstall", "-q", "-y", "drrkit", cwd=tmp_path)


def test_the_sdists_tests_pass_with_an_installed_wheel(distributions, clean_python, tmp_path):
    """What make check-torch does for each torch, here with this one and one file of tests."""
    tool = runpy.run_path(str(ROOT / "packaging" / "check_torch_versions.py"))
    (wheel,), (sdist,) = distributions.glob("*.whl"), distributions.glob("*.tar.gz")
    run(clean_python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    tests = tool["unpack_tests"](sdist, tmp_path / "tests")
    chosen = ("tests/geometry/test_motions.py",)
    row, step = tool["examine"](clean_python, tests, tmp_path / "log", chosen)
    assert step.fault is None and row.tests.endswith(" passed"), step
    assert row.run_with == row.built_with
    run(clean_python, "-m", "pip", "uninstall", "-q", "-y", "drrkit", cwd=tmp_path)


def test_sdist_builds_and_works(distributions, clean_python, tmp_path):
    (sdist,) = distributions.glob("*.tar.gz")
    command = ("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", sdist)
    run(clean_python, *command, cwd=tmp_path)
    assert "works" in run(clean_python, "-c", SMOKE, cwd=tmp_path).stdout
    run(clean_python, "-m", "pip", "uninstall", "-q", "-y", "drrkit", cwd=tmp_path)


def test_insisting_on_cuda_without_it_says_what_is_missing(source):
    import torch

    if torch.version.cuda:
        environment = {"DRRKIT_CUDA": "1", "CUDA_HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}
    else:
        environment = {"DRRKIT_CUDA": "1"}
    command = (sys.executable, "setup.py", "build_ext", "--inplace")
    result = run(*command, cwd=source, check=False, **environment)
    assert result.returncode != 0
    assert "DRRKIT_CUDA=1, but" in result.stderr
    assert torch.__version__ in result.stderr or "nvcc was not found" in result.stderr


def test_a_bad_switch_is_refused(source):
    command = (sys.executable, "setup.py", "build_ext", "--inplace")
    result = run(*command, cwd=source, check=False, DRRKIT_CUDA="yes")
    assert result.returncode != 0 and "DRRKIT_CUDA must be 0 or 1, got 'yes'" in result.stderr


def test_binary_that_does_not_load_names_both_versions(distributions, clean_python, tmp_path):
    """A binary for another torch fails in the loader; the message must say what disagrees."""
    (wheel,) = distributions.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    (binary,) = (tmp_path / "drrkit").glob("_C*.so")
    binary.write_bytes(b"not a shared object")
    record = tmp_path / "drrkit" / "_build.py"
    record.write_text("TORCH = '2.99.0+cu999'\nCUDA = '99.9'\nPYTHON = '3.11'\n")
    result = run(clean_python, "-c", "import drrkit", cwd=tmp_path, check=False)
    import torch

    assert result.returncode != 0
    assert "built for torch 2.99.0+cu999 (CUDA 99.9)" in result.stderr
    assert f"torch {torch.__version__}" in result.stderr


def test_missing_binary_says_how_to_build_it(source, clean_python):
    result = run(clean_python, "-c", "import drrkit", cwd=source, check=False)
    assert result.returncode != 0
    assert "drrkit._C is missing" in result.stderr and "--no-build-isolation" in result.stderr
