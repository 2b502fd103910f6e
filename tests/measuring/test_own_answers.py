"""Scoring on what the reference itself answers."""

import pytest

from gemma4_quant.benchmark import BenchOptions, bench
from gemma4_quant.errors import InputError
from gemma4_quant.measuring.bootstrap import BootstrapOptions


def own_score(model, reference, seed):
    options = BenchOptions(own_tokens=200, bootstrap=BootstrapOptions(resamples=0, seed=seed), speed=None)
    result = bench([model], reference=reference, texts=(), options=options).models[0]
    assert [each.domain for each in result.score.domains] == ["self"]
    return result.score.overall


def test_answers_are_the_references_own_and_the_same_for_a_seed(example_f32, example_bf16):
    first = own_score(example_bf16, example_f32, seed=1)
    assert first.n_positions >= 100
    assert first.divergence.kl.mean.value > 0
    assert own_score(example_bf16, example_f32, seed=1) == first
    assert own_score(example_bf16, example_f32, seed=2) != first


def test_a_model_finds_its_own_answers_likelier_than_a_strangers_text(example_f32, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Quartz sphinx, judge my vow: 7391 zebras jog by Fjord XII, vexing qwerty glyphs!\n" * 20)
    options = BenchOptions(bootstrap=BootstrapOptions(resamples=0), speed=None)
    strange = bench([example_f32], texts=[text], options=options).models[0].score.overall
    assert own_score(example_f32, example_f32, seed=1).perplexity.value < strange.perplexity.value


def test_own_answers_need_a_reference(example_f32):
    with pytest.raises(InputError, match="give it"):
        bench([example_f32], texts=(), options=BenchOptions(own_tokens=100, speed=None))
