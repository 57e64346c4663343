"""Versions of packages that may not be there: of ONNX Runtime there is one package or the other."""

from importlib import metadata

import numpy as np

from poolgraph.export.reference import tool_versions
from poolgraph.runtime.versions import installed_versions, read_version


def test_absent_packages_are_left_out():
    assert read_version("numpy") == np.__version__
    assert read_version("no-such-package") is None
    assert installed_versions(["no-such-package", "numpy"]) == {"numpy": np.__version__}


def test_the_report_of_an_export_names_the_onnxruntime_that_is_there(monkeypatch):
    real = metadata.version

    def version(package):
        if package == "onnxruntime":
            raise metadata.PackageNotFoundError(package)
        return "1.31.1" if package == "onnxruntime-gpu" else real(package)

    monkeypatch.setattr(metadata, "version", version)
    found = tool_versions()
    assert "onnxruntime" not in found
    assert found["onnxruntime-gpu"] == "1.31.1"
    assert {"torch", "transformers", "tokenizers"} < found.keys()
