"""Prompts for self-calibration: as many languages and subjects as users have."""

import unicodedata
from collections import Counter

import pytest

from gemma4_quant.calibration.prompts import Prompt, PromptKind, prompts

SCRIPTS = {
    "ARABIC": {"ar", "fa", "ps", "ur"},
    "ARMENIAN": {"hy"},
    "BENGALI": {"bn"},
    "CJK": {"zh", "yue"},
    "CYRILLIC": {"be", "bg", "kk", "ky", "mk", "mn", "ru", "sr", "tg", "uk"},
    "DEVANAGARI": {"hi", "mr", "ne"},
    "ETHIOPIC": {"am", "ti"},
    "GEORGIAN": {"ka"},
    "GREEK": {"el"},
    "GUJARATI": {"gu"},
    "GURMUKHI": {"pa"},
    "HANGUL": {"ko"},
    "HEBREW": {"he", "yi"},
    "HIRAGANA": {"ja"},
    "KANNADA": {"kn"},
    "KHMER": {"km"},
    "LAO": {"lo"},
    "MALAYALAM": {"ml"},
    "MYANMAR": {"my"},
    "SINHALA": {"si"},
    "TAMIL": {"ta"},
    "TELUGU": {"te"},
    "THAI": {"th"},
}


def _language(prompt: Prompt) -> str:
    return prompt.language.partition("-")[0]


def _main_script(text: str) -> str:
    names = [unicodedata.name(letter).split()[0] for letter in text if letter.isalpha()]
    return Counter(names).most_common(1)[0][0]


def test_at_least_forty_languages_have_several_prompts() -> None:
    counts = Counter(_language(prompt) for prompt in prompts() if prompt.kind is PromptKind.LANGUAGE)
    assert sum(n > 1 for n in counts.values()) >= 40
    assert len(counts) >= 80


def test_at_least_ten_programming_languages_are_asked_for() -> None:
    code = [prompt for prompt in prompts() if prompt.kind is PromptKind.CODE]
    assert len({prompt.programming_language for prompt in code} - {None}) >= 10
    assert all(prompt.programming_language for prompt in code)


@pytest.mark.parametrize("kind", PromptKind)
def test_each_kind_is_asked_with_and_without_thinking(kind: PromptKind) -> None:
    assert {prompt.thinking for prompt in prompts() if prompt.kind is kind} == {False, True}


def test_a_prompt_waits_for_the_models_answer() -> None:
    for prompt in prompts():
        assert prompt.messages[-1]["role"] in {"user", "tool"}, prompt.name
        assert {message["role"] for message in prompt.messages} <= {"system", "user", "assistant", "tool"}


def test_prompts_are_written_in_the_script_of_their_language() -> None:
    by_language = {language: script for script, languages in SCRIPTS.items() for language in languages}
    for prompt in prompts():
        if prompt.kind is PromptKind.LANGUAGE:
            script = _main_script(prompt.messages[-1]["content"])
            assert script == by_language.get(_language(prompt), "LATIN"), prompt.name


def test_tools_come_with_the_prompts_about_tools() -> None:
    for prompt in prompts():
        assert bool(prompt.tools) == (prompt.kind is PromptKind.TOOLS), prompt.name


def test_the_first_prompts_are_of_all_kinds() -> None:
    assert {prompt.kind for prompt in prompts()[:48]} == set(PromptKind)
