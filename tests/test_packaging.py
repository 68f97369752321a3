"""The sdist and the wheel work where a user installs them; a build that cannot work says why."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

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
        ".venv",
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


def test_wheel_works_from_another_directory(distributions, clean_python, tmp_path):
    (wheel,) = distributions.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("drrkit/_C") and name.endswith(".so") for name in names)
    assert "drrkit/_build.py" in names and "drrkit/py.typed" in names
    assert not any(name.startswith(("tests", "csrc", "bench")) for name in names)
    run(clean_python, "-m", "pip", "install", "-q", "--no-deps", wheel, cwd=tmp_path)
    assert "works" in run(clean_python, "-c", SMOKE, cwd=tmp_path).stdout
    info = run(clean_python, "-m", "drrkit", "info", cwd=tmp_path).stdout
    assert "torch" in info
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
