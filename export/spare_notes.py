"""Notes that a trace need not take: lines of source, Python code of its programs, what ONNX's operators take.

Torch writes the lines of the model's source that led to each operator, and makes Python code of a program whenever a
step has edited it: some twenty times, though nothing runs it. Translating, it parses what an operator takes anew for
each node. None of it is in a graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch.fx
from torch.fx import graph_module


@contextlib.contextmanager
def spared_notes() -> Iterator[None]:
    """Within, torch traces and translates without lines, summaries and signatures anew: for traces only."""
    with contextlib.ExitStack() as stack:
        if (config := getattr(torch.fx, "config", None)) is not None:
            stack.enter_context(replaced(config, "do_not_emit_stack_traces", True))
        stack.enter_context(no_summaries())
        stack.enter_context(known_signatures())
        yield


@contextlib.contextmanager
def code_on_demand() -> Iterator[None]:
    """Within, a program becomes Python code when it is called.

    Not for decomposing it: torch writes code of its own into the check of a program's inputs, which is then run.
    """
    place: Any = graph_module
    try:  # private places: where they have moved, traces only take longer
        tree_code, wrapped_call = place._PyTreeCodeGen, place._WrappedCall
        original, recompile_submodules = place.GraphModule.recompile, place.GraphModule._recompile_submodules
    except AttributeError:
        yield
        return

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        original(self)
        return self.forward(*args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._wrapped_call(self, *args, **kwargs)

    def postpone(self: Any) -> None:
        if isinstance(self._graph._codegen, tree_code):
            self._in_spec = self._graph._codegen.pytree_info.in_spec
            self._out_spec = self._graph._codegen.pytree_info.out_spec
        own: Any = type(self)  # each program has a class of its own
        if "_wrapped_call" not in vars(own):
            own._wrapped_call = wrapped_call(own, vars(own).get("__call__"))
        own.forward, own.__call__ = forward, call
        recompile_submodules(self)

    with replaced(graph_module.GraphModule, "recompile", postpone):
        yield


@contextlib.contextmanager
def no_summaries() -> Iterator[None]:
    """Within, nodes have no summary of their tensor's shape beside the tensor itself, which all that follows reads."""
    try:
        from torch.fx.experimental import proxy_tensor
    except ImportError:
        yield
        return
    with replaced(proxy_tensor, "_extract_tensor_metadata", lambda *_, **__: None):
        yield


_SIGNATURES: dict[tuple[str, str, int], Any] = {}
"""What operators of ONNX take, by domain, name and version; only read once they are there."""


@contextlib.contextmanager
def known_signatures() -> Iterator[None]:
    """Within, the signature of an operator of ONNX is parsed once a process, not once a node."""
    try:
        from onnx_ir.schemas import OpSignature
    except ImportError:
        yield
        return
    original = OpSignature.from_op_schema

    def find(schema: Any) -> Any:
        key = (schema.domain, schema.name, schema.since_version)
        if key not in _SIGNATURES:
            _SIGNATURES[key] = original(schema)
        return _SIGNATURES[key]

    with replaced(OpSignature, "from_op_schema", staticmethod(find)):
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, replacement: object) -> Iterator[None]:
    """Within, an attribute of a class or module is another; where there is none of that name, nothing is done."""
    if name not in owner.__dict__:  # another torch
        yield
        return
    original = owner.__dict__[name]
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)
