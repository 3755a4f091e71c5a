"""Operations of torchvision that read regions: channels pass, places stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.planning import make_plan

_NUMBERS = (
    "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
)


def crops(x: Tensor, rois: Tensor, height: int, width: int) -> Tensor:
    found = []
    for picture, left, top, right, bottom in rois.long().tolist():
        crop = x[picture : picture + 1, :, top : bottom + 1, left : right + 1]
        found.append(F.adaptive_avg_pool2d(crop, (height, width)))
    return torch.cat(found)


def align(x: Tensor, rois: Tensor, scale: float, h: int, w: int, *rest: object) -> Tensor:
    return crops(x, rois, h, w)


def align_shape(x: Tensor, rois: Tensor, scale: float, h: int, w: int, *rest: object) -> Tensor:
    return x.new_empty(rois.shape[0], x.shape[1], h, w)


def sensitive(
    x: Tensor, rois: Tensor, scale: float, h: int, w: int, ratio: int
) -> tuple[Tensor, Tensor]:
    every = crops(x, rois, h, w).view(len(rois), -1, h * w, h * w)
    found = every.diagonal(dim1=2, dim2=3).reshape(len(rois), -1, h, w).contiguous()
    return found, torch.zeros(found.shape, dtype=torch.int32)


def sensitive_shape(
    x: Tensor, rois: Tensor, scale: float, h: int, w: int, ratio: int
) -> tuple[Tensor, Tensor]:
    made = x.new_empty(rois.shape[0], x.shape[1] // (h * w), h, w)
    return made, torch.empty_like(made, dtype=torch.int32)


def deformed(
    x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *rest: object
) -> Tensor:
    """Not at the offsets: a plain convolution whose results they shift."""
    return F.conv2d(x, weight, bias, padding=1) + offset.sum(1, keepdim=True)


def deformed_shape(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])


@pytest.fixture
def region_operations() -> Iterator[None]:
    """The operations under torchvision's names, with plain kernels, for as long as a test runs."""
    with torch.library._scoped_library("torchvision", "FRAGMENT") as library:
        library.define(f"roi_align({_NUMBERS}, int sampling_ratio, bool aligned) -> Tensor")
        library.impl("roi_align", align, "CPU")
        library.impl("roi_align", align_shape, "Meta")
        library.define(f"ps_roi_align({_NUMBERS}, int sampling_ratio) -> (Tensor, Tensor)")
        library.impl("ps_roi_align", sensitive, "CPU")
        library.impl("ps_roi_align", sensitive_shape, "Meta")
        library.define(
            "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
            "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, "
            "SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) -> Tensor"
        )
        library.impl("deform_conv2d", deformed, "CPU")
        library.impl("deform_conv2d", deformed_shape, "Meta")
        yield


ROIS = torch.tensor(
    [[0, 1, 1, 5, 6], [1, 0, 2, 7, 7], [1, 3, 0, 6, 4]], dtype=torch.float64
)  # fmt: skip


class Detector(nn.Module):
    def __init__(self, inner: int, outer: int, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.read = nn.Conv2d(3, inner, 3, padding=1), nn.Linear(outer, 4), read

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        return self.b(self.read(self.a(x), rois).flatten(1))


def by_hand(model: Detector, x: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    h = F.conv2d(x, model.a.weight[rows], model.a.bias[rows], padding=1)
    read = model.read(h, ROIS).flatten(1)
    return F.linear(read, model.b.weight[:, columns], model.b.bias)


@pytest.mark.usefixtures("region_operations")
@pytest.mark.parametrize("sensitive_to_place", [False, True])
def test_channels_of_regions_are_cut_as_by_hand(sensitive_to_place: bool) -> None:
    torch.manual_seed(0)
    if sensitive_to_place:  # 6 x 2 x 2 channels, each for one place of a region
        inner = 24
        read = lambda h, r: torch.ops.torchvision.ps_roi_align(h, r, 1.0, 2, 2, 2)[0]  # noqa: E731
    else:
        inner = 6
        read = lambda h, r: torch.ops.torchvision.roi_align(h, r, 1.0, 2, 2, 2, True)  # noqa: E731
    model = Detector(inner, 24, read).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = secateur.trace(model, (x, ROIS))
    (group,) = graph.groups
    assert group.size == 6
    plan = make_plan(graph, {group.name: (1, 4)})
    pruned = secateur.cut(model, plan)
    columns = [p for p in range(24) if p // 4 not in (1, 4)]
    rows = columns if sensitive_to_place else [0, 2, 3, 5]
    with torch.no_grad():
        wanted = by_hand(model, x, rows, columns)
        assert torch.allclose(pruned(x, ROIS), wanted, rtol=1e-12, atol=1e-12)
        assert torch.allclose(secateur.mask(model, plan)(x, ROIS), wanted, rtol=1e-12, atol=1e-12)
    assert secateur.verify(model, pruned, plan, (x, ROIS)).ok


class Deformable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.offset = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 18, 3, padding=1)
        self.weight, self.bias = nn.Parameter(torch.randn(8, 6, 3, 3)), nn.Parameter(torch.randn(8))
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        y = torch.ops.torchvision.deform_conv2d(
            h, self.weight, self.offset(h), h.new_zeros(h.shape[0], 1), self.bias,
            1, 1, 1, 1, 1, 1, 1, 1, False,
        )  # fmt: skip
        return self.out(torch.relu(y).mean((2, 3)))


@pytest.mark.usefixtures("region_operations")
def test_channels_of_deformable_convolutions_are_cut_as_by_hand() -> None:
    torch.manual_seed(0)
    model, x = Deformable().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = secateur.trace(model, x)
    assert {g.name: g.size for g in graph.groups} == {"a": 6, "weight": 8}
    plan = make_plan(graph, {"a": (1, 4), "weight": (0, 7)})
    pruned = secateur.cut(model, plan)
    keep, rows = [0, 2, 3, 5], [1, 2, 3, 4, 5, 6]
    with torch.no_grad():
        h = F.conv2d(x, model.a.weight[keep], model.a.bias[keep], padding=1)
        offset = F.conv2d(h, model.offset.weight[:, keep], model.offset.bias, padding=1)
        y = deformed(h, model.weight[rows][:, keep], offset, offset, model.bias[rows])
        wanted = F.linear(torch.relu(y).mean((2, 3)), model.out.weight[:, rows], model.out.bias)
        assert torch.allclose(pruned(x), wanted, rtol=1e-12, atol=1e-12)
        assert torch.allclose(secateur.mask(model, plan)(x), wanted, rtol=1e-12, atol=1e-12)
    assert plan.pruned.macs == 64 * 9 * (3 * 4 + 4 * 18 + 4 * 6) + 6 * 4
