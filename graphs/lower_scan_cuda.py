"""Passes: Mamba's scan and convolution to ONNX Runtime's operators of linear attention."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from poolgraph.graphs.pattern import (
    CONTRIB_DOMAIN,
    SEMANTIC_DOMAIN,
    add_integers,
    dimensions,
    producer,
    replace_node,
    used_once,
)


def lower_scan_to_linear_attention(model: ir.Model) -> int:
    """Lower selective scans to gated linear attention, whose kernel loops over the tokens by itself.

    A channel is a head whose key is the whole state's ``write`` and whose value is one number; all heads share the
    query. The decay is a logarithm.

    Given:   %y = poolgraph::SelectiveScan(%rows, %step, %transition, %write, %read)
    Result:  %y, _ = com.microsoft::LinearAttention(%read, repeat(%write), %step * %rows, , %step * %transition)
    """
    nodes = [node for node in model.graph if (node.domain, node.op_type) == (SEMANTIC_DOMAIN, "SelectiveScan")]
    for node in nodes:
        _lower(model.graph, node)
    return len(nodes)


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    rows, step, transition, write, read = node.inputs
    channels, state_size = (int(size) for size in dimensions(transition) or ())
    tape = Tape()
    graph.opset_imports[CONTRIB_DOMAIN] = 1

    flat = add_integers(graph, [0, 0, channels * state_size])
    spread = tape.op(
        "Expand", [tape.op("Unsqueeze", [write, add_integers(graph, [2])]), add_integers(graph, [1, 1, channels, 1])]
    )
    decay = tape.op("Mul", [tape.op("Unsqueeze", [step, add_integers(graph, [3])]), transition])
    inputs = [
        read,
        tape.op("Reshape", [spread, flat]),
        tape.op("Mul", [step, rows]),
        None,
        tape.op("Reshape", [decay, flat]),
    ]
    attributes: dict[str, int | float | str] = {
        "q_num_heads": 1,
        "kv_num_heads": channels,
        "update_rule": "gated",
        "scale": 1.0,
    }
    result, _ = tape.op_multi_out("LinearAttention", inputs, attributes, domain=CONTRIB_DOMAIN, num_outputs=2)
    replace_node(graph, node, tape.nodes, result)


def fuse_causal_conv(model: ir.Model) -> int:
    """Fuse a convolution of each channel with what is to its left, and SiLU behind it.

    Given:   %c = Conv(Pad(%x, [0, 0, taps - 1, 0, 0, 0]), %W, %b) {group: channels};  %y = Mul(%c, Sigmoid(%c))
    Result:  %y, _ = com.microsoft::CausalConvWithState(%x, %W, %b) {activation: silu}
    """
    graph = model.graph
    found = [(node, conv) for node in graph if (conv := _match_conv(node)) is not None]
    for node, conv in found:
        pad = conv.inputs[0].producer() if conv.inputs[0] is not None else None
        assert pad is not None
        tape = Tape()
        graph.opset_imports[CONTRIB_DOMAIN] = 1
        inputs = [pad.inputs[0], *conv.inputs[1:]]
        attributes: dict[str, int | str] = {"ndim": 1, "activation": "silu"}
        result, _ = tape.op_multi_out("CausalConvWithState", inputs, attributes, domain=CONTRIB_DOMAIN, num_outputs=2)
        replace_node(graph, node, tape.nodes, result)
    return len(found)


def _match_conv(node: ir.Node) -> ir.Node | None:
    """Return the convolution that ``node``, a product with its own sigmoid, activates."""
    if (node.domain, node.op_type) != ("", "Mul"):
        return None
    for rows, gate in (node.inputs, tuple(reversed(node.inputs))):
        sigmoid, conv = producer(gate, "Sigmoid"), producer(rows, "Conv")
        if conv is not None and sigmoid is not None and sigmoid.inputs[0] is rows and _is_causal(conv):
            return conv
    return None


def _is_causal(conv: ir.Node) -> bool:
    pad, weight = producer(conv.inputs[0], "Pad"), dimensions(conv.inputs[1]) or ()
    if pad is None or len(weight) != 3 or weight[1] != 1 or not used_once(pad.outputs[0]):
        return False
    pads = pad.inputs[1].const_value if pad.inputs[1] is not None else None
    plain = {"group": weight[0], "pads": (0, 0), "strides": (1,), "dilations": (1,)}
    given = {name: conv.attributes[name].value for name in plain if name in conv.attributes}
    is_plain = all(
        tuple(np.atleast_1d(given.get(name, want))) == tuple(np.atleast_1d(want)) for name, want in plain.items()
    )
    return is_plain and pads is not None and pads.numpy().tolist() == [0, 0, int(weight[2]) - 1, 0, 0, 0]
