"""Whatever numbers a result holds, every face of it is written: no crash, no NaN, nothing out of its picture."""

import dataclasses
import json
import math
import random
import re
import sqlite3
from xml.etree import ElementTree

import pytest
import report_results

from gemma4_quant.measuring.result_files import to_json
from gemma4_quant.report.comparison import compare_runs
from gemma4_quant.report.comparison_text import comparison_text
from gemma4_quant.report.formats import formatted
from gemma4_quant.report.model_card import model_card
from gemma4_quant.report.page import html_report
from gemma4_quant.report.speed_formats import SpeedFormat
from gemma4_quant.report.table import bench_table

FINITE = (0.0, -0.0, 1.0, -3.5, 5e-324, 1e-300, -1e-9, 1e-5, 0.3, 123456789.0, 1e16, 1.7e308, -1.7e308)
ANY = (*FINITE, math.nan, math.inf, -math.inf)
CALM = dataclasses.replace(report_results.bench_result(3, domains=("code", "tools"), depths=(0, 512)))


def with_numbers(value, numbers, rng):
    """Return a copy of a tree of dataclasses in which most floats are drawn from `numbers`."""
    if dataclasses.is_dataclass(value):
        changed = {
            field.name: with_numbers(getattr(value, field.name), numbers, rng) for field in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changed)
    if isinstance(value, tuple):
        return tuple(with_numbers(each, numbers, rng) for each in value)
    return rng.choice(numbers) if isinstance(value, float) and rng.random() < 0.8 else value


def scrambled(seed, numbers):
    rng = random.Random(seed)
    models = tuple(
        dataclasses.replace(
            model,
            score=with_numbers(model.score, numbers, rng),
            speeds=with_numbers(model.speeds, numbers, rng),
            cache=with_numbers(report_results.cache_matrix(), numbers, rng),
        )
        for model in CALM.models
    )
    return dataclasses.replace(CALM, models=models)


@pytest.mark.parametrize("numbers", [FINITE, ANY], ids=["finite", "any"])
@pytest.mark.parametrize("seed", range(3))
def test_every_face_is_written(seed, numbers):
    result, other = scrambled(seed, numbers), scrambled(seed + 100, numbers)
    comparison = compare_runs(other, result)
    page = html_report(result, comparison)
    texts = [bench_table(result), comparison_text(comparison, 100), model_card(result, {}), page]
    texts += [
        formatted(result, output_format).split("\n\n| model  ")[0]
        for output_format in SpeedFormat
        if output_format is not SpeedFormat.SQL
    ]
    for text in texts:
        visible = re.sub("<style>.*?</style>", "", text, flags=re.DOTALL)
        assert re.findall(r".{0,40}(?<![\w-])(?:nan|inf|infinity)(?![\w-]).{0,40}", visible, re.IGNORECASE) == []
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        parsed = ElementTree.fromstring(picture)
        for path in parsed.iter("{http://www.w3.org/2000/svg}path"):
            assert all(abs(float(number)) < 5000 for number in re.findall(r"-?[0-9][0-9.e+]*", path.get("d")))
    json.loads(to_json(result), parse_constant=pytest.fail)
    sqlite3.connect(":memory:").executescript(formatted(result, SpeedFormat.SQL))
