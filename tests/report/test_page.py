"""The HTML report: one file that asks for nothing, escapes everything, and can be read without seeing."""

import base64
import hashlib
import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import report_results

from gemma4_quant.measuring.results import BenchResult
from gemma4_quant.report.page import html_report
from gemma4_quant.report.plots.marks import N_SERIES

VOID = {"meta", "link", "br", "img", "input", "hr", "base"}
ALLOWED = {
    "html", "head", "meta", "link", "title", "style", "body", "main", "header", "section", "h1", "h2", "h3",
    "p", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "span", "figure", "figcaption", "details",
    "summary",
    "pre", "code", "dl", "dt", "dd", "svg", "desc", "path", "text", "rect", "g",
}  # fmt: skip


class Structure(HTMLParser):
    """Collects what a browser would see: elements with their attributes, texts, and faults of nesting."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.faults, self.texts = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if len(dict(attrs)) != len(attrs):
            self.faults.append(f"attributes twice in {tag}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"unexpected end of {tag}")

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text_of(self, tag):
        return [data for name, data in self.texts if name == tag]


@pytest.fixture(scope="module")
def full():
    result = report_results.bench_result(13)
    models = list(result.models)
    models[5] = replace(models[5], cache=report_results.cache_matrix())
    return replace(result, models=tuple(models), warnings=("raw text says little",))


@pytest.fixture(scope="module")
def page(full):
    return html_report(full)


@pytest.fixture(scope="module")
def structure(page):
    return Structure(page)


@pytest.fixture(scope="module")
def hostile():
    return html_report(report_results.hostile_result())


def test_elements_are_nested_properly_and_none_is_of_another_kind(structure):
    assert structure.faults == []
    assert structure.open == []
    assert {tag for tag, _ in structure.elements} <= ALLOWED


def test_ids_are_unique_and_references_lead_to_them(structure):
    ids = [attributes["id"] for _, attributes in structure.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in structure.elements:
        assert set(attributes.get("aria-labelledby", "").split()) <= set(ids)


def test_nothing_is_asked_of_any_network_and_nothing_runs(page, structure):
    for tag, attributes in structure.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        assert attributes.get("href", "data:,") == "data:,"
        assert "src" not in attributes
    style = "".join(structure.text_of("style"))
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in page.replace("http-equiv", "").replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_the_policy_allows_the_one_style_sheet_by_its_hash_and_nothing_else(structure):
    (policy,) = [
        meta["content"] for meta in structure.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    style = "".join(structure.text_of("style"))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    directives = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["style-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in policy
    assert len(structure.all("style")) == 1


def pictures(page):
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_every_picture_is_xml_with_a_title_a_description_and_a_table(page, structure):
    found = pictures(page)
    svg = "{http://www.w3.org/2000/svg}"
    for picture in found:
        assert picture.get("role") == "img"
        assert picture[0].tag == f"{svg}title"
        assert picture[0].text
        assert picture[1].tag == f"{svg}desc"
        assert len(picture[1].text) > 40
        assert picture.get("aria-labelledby") == f"{picture[0].get('id')} {picture[1].get('id')}"
    assert len(found) == 2 * len(structure.all("figure"))
    for figure in re.findall(r"<figure>.*?</figure>", page, re.DOTALL):
        assert "<details>" in figure
        assert "<caption>" in figure


def test_every_coordinate_is_a_number_and_no_text_leaves_its_picture(page):
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    for picture in pictures(page):
        width, height = float(picture.get("width")), float(picture.get("height"))
        for text in picture.iter("{http://www.w3.org/2000/svg}text"):
            assert 0 <= float(text.get("x")) <= width
            assert 8 <= float(text.get("y")) <= height


def test_all_that_was_measured_is_shown(page, structure, full):
    titles = structure.text_of("h2") + structure.text_of("h3")
    for title in (
        "Divergence against size", "Divergence by domain", "Divergence by position", "Probability of the true token",
        "Speed of pp512 by depth", "Speed of tg128 by depth", "KV cache",
    ):  # fmt: skip
        assert title in titles
    rows = structure.text_of("th")
    for model in full.models:
        assert model.file.path.stem in rows
    for each in (
        *(fact.sha256 for model in full.models for fact in model.file.files),
        *(t.sha256 for t in full.texts),
    ):
        assert each in page
    assert "gemma4-quant bench E2B-Q4_K_M.gguf --reference &#39;E2B BF16.gguf&#39; --report report.html" in page
    assert "raw text says little" in page
    for version in full.conditions.versions.values():
        assert version in structure.text_of("dd")


def test_a_model_has_the_same_colour_in_every_plot(page):
    colours = {}
    for picture in pictures(page):
        marks = list(picture) if picture[0].text != "Divergence against size" else []  # which has no legend
        for mark, name in itertools.pairwise(marks):  # a legend's sample stands before its name
            if mark.get("class", "").startswith(("mark s", "open s")) and name.get("class") == "label":
                colours.setdefault(name.text, set()).add(mark.get("class"))
    assert len([name for name in colours if name.startswith("E2B-")]) >= 8
    assert {name: found for name, found in colours.items() if len(found) > 1} == {}


def test_numbers_stand_with_their_uncertainty(structure):
    row = structure.texts[structure.texts.index(("th", "E2B-Q4_K_M")) :][:30]
    cells = [text.strip() for tag, text in row if tag in ("td", "span")]
    assert cells[cells.index("6.10") + 1] == "±0.18"


def test_hostile_names_stay_text(hostile):
    structure = Structure(hostile)
    assert structure.faults == []
    assert {tag for tag, _ in structure.elements} <= ALLOWED
    assert not any(name.startswith("on") for _, attributes in structure.elements for name in attributes)
    assert len(structure.all("style")) == 1
    assert structure.all("style") == [{}]
    assert pictures(hostile)
    shown = [data for _, data in structure.texts]
    assert any("<script>alert(1)</script>" in text for text in shown)
    assert any("{{ 7 * 7 }}{% raw %}" in text for text in shown)


def test_no_letter_that_reorders_or_hides_text_reaches_the_page(hostile):
    assert [letter for letter in set(hostile) if not letter.isprintable() and letter != "\n"] == []


def test_long_names_are_cut_but_not_the_command(hostile):
    command, rest = re.search("<pre>.*?</pre>", hostile, re.DOTALL).group(), re.sub("<pre>.*?</pre>", "", hostile)
    assert "n" * 5000 in command
    assert not re.search("n{500}", rest)


def test_a_report_of_sixty_models_stays_below_a_megabyte():
    page = html_report(report_results.bench_result(60))
    assert len(page.encode()) < 1_000_000
    assert Structure(page).faults == []


def test_more_models_than_can_be_shown_are_said():
    page = html_report(report_results.bench_result(220, depths=(0,)))
    assert re.search(r"\d+ more models are not shown here", page)
    assert len(page.encode()) < 1_000_000


def test_it_is_said_when_plots_show_less_than_all(structure):
    assert any("Plots with a legend show 8 of 14" in text for text in structure.text_of("p"))
    few = Structure(html_report(report_results.bench_result(4)))
    assert not any("Plots with a legend show" in text for text in few.text_of("p"))


def test_a_single_model_without_a_reference_has_no_divergence():
    result = report_results.bench_result(1, domains=("text",), depths=(0,))
    alone = replace(result, models=result.models[:1], reference=None)
    alone = replace(alone, models=(replace(alone.models[0], is_reference=False),))
    page = html_report(alone)
    assert Structure(page).faults == []
    assert "Divergence" not in page
    assert "perplexity" in page


def bare(result: BenchResult) -> BenchResult:
    """Remove all that may be missing."""
    models = tuple(
        replace(model, score=None, speeds=None, peak_bytes=None, cache=None, failure="it broke")
        for model in result.models
    )
    conditions = replace(result.conditions, framing=None, versions={}, command=())
    return replace(result, models=models, reference=None, texts=(), conditions=conditions)


def test_nothing_but_sizes_still_makes_a_page():
    structure = Structure(html_report(bare(report_results.bench_result(2))))
    assert structure.faults == []
    assert structure.all("figure") == []
    assert any("it broke" in text for text in structure.text_of("p"))


def test_numbers_that_are_not_finite_are_left_out():
    result = report_results.bench_result(3)
    page = html_report(report_results.with_broken_numbers(result))
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    assert Structure(page).faults == []


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """Contrast ratio (WCAG 2.2)."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_stand_out_from_the_paper_in_light_dark_and_print(structure):
    style = "".join(structure.text_of("style"))
    themes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    assert len(themes) == 3
    for theme in themes:
        assert contrast(theme["ink"], theme["paper"]) > 12
        assert contrast(theme["soft"], theme["paper"]) > 4.5
        assert contrast(theme["warn"], theme["warn-tint"]) > 4.5
        for series in range(N_SERIES):
            assert contrast(theme[f"s{series}"], theme["paper"]) > 4.5
