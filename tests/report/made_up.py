"""A made-up result: none of these numbers was measured."""

from __future__ import annotations

import math

from secateur.results import (
    CheckRecord,
    ClassQuality,
    Epoch,
    Facts,
    LayerTime,
    Measured,
    Paired,
    PinnedDim,
    Point,
    Quality,
    Result,
    Size,
    Speed,
    Width,
)

LAYERS = (("stem.conv", 32), ("block1.conv", 64), ("block2.conv", 128), ("classifier.hidden", 256))
STEEPNESS = {"l1": 2.4, "l2": 2.2, "taylor": 1.6, "random": 4.5}


def made_up_points() -> tuple[Point, ...]:
    """Curves that fall smoothly with sparsity; the best one at 50 % is chosen."""
    found = []
    for criterion, steepness in STEEPNESS.items():
        for scope in ("local", "global"):
            for tenth in range(1, 10):
                sparsity = tenth / 10
                fall = math.exp(steepness + (scope == "global") * 0.3) * sparsity**4 / 14
                accuracy = 0.1 + 0.87 * math.exp(-fall)
                found.append(
                    Point(
                        criterion,
                        scope,
                        sparsity,
                        "validation",
                        accuracy,
                        -math.log(accuracy),
                        round(500_000 * (1 - sparsity) ** 1.7),
                        round(9_000_000 * (1 - sparsity) ** 1.6),
                        chosen=(criterion, scope, tenth) == ("taylor", "local", 5),
                    )
                )
    return tuple(found)


def made_up_history() -> tuple[Epoch, ...]:
    """Two phases whose losses shrink."""
    return tuple(
        Epoch(
            phase,
            epoch,
            1e-3 / (1 if phase == "train" else 10),
            start * 0.75**epoch + 0.02,
            start * 0.78**epoch + 0.06,
            0.975 - 0.6 * start * 0.7**epoch,
            1.5,
        )
        for phase, start, epochs in (("train", 1.4, 12), ("finetune", 0.3, 6))
        for epoch in range(1, epochs + 1)
    )


def made_up_facts() -> Facts:
    """Ten digits of 36 images each: dense has 351 right, pruned 349."""
    dense = {(k, k): 36 for k in range(10)} | {(k, k): 35 for k in range(9)}
    dense |= {(k, k + 1): 1 for k in range(9)}
    pruned = {**dense, (3, 3): 34, (8, 8): 34, (3, 8): 1, (8, 3): 1}
    classes = tuple(
        tuple(
            ClassQuality(
                str(k),
                36,
                one[k, k] / 36,
                one[k, k] / 36 - 0.1,
                min(1.0, one[k, k] / 36 + 0.02),
                one[k, k] / sum(n for (_, p), n in one.items() if p == k),
                0.95,
            )
            for k in range(10)
        )
        for one in (dense, pruned)
    )
    return Facts(
        split="test",
        paired=Paired(360, 5, 3, 0.7265625),
        dense_classes=classes[0],
        pruned_classes=classes[1],
        confusion=tuple(
            (*key, dense.get(key, 0), pruned.get(key, 0)) for key in sorted({*dense, *pruned})
        ),
        sparse=(1_950_600, 511_800),
        memory=(65_536, 32_768),
        batch=1,
        threads=1,
        layers=(
            *(LayerTime(name, 1e-4, 4e-5) for name, _ in LAYERS),
            LayerTime("dropout", 0.0, 0.0),
            LayerTime("classifier.out", 2e-5, 2.5e-5),
        ),
    )


def made_up_result() -> Result:
    """A whole result of a small run."""
    return Result(
        title="Made-up digits network",
        asked={
            "model": "secateur.models:digits_cnn",
            "data": {"source": "digits", "label": None},
            "criteria": ["l1", "l2", "taylor", "random"],
            "scopes": ["local", "global"],
            "sparsities": [0.1, 0.5, 0.9],
            "finetune": {"epochs": 6, "lr": 0.0001, "optimizer": "adam", "seed": 0},
            "round_to": None,
            "seed": 0,
        },
        command="secateur demo --output runs/demo --seed 0",
        environment={"python": "3.11.7", "torch": "2.13.0", "cpu": "Imaginary 9000, 2 cores"},
        dense=Measured(
            Quality("test", 360, 0.975, 0.9533, 0.9867, 0.9755, 0.9749, 0.9750, 0.0841),
            Size(486_607, 8_912_345, 1_950_412, 1_804_221),
            (Speed(1, 1, 9, 2104.0, 2050.5, 2140.2), Speed(64, 1, 9, 14210.0, 14000.0, 14301.0)),
        ),
        pruned=Measured(
            Quality("test", 360, 0.9694, 0.9462, 0.9828, 0.9701, 0.9692, 0.9693, 0.1012),
            Size(126_880, 2_512_000, 511_640, 473_010),
            (Speed(1, 1, 9, 2893.0, 2850.0, 2931.0), Speed(64, 1, 9, 35980.0, 35500.0, 36200.0)),
        ),
        check=CheckRecord(4.4e-15, 1e-10, ok=True, changed=True, dtype="float64"),
        points=made_up_points(),
        widths=(
            *(Width(name, width, width // 2) for name, width in LAYERS),
            Width("classifier.out", 10, 10),
        ),
        history=made_up_history(),
        pinned=(
            PinnedDim("stem.conv.weight", 1, "model input"),
            PinnedDim("classifier.out.weight", 0, "model output"),
            PinnedDim("classifier.out.bias", 0, "model output"),
        ),
        given_back={"block2.conv": 3},
        notes=("Two images could not be read and were skipped.",),
        facts=made_up_facts(),
    )
