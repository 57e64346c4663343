import pytest

from poolgraph.errors import ArtifactError, InputError
from poolgraph.runtime.cache import resolve_artifact
from poolgraph.runtime.loading import resolve_directory
from poolgraph.runtime.model_paths import check_model_path, is_local_path

RESOLVERS = pytest.mark.parametrize("resolve", [resolve_directory, resolve_artifact, check_model_path])


@RESOLVERS
@pytest.mark.parametrize("path", ["/no/such/folder", "../folder", "./folder", "~/folder", "a/b/c"])
def test_local_paths_without_a_folder(resolve, path):
    with pytest.raises(InputError, match=f"^no such folder: {path}"):
        resolve(path)


@pytest.mark.parametrize("name", ["name", "owner/name", "owner/name.v1"])
def test_hub_ids_are_no_local_paths(name):
    assert not is_local_path(name)
    assert str(check_model_path(name)) == name


@RESOLVERS
@pytest.mark.parametrize(
    ("model", "message"),
    [(None, "not None"), (3, "not int"), (["a"], "not list"), (b"a", "not bytes"), ("a" * 5000, "File name too long")],
)
def test_what_is_no_path(resolve, model, message):
    with pytest.raises(InputError, match=message) as caught:
        resolve(model)
    assert len(caught.value.message) < 200


@RESOLVERS
@pytest.mark.parametrize("lost", ["poolgraph.json", "probes.json"])
def test_an_artifact_that_lost_its_manifest(artifact, resolve, lost):
    (artifact / "config.json").write_text("{}")
    (artifact / "poolgraph.json").unlink()
    if lost == "poolgraph.json":
        (artifact / "probes.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"poolgraph\.json is missing from the artifact .*; export the checkpoint"):
        resolve(artifact)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "0_Transformer/model.safetensors"])
def test_a_checkpoint_with_onnx_files_of_its_own(tmp_path, weights):
    (tmp_path / "onnx").mkdir()
    (tmp_path / weights).parent.mkdir(exist_ok=True)
    (tmp_path / weights).touch()
    assert check_model_path(tmp_path) == tmp_path
