"""The passes of a proof, and what train mode does not compare."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from secateur.graph.input_sizes import with_shapes
from secateur.graph.passes import Pass
from secateur.plan import Plan


def passes_to_compare(plan: Plan, passes: Sequence[Pass]) -> list[tuple[Pass, int | None]]:
    """Return the passes that run different operations, and the traced path of each.

    An example that was not traced has none; in train mode it is left out.
    """
    paths = {
        (one.example, one.method, one.training): one.path for one in plan.passes if not one.shapes
    }
    found: dict[tuple[int, int | None], tuple[Pass, int | None]] = {}
    for one in passes:
        path = paths.get((one.example, one.method, one.training))
        if path is not None or not one.training:
            found.setdefault((one.example, path), (one, path))
    resized = (
        (Pass(with_shapes(passes[0].inputs, one.shapes), shapes=one.shapes), one.path)
        for one in plan.passes
        if one.shapes
    )
    return [*found.values(), *((one, path) for one, path in resized if one.inputs is not None)]


def share_statistics(model: nn.Module, network: nn.Module, plan: Plan) -> None:
    """Give batch norms of ``network`` the running statistics of the dense ``model``.

    In train mode they normalise by the batch, so what their running statistics are is no matter.
    """
    modules = dict(model.named_modules())
    for name, module in network.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        for key in ("running_mean", "running_var"):
            whole, part = getattr(modules[name], key), getattr(module, key)
            if whole is None or part is None:
                continue
            gone = set(plan.cuts.get(f"{name}.{key}", {}).get(0, ()))
            if len(whole) - len(gone) == len(part):
                whole = whole[[i for i in range(len(whole)) if i not in gone]]
            if len(whole) == len(part):
                part.copy_(whole)
