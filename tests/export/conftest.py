"""A tiny checkpoint for all tests of exports; read it, never write to it."""

from pathlib import Path

import pytest
from tiny_models import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT of 2 layers with mean pooling and Normalize, as sentence-transformers saves it."""
    folder = save_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", "BertModel")
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    return folder
