"""Networks, fields and checkpoints in files: what is damaged or something else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from drrkit import fields
from drrkit.similarity import save_similarity
from drrkit.training import Checkpoint, load_checkpoint
from drrkit.training.checkpoints import save_checkpoint
from tests.support.damaged_files import FORMATS


@pytest.mark.parametrize(
    "name, key, incomplete",
    [
        ("network.pt", "state", "weights do not fit their network"),
        ("field.pt", "state", "expected a whole field"),
        ("checkpoint.pt", "", r"expected a whole checkpoint, \['model'\] are missing"),
    ],
)
def test_what_is_no_whole_file_of_its_kind_is_refused(
    name: str, key: str, incomplete: str, tmp_path: Path
) -> None:
    path, form = tmp_path / name, FORMATS[name]

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=rf"{name}: {message}"):
            form.read(path)

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "was here",))

    with pytest.raises(FileNotFoundError):
        form.read(path)
    path.write_bytes(b"no network")
    refused("damaged")
    form.write(path)
    whole = torch.load(path, weights_only=True)
    tensors = (whole[key] if key else whole["model"]).values()
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(next(t for t in tensors if t.any()).numpy().tobytes())] ^= 1
    path.write_bytes(damaged)
    refused("damaged, the checksum")
    torch.save({"weights": torch.zeros(3)}, path)
    refused("expected a .* of drrkit, got another file of torch")
    torch.save({"schema": whole["schema"], "state": Evil()}, path)  # a pickled class: code
    refused("expected tensors and plain values")
    assert not (tmp_path / "was here").exists()
    torch.save({**whole, "schema_version": 99}, path)
    refused("expected schema_version 1, got 99")
    part = whole[key] if key else whole
    part.pop(next(reversed(part)) if key else "model")
    torch.save(whole, path)
    refused(incomplete)


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"content\['schedule'\]\['f'\]\[0\].*got function"):
        save_checkpoint(Checkpoint(0, {}, schedule={"f": [lambda: 0]}), tmp_path / "last.pt")
    with pytest.raises(TypeError, match="expected one made by build"):
        save_similarity(nn.Linear(1, 1), tmp_path / "linear.pt")
    with pytest.raises(TypeError, match="field: expected a NeTT or MNeRF"):
        fields.save_field(nn.Linear(2, 2), tmp_path / "linear.pt")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match=r"no best\.pt or last\.pt"):
        load_checkpoint(tmp_path)
