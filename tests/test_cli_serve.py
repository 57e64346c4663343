"""`poolgraph serve`: options to settings, keys from all their places, and errors on one line."""

import argparse
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from poolgraph.cli import build_parser
from poolgraph.cli_command import given_options, name_of
from poolgraph.cli_serve import (
    ENGINE_OPTIONS,
    SERVER_OPTIONS,
    parse_size,
    read_api_keys,
    read_arguments,
)
from poolgraph.errors import InputError
from poolgraph.serving.settings import ServeSettings


def parse(*arguments: str):
    return build_parser().parse_args(["serve", *arguments])


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("100", 100), ("64K", 65536), ("512M", 512 * 2**20), ("2g", 2**31), ("1GiB", 2**30), ("1TB", 2**40)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "1X", "1 M"])
def test_wrong_sizes(text):
    with pytest.raises(argparse.ArgumentTypeError, match="64K, 512M, 2G"):
        parse_size(text)


def test_options_become_settings(monkeypatch):
    monkeypatch.delenv("POOLGRAPH_API_KEY", raising=False)
    models, settings = read_arguments(
        parse(
            *["a", "b", "--served-model-name", "x", "y", "--host", "0.0.0.0", "--port", "9000", "--max-body", "1M"],
            *["--cache", "512M", "--cache-path", "c.db", "--long-text", "chunk", "--chunk-overlap", "16"],
            *["--max-queue-tokens", "1000", "--max-wait-ms", "1.5", "--tokenizer-threads", "3", "--no-docs"],
            *["--cors-origin", "https://a.example", "--cors-origin", "https://b.example", "--grace", "5"],
            *["--hf-overrides", '{"a": 1}', "--convert", "embed", "--threads", "1", "--trust-request-chat-template"],
            *["--variant", "cuda_fp16", "--fallback"],
        )
    )
    assert [model.model for model in models] == ["a", "b"]
    assert (models[1].hf_overrides, models[1].convert, models[1].threads) == ({"a": 1}, "embed", 1)
    assert (models[0].variant, models[0].fallback, models[0].allow_unverified) == ("cuda_fp16", True, False)
    assert settings.served_model_names == ("x", "y")
    assert (settings.host, settings.port, settings.max_body_bytes, settings.grace) == ("0.0.0.0", 9000, 2**20, 5.0)
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.trust_request_chat_template
    assert not settings.allow_docs
    engine = settings.engine
    assert (engine.cache_bytes, str(engine.cache_path), engine.long_text) == (512 * 2**20, "c.db", "chunk")
    assert (engine.chunk_overlap, engine.max_queue_tokens, engine.max_wait_ms) == (16, 1000, 1.5)
    assert engine.num_tokenizer_threads == 3


def test_what_is_not_given_is_left_to_the_settings():
    assert given_options(parse("m"), SERVER_OPTIONS) == given_options(parse("m"), ENGINE_OPTIONS) == {}


def test_every_setting_has_an_option_and_its_default_is_told():
    options = {name_of(option): option for option in SERVER_OPTIONS}
    settings = {field.name: field for field in fields(ServeSettings) if field.name not in ("engine", "api_keys")}
    assert set(options) == set(settings)
    for name, option in options.items():
        default = settings[name].default
        told = re.search(r"\(default: (\S+)\)", option.options["help"])
        if told and not isinstance(default, (tuple, type(None))):
            as_number = parse_size(told[1]) if re.match(r"\d+[KM]?$", told[1]) else told[1]
            assert as_number == default, name
        else:
            assert default in ((), None, True, False), name


def test_every_engine_option_is_a_setting():
    from poolgraph.serving.engine_settings import EngineSettings

    assert {name_of(option) for option in ENGINE_OPTIONS} <= {field.name for field in fields(EngineSettings)}


# --- keys


def test_keys_come_from_options_file_and_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("two\n\n three \n")
    assert read_api_keys(["one"], str(file), {"POOLGRAPH_API_KEY": "four one"}) == ("one", "two", "three", "four")
    assert read_api_keys(None, None, {}) == ()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_a_file_without_keys_does_not_open_the_server(tmp_path, content):
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(InputError, match="--api-key-file"):
        read_api_keys(None, str(file), {})
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_api_keys(None, str(tmp_path / "none"), {})


def test_an_empty_variable_does_not_open_the_server():
    with pytest.raises(InputError, match="POOLGRAPH_API_KEY is empty"):
        read_api_keys(None, None, {"POOLGRAPH_API_KEY": " "})


def test_a_key_is_not_repeated_in_an_error(monkeypatch):
    monkeypatch.setenv("POOLGRAPH_API_KEY", "kéy-SECRET")
    with pytest.raises(InputError) as caught:
        read_arguments(parse("m"))
    assert "SECRET" not in str(caught.value)


# --- what is loaded


def test_the_help_loads_nothing_heavy():
    code = (
        "import sys; from poolgraph.cli import main; code = main(['serve', '--help']);"
        "print(code, [m for m in ('numpy', 'uvicorn', 'onnxruntime', 'msgspec', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "--trust-remote-code" in done.stdout
