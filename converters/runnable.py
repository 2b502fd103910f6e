"""Refusal of decoders that llama.cpp would abort on: found before anything is written, with the reason."""

from gemma4_quant.converters.drafter import drafter_problems
from gemma4_quant.converters.text_config import TextConfig
from gemma4_quant.errors import ConfigError


def check_runnable(config: TextConfig, backbone_width: int | None = None) -> None:
    """Raise ConfigError naming every property of `config` that llama.cpp cannot run.

    backbone_width: the width of the target of a drafter, None for other models.

    Sources: llama-model.cpp (create_memory's layer reuse for LLM_ARCH_GEMMA4, load_hparams' expert checks),
    llama-graph.cpp and ggml.c (ggml_rope takes whole pairs, attention whole groups of heads).
    """
    layout = _layout_problems(config) if backbone_width is None else drafter_problems(config, backbone_width)
    problems = [*_locality_problems(config), *layout, *_attention_problems(config), *_expert_problems(config)]
    if problems:
        raise ConfigError("config.json describes a model that llama.cpp cannot run: " + "; ".join(problems))


def _locality_problems(config: TextConfig) -> list[str]:
    if any(config.is_local):
        return []
    return ["no layer has sliding-window attention, llama.cpp needs at least one"]


def _layout_problems(config: TextConfig) -> list[str]:
    problems = []
    if config.first_kv_shared < 2:
        problems.append(
            f"{config.n_kv_shared} of {config.n_layers} layers share keys and values, "
            "but at least two layers must have their own"
        )
        return problems
    # shared local layers read the cache of the second last layer that has one, shared global ones that of the last
    for is_local, distance in ((True, 2), (False, 1)):
        source = config.first_kv_shared - distance
        if is_local in config.is_local[config.first_kv_shared :] and config.is_local[source] is not is_local:
            problems.append(
                f"layer {source} must be {'local' if is_local else 'global'}, since llama.cpp takes the keys and "
                f"values of {'local' if is_local else 'global'} KV-shared layers from it"
            )
    return problems


def _attention_problems(config: TextConfig) -> list[str]:
    problems = []
    for kind, n_kv_heads, head_width in (
        ("local", config.n_kv_heads_local, config.head_width_local),
        ("global", config.n_kv_heads_global, config.head_width_global),
    ):
        if config.n_heads % n_kv_heads:
            problems.append(f"{config.n_heads} heads are not whole groups for {n_kv_heads} {kind} key-value heads")
        if head_width % 2:
            problems.append(f"{kind} heads of width {head_width} cannot be rotated in pairs")
    return problems


def _expert_problems(config: TextConfig) -> list[str]:
    n_experts, n_used = config.n_experts or 0, config.n_experts_used or 0
    if n_used > n_experts:
        return [f"top_k_experts is {n_used}, but num_experts is {n_experts}"]
    if n_experts and not n_used:
        return [f"num_experts is {n_experts}, but top_k_experts is missing"]
    return []
