"""Op rules of packed sequences: samples of several lengths in one tensor without padding."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.flow import Flow, rule
from secateur.graph.program import Call, Node, Ref
from secateur.graph.sizes import Dim, Sized


@rule("_pack_padded_sequence")
def pack(flow: Flow, node: Node) -> None:
    """[time, batch, *features] becomes [steps of all samples, *features] and batch sizes."""
    dims = flow.dims(node.args[0])
    flow.pin(node, [*dims[:2], *flow.dims(node.args[1])], "steps are packed by the lengths")
    packed, sizes = flow.out_shape(node, 0), flow.out_shape(node, 1)
    steps = flow.pinned(packed[0], f"{flow.where(node)}: steps of all samples")
    flow.set(node, [steps, *dims[2:]], 0)
    flow.set(node, [flow.pinned(n, f"{flow.where(node)}: batch sizes") for n in sizes], 1)


def padded_sizes(call: Call, shape: Sequence[int]) -> tuple[int, ...]:
    """Return what ``_pad_packed_sequence`` states of its result [time, batch, *features].

    The features have the sizes that they have in the packed tensor [steps, *features].
    """
    packed = call.args[0]
    assert isinstance(packed, Ref)
    features = (Sized(n, Dim(packed.key, d)) for d, n in enumerate(shape[2:], 1))
    return (*shape[:2], *features)
