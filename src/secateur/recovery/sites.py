"""Where a network's layers stand: what follows each, and what is added to its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.graph import Graph
from secateur.graph.program import Node, Program, Ref, family
from secateur.plan import Plan

_PRODUCTS = frozenset(
    f"aten.{name}" for name in ("convolution", "mm", "addmm", "bmm", "baddbmm", "linear", "matmul")
)
_NORMS = frozenset(
    f"aten.{name}"
    for name in (
        "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training",
        "_native_batch_norm_legit", "_batch_norm_no_update", "batch_norm",
    )
)  # fmt: skip
_VIEWS = frozenset(f"aten.{name}" for name in ("view", "_unsafe_view", "reshape", "clone"))
_SUMS = ("aten.add", "aten.add_")


@dataclass(frozen=True)
class Skip:
    """The other operand of the addition that follows a layer.

    It is argument ``arg`` of an operation; ``module`` is the path in the site's scope of the
    module that runs it, and ``turn`` how many of its family that ran before.
    """

    op: str
    module: str
    turn: int
    arg: int


@dataclass(frozen=True)
class Site:
    """A layer that can be solved for.

    Attributes:
        name: path of the module.
        norm: path of the batch norm that alone reads its output; None without one.
        skip: what is added to its (normalised) output; None where nothing is.
        scope: path of the module that is run by itself to solve the layer: the smallest
            with the addition in it, or the larger one of another layer around it.
    """

    name: str
    norm: str | None
    skip: Skip | None
    scope: str


def find_sites(graph: Graph, plan: Plan, *, every: bool) -> tuple[list[Site], dict[str, str]]:
    """Find the layers that read removed units, in forward order.

    Args:
        graph: of the dense network.
        plan: what was removed.
        every: take every convolution and dense layer after the first cut one as well.

    Returns:
        The layers to solve for, and {parameter or operation: reason}
        of those that stay as they are.
    """
    modules = dict(graph.model.named_modules())
    begins: dict[str, int] = {}
    products: dict[str, int] = {}
    for index, node in enumerate(graph.program.nodes):
        begins.setdefault(node.module, index)
        if node.op in _PRODUCTS:
            products[node.module] = products.get(node.module, 0) + 1
    names: dict[str, int] = {}
    left: dict[str, str] = {}
    for parameter, dim in plan.consumers:
        path = parameter.rpartition(".")[0]
        reason = _reason(parameter, dim, modules, products.get(path, 0))
        if reason:
            left[parameter] = reason
        else:
            names[path] = begins[path]
    for point in plan.masks:
        left[point.op] = "no weight itself reads the removed units there"
    if every and names:
        first = min(names.values())
        for path in modules:
            weight = f"{path}.weight"
            if begins.get(path, -1) >= first and not _reason(
                weight, 1, modules, products.get(path, 0)
            ):
                names[path] = begins[path]
    uses = _readers(graph.program)
    ordered = sorted(names, key=lambda name: names[name])
    sites = [_site(name, graph.program, uses, modules) for name in ordered]
    return [_within(site, {s.scope for s in sites}) for site in sites], left


def _within(site: Site, scopes: set[str]) -> Site:
    """Widen a site's scope to the outermost one around it; name its addition from there."""
    parts = site.scope.split(".") if site.scope else []
    around = [".".join(parts[:n]) for n in range(len(parts) + 1)]
    scope = next(path for path in around if path in scopes)
    skip = site.skip
    if skip is not None and scope:
        skip = replace(skip, module=skip.module[len(scope) + 1 :])
    return replace(site, scope=scope, skip=skip)


def _common(path: str, other: str) -> str:
    """Return the path of the smallest module that holds both."""
    shared = []
    for a, b in zip(path.split("."), other.split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared)


def _reason(parameter: str, dim: int, modules: Mapping[str, nn.Module], calls: int) -> str | None:
    """Say why a weight cannot be solved for; None where it can."""
    path, _, leaf = parameter.rpartition(".")
    module = modules.get(path)
    if leaf != "weight" or not isinstance(module, nn.Linear | _ConvNd) or dim != 1:
        return "only the weight of a convolution or dense layer is solved for"
    if isinstance(module, _ConvTransposeNd):
        return "a transposed convolution is not solved for"
    if hasattr(module, "parametrizations"):
        return "its weight is computed from other parameters"
    if calls != 1:
        return f"its module computes {calls} products in one pass, where one is needed"
    return None


def _readers(program: Program) -> dict[int, list[tuple[Node, int | None]]]:
    """List who reads each tensor, and as which positional argument (None: inside another)."""
    found: dict[int, list[tuple[Node, int | None]]] = {}
    for node in program.nodes:
        places = {arg.key: place for place, arg in enumerate(node.args) if isinstance(arg, Ref)}
        for ref in node.refs:
            found.setdefault(ref.key, []).append((node, places.get(ref.key)))
    return found


def _site(
    name: str,
    program: Program,
    uses: Mapping[int, list[tuple[Node, int | None]]],
    modules: Mapping[str, nn.Module],
) -> Site:
    key = [node for node in program.nodes if node.module == name][-1].outs[0]
    norm: str | None = None
    while len(uses.get(key, ())) == 1:
        node, place = uses[key][0]
        if node.op in _NORMS and place == 0 and norm is None:
            if not _fixed(modules.get(node.module)):
                break
            norm = node.module
        elif node.op in _SUMS and place in (0, 1) and len(node.args) == 2 and not node.kwargs:
            if not isinstance(node.args[1 - place], Ref):
                break
            skip = Skip(family(node.op), node.module, node.turn, 1 - place)
            return Site(name, norm, skip, _common(name, node.module))
        elif node.op not in _VIEWS or place != 0:
            break
        key = node.outs[0]
    return Site(name, norm, None, name)


def _fixed(module: nn.Module | None) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None
