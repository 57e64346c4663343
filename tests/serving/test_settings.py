"""Settings are valid once built, and errors name the option."""

import pytest

from poolgraph.errors import InputError
from poolgraph.serving.settings import ServeSettings


def test_defaults_are_valid_and_local():
    settings = ServeSettings(engine=None)
    assert (settings.host, settings.port, settings.api_keys, settings.cors_origins) == ("127.0.0.1", 8000, (), ())
    assert settings.connection_limits().read_timeout_s == settings.read_timeout


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("port", 65536, r"--port must be a port from 0 to 65535, not 65536"),
        ("port", -1, "--port"),
        ("host", " ", "--host"),
        ("api_keys", ("good", ""), "--api-key must be printable"),
        ("api_keys", ("two words",), "--api-key must be printable"),
        ("api_keys", ("über",), "--api-key must be printable"),
        ("public_routes", ("/v1/embeddings",), r"--public-route must be one of .*'/v1/embeddings'"),
        ("served_model_names", ("",), "--served-model-name"),
        ("max_body_bytes", 0, "--max-body"),
        ("max_texts", 0, "--max-texts"),
        ("max_header_bytes", 10, "--max-header-bytes"),
        ("read_timeout", 0.0, "--read-timeout must be a number of seconds above 0, not 0.0"),
        ("read_timeout", float("nan"), "--read-timeout"),
        ("request_timeout", float("inf"), "--request-timeout"),
        ("grace", -1.0, "--grace"),
        ("cors_origins", ("example.org",), "--cors-origin"),
        ("cors_origins", ("https://a.example/path",), "--cors-origin"),
        ("log_format", "xml", "--log-format"),
        ("log_level", "loud", "--log-level"),
        ("otlp_endpoint", "collector:4318", "--otlp-endpoint"),
    ],
)
def test_a_wrong_value_is_named_by_its_option(name, value, said):
    with pytest.raises(InputError, match=said):
        ServeSettings(engine=None, **{name: value})


def test_keys_are_never_shown():
    assert "my-key" not in repr(ServeSettings(engine=None, api_keys=("my-key",)))
    with pytest.raises(InputError) as caught:
        ServeSettings(engine=None, api_keys=("my key",))
    assert "my key" not in str(caught.value)
