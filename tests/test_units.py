from __future__ import annotations

import doctest
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa import units
from zhenfa.errors import UnitError
from zhenfa.units import Dimension

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SHOWABLE = st.floats(-1e296, 1e296)

READ: list[tuple[Any, Dimension, float]] = [
    ("64 GB", "data", 64e9),
    ("64GB", "data", 64e9),
    ("  64   GB ", "data", 64e9),
    ("64\u00a0GB", "data", 64e9),
    ("16 GiB", "data", 16 * 2**30),
    ("1 KiB", "data", 1024),
    ("8 b", "data", 1),
    ("8 kbit", "data", 1000),
    ("1.5 YB", "data", 1.5e24),
    ("400 Gb/s", "rate", 50e9),
    ("400 Gbps", "rate", 50e9),
    ("400 Gbit/s", "rate", 50e9),
    ("1.6 TB/s", "rate", 1.6e12),
    ("1 GiB/s", "rate", 2**30),
    ("1.9 us", "time", 1.9e-6),
    ("1.9 µs", "time", 1.9e-6),
    ("1.9 μs", "time", 1.9e-6),
    ("5 ns", "time", 5e-9),
    ("3 ms", "time", 3e-3),
    ("2 min", "time", 120),
    ("54 d", "time", 54 * 86400),
    ("1.5 h", "time", 5400),
    ("860 kW", "power", 860e3),
    ("5 mW", "power", 5e-3),
    ("5 MW", "power", 5e6),
    ("3 kWh", "energy", 3 * 3.6e6),
    ("2 GWh", "energy", 2 * 3.6e12),
    ("0.4 J", "energy", 0.4),
    ("400 mJ", "energy", 0.4),
    ("3.8e25 FLOP", "work", 3.8e25),
    ("1 TFLOPs", "work", 1e12),
    ("5 GOP", "work", 5e9),
    ("989 TFLOPS", "speed", 989e12),
    ("989 TFLOP/s", "speed", 989e12),
    ("989 TFLOPs/s", "speed", 989e12),
    ("1979 TOPS", "speed", 1979e12),
    ("1.5 ZFLOPS", "speed", 1.5e21),
    ("1.98 GHz", "frequency", 1.98e9),
    ("120000 CNY", "money", 120000),
    ("5 yuan", "money", 5),
    ("5 RMB", "money", 5),
    ("18 CNY/h", "money/time", 18 / 3600),
    ("432 CNY/d", "money/time", 432 / 86400),
    ("85 %", "ratio", 0.85),
    ("85%", "ratio", 0.85),
    ("0.85", "ratio", 0.85),
    ("384", "count", 384),
    ("10k", "count", 10_000),
    ("10 k", "count", 10_000),
    ("1.5T", "count", 1.5e12),
    ("5000 tokens/s", "tokens/s", 5000),
    ("5 ktok/s", "tokens/s", 5000),
    ("+5 GB", "data", 5e9),
    ("-5 GB", "data", -5e9),
    (".5 GB", "data", 0.5e9),
    ("5. GB", "data", 5e9),
    ("1e3 GB", "data", 1e12),
    ("1E-3 GB", "data", 1e6),
    ("5 EB", "data", 5e18),
    ("0 B", "data", 0),
    (64, "data", 64),
    (1.5, "rate", 1.5),
    (np.float64(1.5), "rate", 1.5),
    (np.int64(7), "count", 7),
]

REFUSED: list[tuple[Any, Dimension, str, str]] = [
    # what is written, dimension, message, hint
    ("400 gb/s", "rate", "'gb/s' is not a unit of rate.", "did you mean 'Gb/s' or 'GB/s'? B is a byte, b a bit. rate"),
    ("400 GBps", "rate", "'GBps' is not a unit of rate.", "did you mean 'GB/s'? rate is written like '392 GB/s'"),
    ("400 GB/sec", "rate", "'GB/sec' is not a unit of rate.", "did you mean 'GB/s'?"),
    ("400 GB/S", "rate", "'GB/S' is not a unit of rate.", "did you mean 'GB/s'?"),
    ("400 Gbit/sec", "rate", "'Gbit/sec' is not a unit of rate.", "did you mean 'Gb/s'?"),
    ("5 gigabytes per second", "rate", "'gigabytes per second' is not a unit of rate.", "did you mean 'GB/s'?"),
    ("5 gigabits/sec", "rate", "'gigabits/sec' is not a unit of rate.", "did you mean 'Gb/s'?"),
    ("5 GB", "rate", "'GB' is not a unit of rate.", "did you mean 'GB/s'? 'GB' measures data."),
    ("5 GB/s", "data", "'GB/s' is not a unit of data.", "did you mean 'GB'? 'GB/s' measures rate."),
    (
        "64 gigs",
        "data",
        "'gigs' is not a unit of data.",
        "did you mean 'GB'? data is written like '64 GB' or '16 GiB'.",
    ),
    ("64 KB", "data", "'KB' is not a unit of data.", "did you mean 'kB'?"),
    ("64 gib", "data", "'gib' is not a unit of data.", "did you mean 'Gib' or 'GiB'? B is a byte, b a bit."),
    ("64 gibibytes", "data", "'gibibytes' is not a unit of data.", "did you mean 'GiB'?"),
    ("64 furlongs", "data", "'furlongs' is not a unit of data.", "data is written like '64 GB' or '16 GiB'."),
    ("1.9 usec", "time", "'usec' is not a unit of time.", "did you mean 'us'? time is written like '1.9 us'."),
    ("3 msec", "time", "'msec' is not a unit of time.", "did you mean 'ms'?"),
    ("3 microseconds", "time", "'microseconds' is not a unit of time.", "did you mean 'us'?"),
    ("3 hours", "time", "'hours' is not a unit of time.", "did you mean 'h'?"),
    ("3 m", "time", "'m' is not a unit of time.", "did you mean 'min'?"),
    ("5 TFLOPs", "speed", "'TFLOPs' is not a unit of speed.", "did you mean 'TFLOPS'? 'TFLOPs' measures work."),
    ("5 tflop/sec", "speed", "'tflop/sec' is not a unit of speed.", "did you mean 'TFLOP/s'?"),
    ("5 teraflops", "speed", "'teraflops' is not a unit of speed.", "did you mean 'TFLOPS'?"),
    ("9 PF", "speed", "'PF' is not a unit of speed.", "did you mean 'PFLOPS'?"),
    ("5 TFLOPS", "work", "'TFLOPS' is not a unit of work.", "did you mean 'TFLOPs'? 'TFLOPS' measures speed."),
    ("5 mw", "power", "'mw' is not a unit of power.", "did you mean 'mW' or 'MW'? power is written like '860 kW'."),
    ("5 kilowatts", "power", "'kilowatts' is not a unit of power.", "did you mean 'kW'?"),
    ("5 kWH", "energy", "'kWH' is not a unit of energy.", "did you mean 'kWh'?"),
    ("5 kilowatt hours", "energy", "'kilowatt hours' is not a unit of energy.", "did you mean 'kWh'?"),
    ("5 mhz", "frequency", "'mhz' is not a unit of frequency.", "did you mean 'MHz'?"),
    ("18 USD/h", "money/time", "'USD/h' is not a unit of money/time.", "only CNY is read; convert it at your own rate"),
    ("18 $", "money", "'$' is not a unit of money.", "only CNY is read; convert it at your own rate first. money"),
    ("18 元", "money", "'元' is not a unit of money.", "did you mean 'CNY'?"),
    ("18 元/小时", "money/time", "'元/小时' is not a unit of money/time.", "did you mean 'CNY/h'?"),
    ("85 percent", "ratio", "'percent' is not a unit of ratio.", "did you mean '%'? ratio is written like '0.85'"),
    ("5 M", "ratio", "'M' is not a unit of ratio.", "'M' measures count. ratio is written like '0.85' or '85 %'."),
    ("5 K", "count", "'K' is not a unit of count.", "did you mean 'k'? count is written like '384' or '10k'."),
    ("5 million", "count", "'million' is not a unit of count.", "did you mean 'M'?"),
    ("5 tps", "tokens/s", "'tps' is not a unit of tokens/s.", "did you mean 'tokens/s'?"),
    ("5 token/s", "tokens/s", "'token/s' is not a unit of tokens/s.", "did you mean 'tokens/s'?"),
    ("0x10 GB", "data", "'x10 GB' is not a unit of data.", "data is written like"),
    ("5 " + "G" * 90, "data", f"'{'G' * 60}'… (90 characters) is not a unit of data.", "data is written like"),
    ("", "data", "an empty text is not a quantity of data.", "write '64 GB' or '16 GiB'."),
    ("  ", "time", "an empty text is not a quantity of time.", "write '1.9 us'."),
    ("GB", "data", "'GB' is not a number with a unit.", "write '64 GB' or '16 GiB'."),
    ("--5", "data", "'--5' is not a number with a unit.", "write '64 GB' or '16 GiB'."),
    ("5 5 GB", "data", "'5 5 GB' is not a number with a unit.", "write '64 GB' or '16 GiB'."),
    ("5-6 GB", "data", "'5-6 GB' is not a number with a unit.", "write '64 GB' or '16 GiB'."),
    ("1.5.2 GB", "data", "'1.5.2 GB' is not a number with a unit.", "write '64 GB' or '16 GiB'."),
    ("5\nGB", "data", "'5\\nGB' is not a number with a unit.", "write '64 GB' or '16 GiB'."),
    ("1_000 GB", "data", "'1_000 GB' is not a number with a unit.", "write '1000 GB': digits are 0 to 9"),
    ("1,000 GB", "data", "'1,000 GB' is not a number with a unit.", "write the digits without commas, and '.' before"),
    ("１２ GB", "data", "'１２ GB' is not a number with a unit.", "write '12 GB': digits are 0 to 9"),
    ("٣ GB", "data", "'٣ GB' is not a number with a unit.", "write '64 GB' or '16 GiB'."),
    ("nan", "data", "'nan' is not a number with a unit.", "write '64 GB' or '16 GiB'."),
    ("inf GB", "data", "'inf GB' is not a number with a unit.", "write '64 GB' or '16 GiB'."),
    ("-Infinity", "data", "'-Infinity' is not a number with a unit.", "write '64 GB' or '16 GiB'."),
    ("1e999", "data", "'1e999' is not a finite number.", "write '64 GB' or '16 GiB'."),
    ("1e300 GB", "data", "'1e300 GB' is more than a number can hold.", "write '64 GB' or '16 GiB'."),
    ("9" * 101, "data", f"'{'9' * 60}'… (101 characters) is not a number with a unit.", "write '64 GB'"),
    (math.nan, "data", "nan is not a finite number.", "write '64 GB' or '16 GiB'."),
    (math.inf, "rate", "inf is not a finite number.", "write '392 GB/s' or '400 Gb/s'."),
    (10**4000, "count", "a number of about 4,000 digits is not a finite number.", "write '384' or '10k'."),
    (True, "data", "True is a yes or a no, not a quantity of data.", "write '64 GB' or '16 GiB'."),
    (None, "data", "None is neither text nor a number, not a quantity of data.", "write '64 GB' or '16 GiB'."),
    ([5], "data", "[5] is neither text nor a number, not a quantity of data.", "write '64 GB' or '16 GiB'."),
    (5j, "data", "5j is neither text nor a number, not a quantity of data.", "write '64 GB' or '16 GiB'."),
]


@pytest.mark.parametrize(("text", "dimension", "value"), READ)
def test_a_quantity_is_read_into_the_base_unit(text: Any, dimension: Dimension, value: float) -> None:
    assert units.parse(text, dimension) == pytest.approx(value, rel=1e-15, abs=0)


@pytest.mark.parametrize(("text", "dimension", "message", "hint"), REFUSED)
def test_a_quantity_that_cannot_be_read_is_refused_in_words(
    text: Any, dimension: Dimension, message: str, hint: str
) -> None:
    with pytest.raises(UnitError) as caught:
        units.parse(text, dimension)
    assert caught.value.message == message
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)
    assert caught.value.exit_code == 2


def test_the_tables_cover_every_dimension() -> None:
    assert {dimension for _, dimension, _ in READ} == set(DIMENSIONS)
    assert {dimension for _, dimension, _, _ in REFUSED} == set(DIMENSIONS)
    assert set(units.BASE) == set(DIMENSIONS)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_the_base_unit_is_one_and_the_example_is_read(dimension: Dimension) -> None:
    assert units.factor(units.BASE[dimension], dimension) == 1
    for text in units.example(dimension).split("'")[1::2]:
        assert units.parse(text, dimension) > 0


def test_a_byte_is_eight_bits_with_every_prefix() -> None:
    for prefix in ("", "k", "M", "G", "T", "P", "E", "Z", "Y", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"):
        assert units.factor(f"{prefix}B", "data") == 8 * units.factor(f"{prefix}b", "data")
        assert units.factor(f"{prefix}B/s", "rate") == 8 * units.factor(f"{prefix}bps", "rate")


def test_number_and_unit_come_apart() -> None:
    assert units.split("64 GB", "data") == (64.0, "GB")
    assert units.split("64", "data") == (64.0, None)
    assert units.split(64, "data") == (64.0, None)
    with pytest.raises(UnitError, match="'gigs' is not a unit of data"):
        units.split("64 gigs", "data")


SHOWN: list[tuple[float | None, Dimension, str]] = [
    (None, "data", "undisclosed"),
    (math.inf, "time", "unbounded"),
    (-math.inf, "time", "unbounded"),
    (1.5e308, "data", "unbounded"),
    (math.nan, "time", "undefined"),
    (0.0, "data", "0 B"),
    (-0.0, "data", "0 B"),
    (0.0, "time", "0 s"),
    (-0.0, "money", "0.00 CNY"),
    (64e9, "data", "64 GB"),
    (-64e9, "data", "-64 GB"),
    (999.4e9, "data", "999 GB"),
    (999.6e9, "data", "1 TB"),
    (1e27, "data", "1000 YB"),
    (1e30, "data", "1e30 B"),
    (0.5, "data", "0.5 B"),
    (1e-9, "data", "1e-9 B"),
    (50e9, "rate", "50 GB/s"),
    (123_456.7, "rate", "123 kB/s"),
    (1.9e-6, "time", "1.9 us"),
    (0.9999, "time", "1 s"),
    (59.99, "time", "60 s"),
    (179.99, "time", "3 min"),
    (7199.99, "time", "2 h"),
    (172_800, "time", "2 d"),
    (54 * 86400, "time", "54 d"),
    (1e12, "time", "1.16e7 d"),
    (-3e-9, "time", "-3 ns"),
    (1e-15, "time", "1e-6 ns"),
    (860e3, "power", "860 kW"),
    (-0.004, "power", "-4 mW"),
    (1e-13, "power", "1e-13 W"),
    (0.4, "energy", "400 mJ"),
    (3.599e6, "energy", "3.6 MJ"),
    (3.6e6, "energy", "1 kWh"),
    (-1.8e13, "energy", "-5 GWh"),
    (3.8e25, "work", "38 YFLOP"),
    (989e12, "speed", "989 TFLOP/s"),
    (1.98e9, "frequency", "1.98 GHz"),
    (1_234_567.891, "money", "1,234,567.89 CNY"),
    (-0.000123, "money", "-0.000123 CNY"),
    (18 / 3600, "money/time", "18.00 CNY/h"),
    (0.123456, "ratio", "12.3 %"),
    (12.5, "ratio", "1250 %"),
    (1e-9, "ratio", "1e-7 %"),
    (384, "count", "384"),
    (10_000, "count", "10k"),
    (999_999, "count", "1M"),
    (5000, "tokens/s", "5 ktokens/s"),
]


@pytest.mark.parametrize(("value", "dimension", "text"), SHOWN)
def test_a_value_is_shown_for_people(value: float | None, dimension: Dimension, text: str) -> None:
    assert units.show(value, dimension) == text


def test_digits_are_significant_figures() -> None:
    assert [units.show(123_456_789, "data", digits) for digits in (1, 2, 4, 6)] == [
        "100 MB",
        "120 MB",
        "123.5 MB",
        "123.457 MB",
    ]


@given(SHOWABLE, st.sampled_from(DIMENSIONS), st.integers(1, 9))
def test_what_is_shown_is_read_back(value: float, dimension: Dimension, digits: int) -> None:
    text = units.show(value, dimension, digits)
    again = units.parse(text.replace(",", ""), dimension)
    cents = 0.005 / (3600 if dimension == "money/time" else 1) if dimension.startswith("money") else 0
    assert again == pytest.approx(value, rel=0.5000001 * 10.0 ** (1 - digits), abs=max(cents, 1e-300))


@given(FINITE, st.sampled_from(DIMENSIONS))
def test_what_is_shown_is_short_and_its_sign_is_plain(value: float, dimension: Dimension) -> None:
    text = units.show(value, dimension)
    assert len(text) <= 30
    assert text.isascii()
    assert units.show(-value, dimension).lstrip("-") == text.lstrip("-")
    assert "e+" not in text


@given(st.floats(1e-9, 1e26), st.sampled_from([d for d in DIMENSIONS if not d.startswith("money")]))
def test_numbers_of_daily_life_have_no_exponent(value: float, dimension: Dimension) -> None:
    if dimension == "time" and not 1e-9 <= value < 1e11:
        return
    if dimension in ("ratio", "data", "rate", "work", "speed", "count", "tokens/s", "frequency") and value < 1e-3:
        return
    if dimension == "ratio" and value >= 1e4:
        return
    assert "e" not in units.show(value, dimension).split(" ")[0]


@given(FINITE, st.sampled_from(DIMENSIONS), st.data())
def test_number_times_factor_is_the_value(number: float, dimension: Dimension, data: st.DataObject) -> None:
    unit = data.draw(st.sampled_from(sorted(units._TABLE[dimension])))
    expected = number * units.factor(unit, dimension)
    if math.isinf(expected):
        with pytest.raises(UnitError, match="more than a number can hold"):
            units.parse(f"{number!r} {unit}", dimension)
    else:
        assert units.parse(f"{number!r} {unit}", dimension) == expected


def refusal(text: str, dimension: Dimension) -> UnitError | None:
    try:
        assert math.isfinite(units.parse(text, dimension))
    except UnitError as problem:
        return problem
    return None


@given(st.text(max_size=30), st.sampled_from(DIMENSIONS))
def test_any_text_is_a_finite_quantity_or_refused_with_a_hint(text: str, dimension: Dimension) -> None:
    problem = refusal(text, dimension)
    if problem is not None:
        assert problem.hint
        assert problem.message.endswith(".")
        assert problem.message.isprintable()


@given(st.from_regex(r"[0-9]{1,3} ?[a-zA-Z%/. ]{0,12}", fullmatch=True), st.sampled_from(DIMENSIONS))
def test_a_guess_is_a_unit_that_is_read(text: str, dimension: Dimension) -> None:
    problem = refusal(text, dimension)
    if problem is not None and problem.hint is not None and problem.hint.startswith("did you mean "):
        for guess in problem.hint.removeprefix("did you mean ").partition("?")[0].split(" or "):
            assert units.factor(guess.strip("'"), dimension) > 0


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(units).failed == 0
