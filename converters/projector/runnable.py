"""What of an encoder llama.cpp cannot run, and what it computes otherwise than the config says.

Sources: tools/mtmd/clip.cpp (load_hparams), models/gemma4v.cpp, gemma4a.cpp, gemma4ua.cpp of llama.cpp.
"""

import math
from collections.abc import Iterator

from gemma4_quant.converters.projector.config import AudioFrames, Conformer, ProjectorConfig, VisionTower
from gemma4_quant.errors import ConfigError

_MAX_MEL_BANDS = 256  # clip.cpp
_KERNEL = 5  # gemma4a.cpp pads the depthwise convolution for this width
_FRAME_SAMPLES = 640  # clip.cpp, PROJECTOR_TYPE_GEMMA4UA


def check_encoders(config: ProjectorConfig) -> None:
    """Raise ConfigError naming every property of the encoders that llama.cpp aborts on or refuses to load."""
    problems = [*_vision_problems(config), *_audio_problems(config)]
    if problems:
        raise ConfigError("config.json describes encoders that llama.cpp cannot run: " + "; ".join(problems))


def differences(config: ProjectorConfig) -> list[str]:
    """Say which settings llama.cpp has built in with another value, so that its output differs from the model's."""
    fixed: list[tuple[str, object, object]] = []
    if isinstance(config.vision, VisionTower):
        vision = config.vision
        fixed += [
            ("vision_config.rope_parameters.rope_theta", vision.rope_base, 100.0),
        ]
        if vision.activation != "silu":  # which llama.cpp can be told
            fixed.append(("vision_config.hidden_activation", vision.activation, "gelu_pytorch_tanh"))
    if isinstance(config.audio, Conformer):
        audio = config.audio
        fixed += [
            ("audio_config.attention_chunk_size", audio.chunk, 12),
            ("audio_config.attention_context_left", audio.left, 13),
            ("audio_config.attention_context_right", audio.right, 0),
            ("audio_config.attention_logit_cap", audio.logit_cap, 50.0),
            ("audio_config.residual_weight", audio.residual_weight, 0.5),
            ("audio_config.hidden_act", audio.activation, "silu"),
        ]
    if config.audio is not None:
        fixed.append(("audio_config.rms_norm_eps", config.audio.norm_epsilon, 1e-6))
    return [
        f"{key} is {str(value)[:40]}, but llama.cpp computes with {builtin}: its output will differ from the model's"
        for key, value, builtin in fixed
        if value != builtin
    ]


def _vision_problems(config: ProjectorConfig) -> Iterator[str]:
    vision = config.vision
    if not isinstance(vision, VisionTower):
        return
    if vision.n_heads % vision.n_kv_heads:
        yield f"{vision.n_heads} vision heads are not whole groups for {vision.n_kv_heads} key-value heads"
    if vision.head_width % 4:
        yield f"vision heads of width {vision.head_width} cannot be rotated in pairs for both directions"


def _audio_problems(config: ProjectorConfig) -> Iterator[str]:
    audio = config.audio
    if isinstance(audio, AudioFrames):
        if audio.width != _FRAME_SAMPLES:
            yield f"audio_embed_dim is {audio.width}, llama.cpp cuts sound into frames of {_FRAME_SAMPLES} samples"
    elif audio is not None:
        yield from _conformer_problems(audio)


def _conformer_problems(audio: Conformer) -> Iterator[str]:
    if audio.kernel != _KERNEL:
        yield f"conv_kernel_size is {audio.kernel}, llama.cpp needs {_KERNEL}"
    if audio.hidden % audio.n_heads:
        yield f"the audio's hidden_size {audio.hidden} is not whole heads for {audio.n_heads} of them"
    if audio.hidden % 2:
        yield f"the audio's hidden_size {audio.hidden} is odd, its positions are sines and cosines"
    if audio.n_mel > _MAX_MEL_BANDS:
        yield f"{audio.n_mel} bands of sound are more than {_MAX_MEL_BANDS}"
    n_bands = math.ceil(math.ceil(audio.n_mel / 2) / 2)  # two convolutions of stride 2
    if n_bands != audio.channels[0] // 4:
        yield (
            f"{audio.n_mel} bands of sound become {n_bands} times {audio.channels[1]} values, "
            f"but subsampling_conv_channels {list(audio.channels)} make {audio.flattened}"
        )
