"""The activation of a classifier: the order of its sources, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig

from poolgraph.errors import ExportError
from poolgraph.export.activation import AUTO, BY_CLASS, BY_PROBLEM, resolve_activation
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.runtime.activations import ACTIVATIONS

TORCH = "torch.nn.modules.activation."
IDENTITY = "torch.nn.modules.linear.Identity"


def resolve(folder: Path, *, file: Any = None, **config: Any) -> str:
    if file is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(file))
    made = BertConfig()
    for name, value in config.items():
        setattr(made, name, value)
    return resolve_activation(made, Checkpoint(folder=folder, model="m", revision=None))


def nested(name: Any) -> dict[str, Any]:
    return {"sentence_transformers": {"activation_fn": name, "version": "5.0.0"}}


def older(name: Any) -> dict[str, Any]:
    return {"sbert_ce_default_activation_function": name}


def of_file(name: Any) -> dict[str, Any]:
    return {"file": {"activation_fn": name, "model_type": "CrossEncoder"}}


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({}, "auto"),
        # problem_type comes first
        ({"problem_type": "regression"}, "identity"),
        ({"problem_type": "single_label_classification"}, "auto"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"problem_type": "regression", **nested(TORCH + "Tanh"), **older(TORCH + "ReLU")}, "identity"),
        ({"problem_type": "multi_label_classification", **of_file(IDENTITY)}, "sigmoid"),
        ({"problem_type": "single_label_classification", **older(IDENTITY)}, "auto"),
        # then CrossEncoder's own file, the configuration's section, the older key
        ({**nested(TORCH + "Tanh"), **older(TORCH + "ReLU"), **of_file(IDENTITY)}, "identity"),
        ({**nested(TORCH + "Tanh"), **older(TORCH + "ReLU"), **of_file(None)}, "tanh"),
        ({**older(TORCH + "ReLU"), **of_file(IDENTITY)}, "identity"),
        ({**older(TORCH + "ReLU"), "file": {"activation_fn": IDENTITY, "model_type": "SentenceTransformer"}}, "relu"),
        (of_file(IDENTITY), "identity"),
        ({**nested(None), **older(TORCH + "ReLU")}, "relu"),
        ({"sentence_transformers": {"version": "4.1.0"}, **older(IDENTITY)}, "identity"),
        ({"sentence_transformers": "no section"}, "auto"),
        ({**older(None), **of_file(TORCH + "SiLU")}, "silu"),
        (of_file(None), "auto"),
        ({"file": {"prompts": {}}}, "auto"),
        # Sigmoid and Softmax name the pair
        (nested(TORCH + "Sigmoid"), "auto"),
        (older(TORCH + "Softmax"), "auto"),
        (older(IDENTITY), "identity"),
        (older(TORCH + "GELU"), "gelu"),
        (older(TORCH + "Softplus"), "softplus"),
        (older(TORCH + "LogSigmoid"), "log_sigmoid"),
        (older(TORCH + "LogSoftmax"), "log_softmax"),
        # a class may be spelled out by any of the packages that hold it
        (nested("torch.nn.Identity"), "identity"),
        (older("torch.nn.modules.Tanh"), "tanh"),
        (of_file("torch.nn.Sigmoid"), "auto"),
        (of_file("torch.nn.Identity"), "identity"),
    ],
)
def test_order_of_the_sources(tmp_path: Path, sources: dict[str, Any], expected: str) -> None:
    assert resolve(tmp_path, **sources) == expected


@pytest.mark.parametrize("place", [nested, older, of_file])
@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "my.torch.nn.modules.Tanh",
        "torch.nn.functional.tanh",
        "torch.Tanh",
        "torch.nnx.Tanh",
        "Sigmoid",
        "",
        3,
    ],
)
def test_functions_of_other_packages_are_refused(tmp_path: Path, place: Any, name: Any) -> None:
    with pytest.raises(ExportError) as caught:
        resolve(tmp_path, **place(name))
    assert str(caught.value) == (
        "Loading of activation functions is restricted to torch.nn.modules for security reasons; "
        f"the checkpoint asks for {name!r}"
    )


@pytest.mark.parametrize("place", [nested, older, of_file])
@pytest.mark.parametrize("name", ["activation.PReLU", "activation.NoSuchThing", "linear.Linear", "activation."])
def test_classes_that_the_runtime_cannot_do_are_refused_by_name(tmp_path: Path, place: Any, name: str) -> None:
    with pytest.raises(ExportError) as caught:
        resolve(tmp_path, **place(f"torch.nn.modules.{name}"))
    assert f"the activation torch.nn.modules.{name} is not compiled; those that are: Identity, " in str(caught.value)


def test_problem_type_is_not_stopped_by_a_name_that_it_beats(tmp_path: Path) -> None:
    assert resolve(tmp_path, problem_type="regression", **older("os.system")) == "identity"


def test_every_class_gets_what_torch_computes() -> None:
    import torch

    assert {*BY_CLASS.values(), *BY_PROBLEM.values()} <= set(ACTIVATIONS)
    rows = np.linspace(-9, 9, 24).reshape(4, 6)
    for name, word in BY_CLASS.items():
        if word == AUTO:
            assert name in {"Sigmoid", "Softmax"}
            continue
        module = getattr(torch.nn, name)(**({"dim": -1} if name in {"Softmin", "LogSoftmax"} else {}))
        np.testing.assert_allclose(ACTIVATIONS[word](rows), module(torch.from_numpy(rows)).numpy(), atol=1e-12)
