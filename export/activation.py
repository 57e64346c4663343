"""Which activation turns a classifier's logits into its answer, in vLLM's order."""

from __future__ import annotations

import re
from typing import Any

from transformers import PretrainedConfig

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint

AUTO = "auto"
"""vLLM's PoolerClassify: sigmoid of a lone logit, softmax of several."""

BY_PROBLEM = {"regression": "identity", "single_label_classification": AUTO, "multi_label_classification": "sigmoid"}
"""``problem_type`` of transformers' configurations."""

BY_CLASS = {
    "Identity": "identity",
    "Sigmoid": AUTO,
    "Softmax": AUTO,
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Softplus": "softplus",
    "LogSigmoid": "log_sigmoid",
    "LogSoftmax": "log_softmax",
    "Softmin": "softmin",
    "ReLU6": "relu6",
    "LeakyReLU": "leaky_relu",
    "ELU": "elu",
    "SELU": "selu",
    "Mish": "mish",
    "Softsign": "softsign",
    "Tanhshrink": "tanhshrink",
    "Hardtanh": "hardtanh",
    "Hardsigmoid": "hardsigmoid",
    "Hardswish": "hardswish",
}
"""Classes of torch.nn.modules. As in vLLM, Sigmoid and Softmax name the pair, and the number of logits decides."""

MODULES = re.compile(r"torch\.nn\.(modules\.(\w+\.)?)?\w*")
"""A class of torch.nn.modules by any of the packages that hold it: sentence-transformers imports what is named."""


def resolve_activation(config: PretrainedConfig, checkpoint: Checkpoint) -> str:
    """Return the name of a classifier's activation: by ``problem_type``, then by CrossEncoder's settings, else AUTO.

    Raises:
        ExportError: an activation that is no class of torch.nn.modules, or one that the runtime cannot do.
    """
    if config.problem_type in BY_PROBLEM:
        return BY_PROBLEM[str(config.problem_type)]
    name = _declared(config, checkpoint)
    if name is None:
        return AUTO
    if not isinstance(name, str) or not MODULES.fullmatch(name):
        raise ExportError(
            "Loading of activation functions is restricted to torch.nn.modules for security reasons; "
            f"the checkpoint asks for {name!r}"
        )
    word = name.rpartition(".")[2]
    if word not in BY_CLASS:
        raise ExportError(f"the activation {name} is not compiled; those that are: {', '.join(BY_CLASS)}")
    return BY_CLASS[word]


def _declared(config: PretrainedConfig, checkpoint: Checkpoint) -> Any:
    """Return the dotted name where CrossEncoder keeps it since sentence-transformers 5.4, or in config.json.

    What it writes into the first it leaves as it was in the second.
    """
    nested = getattr(config, "sentence_transformers", None)
    found = checkpoint.read_json("config_sentence_transformers.json")
    settings = found if isinstance(found, dict) else {}
    places = (
        settings.get("activation_fn") if settings.get("model_type") == "CrossEncoder" else None,
        nested.get("activation_fn") if isinstance(nested, dict) else None,
        getattr(config, "sbert_ce_default_activation_function", None),
        settings.get("activation_fn"),
    )
    return next((place for place in places if place is not None), None)
