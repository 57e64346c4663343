"""A tiny checkpoint for all tests of exports; read it, never write to it."""

from pathlib import Path

import pytest
from tiny_models import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT of 2 layers with mean pooling and Normalize, as sentence-transformers saves it."""
    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", "BertModel")
