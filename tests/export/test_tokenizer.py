"""The artifact's tokenizer.json: the checkpoint's own where it says the same, a converted one else."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from tiny_models import HeadSpec, bert_tokenizer, roberta_tokenizer, save_head
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerBase

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import open_checkpoint
from poolgraph.export.options import ExportOptions
from poolgraph.export.probes import PROBE_SENTENCES
from poolgraph.export.resolve import ExportPlan, resolve_plan
from poolgraph.export.sentence_transformers import SentenceTransformer
from poolgraph.export.tokenizer import load_tokenizer, save_tokenizer

TEXTS = [*PROBE_SENTENCES, "", "UPPER", " ".join(["long"] * 300)]


def write(folder: Path, tokenizer: PreTrainedTokenizerBase | None, *, do_lower_case: bool = False) -> Path:
    BertConfig(architectures=["BertModel"], vocab_size=400).save_pretrained(folder)
    save_head(folder, HeadSpec(do_lower_case=do_lower_case), 768)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def make_plan(folder: Path) -> ExportPlan:
    checkpoint = open_checkpoint(folder)
    return resolve_plan(
        checkpoint, options=ExportOptions(), precisions=["fp32"], targets=["cpu"], trust_remote_code=False
    )


def convert(folder: Path, target: Path) -> tuple[Tokenizer, PreTrainedTokenizerBase]:
    target.mkdir()
    reference = make_plan(folder).tokenizer
    save_tokenizer(reference, folder, target, list(PROBE_SENTENCES))
    return Tokenizer.from_file(str(target / "tokenizer.json")), reference


def plain_ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def test_own_file_is_kept_byte_for_byte(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", bert_tokenizer())
    own = json.dumps(json.loads((folder / "tokenizer.json").read_text()), indent=7).encode()
    (folder / "tokenizer.json").write_bytes(own)
    convert(folder, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == own


def test_truncation_and_padding_in_the_own_file_are_kept_with_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", bert_tokenizer())
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.enable_truncation(8)
    own.enable_padding(length=8)
    own.save(str(folder / "tokenizer.json"))
    before = (folder / "tokenizer.json").read_bytes()
    _, reference = convert(folder, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == before
    assert (folder / "tokenizer.json").read_bytes() == before
    assert len(reference(TEXTS[-1])["input_ids"]) > 8


def test_minilm_keeps_its_file_with_the_truncation_baked_in(minilm_checkpoint: Path, tmp_path: Path) -> None:
    saved, reference = convert(minilm_checkpoint, tmp_path / "out")
    own = (minilm_checkpoint / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == own
    assert saved.truncation is not None  # 128 tokens, where the model takes 256: the runtime must switch it off
    assert plain_ids(saved, TEXTS) == reference(TEXTS)["input_ids"]
    assert len(plain_ids(saved, TEXTS)[-1]) == 302


@pytest.mark.parametrize("lower", [True, False])
def test_checkpoint_with_a_vocabulary_alone(tmp_path: Path, lower: bool) -> None:
    folder = write(tmp_path / "checkpoint", None)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "light", "##house", "upper", "UPPER", "counts", ","]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    saved, reference = convert(folder, tmp_path / "out")
    texts = ["A lighthouse, UPPER", "upper a", ""]
    assert plain_ids(saved, texts) == reference(texts)["input_ids"]
    expected = [2, 5, 6, 7, 11, 8, 3] if lower else [2, 1, 6, 7, 11, 9, 3]
    assert plain_ids(saved, texts)[0] == expected
    assert saved.truncation is None
    assert saved.padding is None


def test_own_file_that_says_something_else_is_converted(tmp_path: Path) -> None:
    """Transformers may build another tokenizer than the file says: the reference's ids count."""
    folder = write(tmp_path / "checkpoint", bert_tokenizer(), do_lower_case=False)
    reference = make_plan(folder).tokenizer
    reference.backend_tokenizer.normalizer = None  # capitals are unknown now
    target = tmp_path / "out"
    target.mkdir()
    save_tokenizer(reference, folder, target, list(PROBE_SENTENCES))
    saved = Tokenizer.from_file(str(target / "tokenizer.json"))
    assert plain_ids(saved, TEXTS) == reference(TEXTS)["input_ids"]
    assert plain_ids(saved, TEXTS) != plain_ids(Tokenizer.from_file(str(folder / "tokenizer.json")), TEXTS)


def test_lower_casing_is_baked_in(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", roberta_tokenizer(), do_lower_case=True)
    saved, _ = convert(folder, tmp_path / "out")
    plain = AutoTokenizer.from_pretrained(folder)
    lowered = [text.lower() for text in TEXTS]
    assert plain_ids(saved, TEXTS) == plain(lowered)["input_ids"]
    assert plain_ids(saved, TEXTS) != plain(TEXTS)["input_ids"]


def test_lower_casing_that_is_there_is_not_repeated(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", bert_tokenizer(), do_lower_case=True)
    convert(folder, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_converted_file_is_readable_text(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", roberta_tokenizer(), do_lower_case=True)
    convert(folder, tmp_path / "out")
    content = (tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8")
    assert "\n" in content
    assert any(unicodedata.category(letter) == "Ll" and ord(letter) > 127 for letter in content)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_tokenizer_that_cannot_be_loaded(tmp_path: Path, content: str | None) -> None:
    folder = write(tmp_path / "checkpoint", None)
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ExportError, match="tokenizer"):
        load_tokenizer(folder, SentenceTransformer(), trust_remote_code=False)
