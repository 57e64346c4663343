"""The checkpoint that an artifact was made from, found again for engines that run it; torch is not needed for that."""

from __future__ import annotations

from pathlib import Path

from poolgraph.errors import InputError
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.graphs.manifest import Manifest, Source
from poolgraph.runtime.model_paths import check_model_path, is_checkpoint_dir


def find_checkpoint(manifest: Manifest, given: str | None) -> Path:
    """Return the folder of an artifact's checkpoint, which nothing is downloaded for.

    Args:
        manifest: The artifact's.
        given: The folder, or a hub id that is in the hub's cache; None looks for what the manifest names.

    Raises:
        InputError: it is not at hand, or it is another checkpoint than the artifact's.
    """
    source = manifest.source
    name = source.model if given is None else given
    folder = Path(name) if given is None else check_model_path(name)
    if not is_checkpoint_dir(folder):
        if given is not None and folder.is_dir():
            raise InputError(f"{folder} has neither config.json nor modules.json, so it is not a checkpoint")
        folder = _find_in_cache(name, source)
    found = open_checkpoint(folder).content_hash
    if found != source.content_hash:
        raise InputError(
            f"{folder} is not the checkpoint of this artifact: its files' hash is {found[:12]}, the artifact was made "
            f"from {source.content_hash[:12]} ({source.model}); give its folder with --checkpoint",
            parameter="checkpoint",
        )
    return folder


def _find_in_cache(name: str, source: Source) -> Path:
    revision = source.revision if name == source.model else None
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception as error:
        raise InputError(
            f"the checkpoint {name!r} is neither a folder here nor in the hub's cache; give the folder of the "
            "artifact's checkpoint with --checkpoint",
            parameter="checkpoint",
            value=name,
        ) from error
