"""PIR and zeta against the source's figures, and what a curve is worth."""

from __future__ import annotations

import math

import pytest

from secateur.errors import InputError
from secateur.results import Quality
from secateur.tuning.objective import METRICS, Objective, pir, pir_tabulated, zeta

# zeta and PIR of the source's Table 4, as far as they are known here, at zeta_T = 10.
TABULATED = (
    (10.81, 0.981),
    (10.29, 0.929),
    (11.01, 1.0),
    (3.84, 0.284),
    (3.29, 0.229),
    (2.64, 0.164),
    (2.54, 0.154),
    (2.24, 0.124),
    (2.00, 0.100),
)
BEFORE = 0.05


def quality(precision: float, loss: float = 1.0) -> Quality:
    return Quality("validation", 100, precision, 0.0, 1.0, precision, precision, precision, loss)


@pytest.mark.parametrize(("multiple", "value"), TABULATED)
def test_the_tabulated_form_gives_the_table(multiple: float, value: float) -> None:
    after = BEFORE * multiple
    assert zeta(BEFORE, after) == pytest.approx(multiple)
    assert pir_tabulated(BEFORE, after) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize(("multiple", "value"), TABULATED)
def test_the_printed_form_differs_only_from_the_target_on(multiple: float, value: float) -> None:
    expected = 1.0 if multiple >= 10 else value
    assert pir(BEFORE, BEFORE * multiple) == pytest.approx(expected, abs=5e-4)


def test_the_printed_form_has_its_three_cases() -> None:
    assert pir(0.2, 0.1) == 0 == pir_tabulated(0.2, 0.1)
    assert pir(0.2, 0.2) == 0
    assert pir(0.1, 0.2, target=2) == 1
    assert pir(0.1, 0.19, target=2) == pytest.approx(0.45)
    assert pir_tabulated(0.1, 0.2, target=2) == pytest.approx(0.5)


def test_zeta_of_nothing() -> None:
    assert zeta(0, 0.1) == math.inf
    assert zeta(0, 0) == 1


@pytest.mark.parametrize("form", [pir, pir_tabulated])
@pytest.mark.parametrize(
    ("before", "after", "target", "named"),
    [(0, 0.5, 10, "before"), (0.1, 1.5, 10, "after"), (0.1, math.nan, 10, "after"),
     (0.1, 0.5, 0, "target")],
)  # fmt: skip
def test_bad_values_are_named(form: object, before: float, after: float, target: float,
                              named: str) -> None:  # fmt: skip
    assert callable(form)
    with pytest.raises(InputError, match=named):
        form(before, after, target)


def test_a_curve_at_an_epoch_last_best_and_area() -> None:
    before, curve = quality(0.1), [quality(0.3), quality(0.7), quality(0.5)]
    assert Objective("accuracy", 1).value(before, curve) == 0.3
    assert Objective("accuracy", "last").value(before, curve) == 0.5
    assert Objective("accuracy", "best").value(before, curve) == 0.7
    # Trapezia: (0.1 + 0.3) / 2 + (0.3 + 0.7) / 2 + (0.7 + 0.5) / 2 over 3 epochs.
    assert Objective("accuracy", "area").value(before, curve) == pytest.approx(1.3 / 3)
    assert Objective("pir", 1).value(before, curve) == pytest.approx(0.2)
    assert [Objective("f1", at).epoch(curve) for at in (1, "last", "best", "area")] == [1, 3, 2, 3]


def test_loss_is_minimised_and_no_number_is_the_worst() -> None:
    objective = Objective("loss", "best")
    curve = [quality(0.1, 2.0), quality(0.1, 0.5), quality(0.1, 3.0)]
    assert objective.value(quality(0.1), curve) == 0.5
    assert (objective.direction, objective.worst) == ("minimize", math.inf)
    assert {Objective(name).worst for name in METRICS if name != "loss"} == {0.0}


def test_bad_objectives_are_refused() -> None:
    with pytest.raises(InputError, match=r"metric.*did you mean 'accuracy'"):
        Objective("acuracy")
    for at in (0, -1, True, "first"):
        with pytest.raises(InputError, match="at must be"):
            Objective("pir", at)
    with pytest.raises(InputError, match="target"):
        Objective("pir", "last", 0)
    with pytest.raises(InputError, match="at most 3"):
        Objective("pir", 4).check_epochs(3)
    with pytest.raises(InputError, match="without any precision"):
        Objective("pir").check_before(quality(0))
    with pytest.raises(InputError, match="at least one epoch"):
        Objective("pir").value(quality(0.1), [])
