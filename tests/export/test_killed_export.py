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
from poolgraph.export import compile as compile_module
from poolgraph.export import verify_artifact
from poolgraph.export.exporter import export_model
from poolgraph.graphs import artifact as artifact_module
from poolgraph.graphs.artifact import is_artifact

pytestmark = pytest.mark.slow


WATCHED = (
    (compile_module, "save_graphs"),
    (compile_module, "save_tokenizer"),
    (verify_artifact, "save_probes"),
    (verify_artifact, "save_manifest"),
    (verify_artifact, "verify_variant"),
    (verify_artifact, "record_files"),
)
"""What an export writes with, and what it runs before it is done."""


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
        for module, name in WATCHED:
            patch.setattr(module, name, around(getattr(module, name)))
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
import transformers.models.bert.modeling_bert
sys.path.insert(0, sys.argv[1])
from shared_traces import shared_traces
from poolgraph.export import exporter, verify_artifact

def export(moment, output):
    original, done = verify_artifact.verify_variant, []

    def verify(*arguments, **options):
        if moment == "in the middle of verifying" and done:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(True)
        return original(*arguments, **options)

    def stage(name):
        if name == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    verify_artifact.verify_variant = verify
    with shared_traces(Path(sys.argv[2])):
        exporter.export_model(sys.argv[3], output, on_stage=stage)

for moment in sys.argv[5:]:
    folder = Path(sys.argv[4], moment)
    folder.mkdir()
    child = os.fork()
    if child == 0:
        export(moment, folder / "artifact")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Forks for each export, before there are threads: what all of them import takes longer than they do."""

KILLS = ("write the graphs", "in the middle of verifying")


@pytest.fixture(scope="module")
def killed(
    checkpoint: Path, traces_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, int], str]:
    """The outputs' folders by moment of the kill, how the exports ended, and what they said."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    folders = (Path(__file__).parents[1], traces_folder, checkpoint, folder)
    command = [sys.executable, "-c", KILLED, *map(str, folders), *KILLS]
    process = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    return folder, dict(zip(KILLS, map(int, process.stdout.split()), strict=True)), process.stderr


@pytest.mark.parametrize("moment", KILLS)
def test_kill(moment: str, killed: tuple[Path, dict[str, int], str]) -> None:
    folder, codes, errors = killed
    assert codes[moment] == -signal.SIGKILL, errors
    assert not (folder / moment / "artifact").exists()
    (left,) = (folder / moment).iterdir()
    assert left.name.startswith(".artifact.")
    assert loadable(folder / moment) == []
