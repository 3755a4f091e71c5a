from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.report import format as fmt


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (fmt.count(853_018), "853,018"),
        (fmt.count(0), "0"),
        (fmt.short(0), "0"),
        (fmt.short(999), "999"),
        (fmt.short(1_000), "1.00 k"),
        (fmt.short(999_499), "999 k"),
        (fmt.short(999_500), "1.00 M"),
        (fmt.short(1_234_567), "1.23 M"),
        (fmt.short(125_485_706), "125 M"),
        (fmt.short(4.1e9, "MAC"), "4.10 GMAC"),
        (fmt.size(3_400), "3.40 kB"),
        (fmt.size(12), "12 B"),
        (fmt.percent(0.832), "83.20 %"),
        (fmt.percent(0.5, 1), "50.0 %"),
        (fmt.points(0.013, 1), "+1.3 points"),
        (fmt.points(-0.0056), "-0.56 points"),
        (fmt.points(-0.00001), "0.00 points"),
        (fmt.points(0.0), "0.00 points"),
        (fmt.difference(0.0214), "+0.021"),
        (fmt.relative(200, 90), "-55.0 %"),
        (fmt.relative(200, 200), "0.0 %"),
        (fmt.relative(0, 0), "0.0 %"),
        (fmt.relative(0, 5), "n/a"),
        (fmt.times(100, 210), "x2.10"),
        (fmt.times(0, 210), "n/a"),
        (fmt.significant(14.94), "14.9"),
        (fmt.significant(9.996), "10.0"),
        (fmt.significant(0.5), "0.500"),
        (fmt.significant(0), "0.00"),
        (fmt.significant(14_210.4), "14,210"),
        (fmt.decimal(0.51234), "0.512"),
        (fmt.tiny(3.14e-15), "3.1e-15"),
        (fmt.tiny(0), "0"),
        (fmt.duration(0.42), "0.42 s"),
        (fmt.duration(12.34), "12.3 s"),
        (fmt.duration(59.96), "1 min 0 s"),
        (fmt.duration(123), "2 min 3 s"),
        (fmt.duration(7_260), "2 h 1 min"),
    ],
)
def test_numbers_read_as_people_write_them(got: str, expected: str) -> None:
    assert got == expected


@pytest.mark.parametrize(
    "say",
    [
        fmt.short,
        fmt.size,
        fmt.percent,
        fmt.points,
        fmt.difference,
        fmt.decimal,
        fmt.tiny,
        fmt.duration,
        fmt.significant,
    ],
)
@pytest.mark.parametrize(("value", "text"), [(math.nan, "NaN"), (math.inf, "inf")])
def test_numbers_that_are_not_finite_are_shown(say, value: float, text: str) -> None:
    assert say(value) == text


@given(st.integers(min_value=0, max_value=10**17))
def test_short_keeps_three_digits(value: int) -> None:
    number, _, prefix = fmt.short(value).partition(" ")
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}[prefix]
    assert float(number) * scale == pytest.approx(value, rel=0.00501)
    assert float(number) < 1000
