"""An export that ends at any moment: nothing that it leaves loads."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poolgraph import PoolingModel
from poolgraph.errors import PoolgraphError
from poolgraph.export import exporter
from poolgraph.export.exporter import export_model
from poolgraph.graphs import artifact as artifact_module
from poolgraph.graphs.artifact import is_artifact

pytestmark = pytest.mark.slow


def loadable(parent: Path) -> list[str]:
    """Directories below ``parent``, hidden ones too, that load as they are (as artifacts, not as checkpoints)."""
    found = []
    for directory in filter(is_artifact, [parent, *(path for path in parent.rglob("*") if path.is_dir())]):
        try:
            PoolingModel.load(directory).close()
        except PoolgraphError:
            continue
        found.append(directory.name)
    return found


@pytest.fixture(scope="module")
def moments(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What lies beside the output at each moment of one export: what a kill at that moment would leave."""
    parent, kept = tmp_path_factory.mktemp("outputs"), tmp_path_factory.mktemp("moments")
    taken: dict[str, Path] = {}

    def take(moment: str) -> None:
        name = f"{len(taken):02} {moment}"
        taken[name] = Path(shutil.copytree(parent, kept / name, symlinks=True))

    def around(function: Callable) -> Callable:
        def wrapped(*arguments, **options):
            take(f"before {function.__name__}")
            result = function(*arguments, **options)
            take(f"after {function.__name__}")
            return result

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in ("save_graphs", "save_tokenizer", "save_probes", "save_manifest", "verify_variant", "record_files"):
            patch.setattr(exporter, name, around(getattr(exporter, name)))
        patch.setattr(artifact_module, "_replace_directory", around(artifact_module._replace_directory))
        export_model(checkpoint, parent / "artifact", on_stage=take)
    PoolingModel.load(parent / "artifact").close()
    return taken


def test_the_moments_cover_the_export(moments: dict[str, Path]) -> None:
    assert len(moments) > 20
    names = " ".join(moments)
    assert all(word in names for word in ("trace (uniform)", "after save_graphs", "after verify_variant"))
    assert sum((path / "artifact").exists() for path in moments.values()) == 1


def test_nothing_loads_before_the_export_is_done(moments: dict[str, Path]) -> None:
    *unfinished, last = moments
    assert {name: found for name in unfinished if (found := loadable(moments[name]))} == {}
    assert loadable(moments[last]) == ["artifact"]


KILLED = """
import os, signal, sys
from pathlib import Path
from poolgraph.export import exporter

original, done = exporter.verify_variant, []

def verify(*arguments, **options):
    if sys.argv[3] == "in the middle of verifying" and done:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(True)
    return original(*arguments, **options)

def stage(name):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

exporter.verify_variant = verify
exporter.export_model(sys.argv[1], Path(sys.argv[2]), on_stage=stage)
"""


@pytest.mark.parametrize("moment", ["write the graphs", "in the middle of verifying"])
def test_kill(moment: str, checkpoint: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(checkpoint), str(tmp_path / "artifact"), moment]
    process = subprocess.run(command, check=False, env=environment, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert not (tmp_path / "artifact").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".artifact.")
    assert loadable(tmp_path) == []
