"""`SanaTransformer2DModel` of Sana: linear attention, text of a Gemma, an autoencoder that makes pictures 32 times smaller. Needs no torch until it has tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..common.errors import SaeuronError
from .cross_attending import CrossAttending
from .sizes import Sizes

_MULTIPLE = 32
"""its pipeline takes sides that are multiples of so many pixels"""

INSTRUCTION = (
    "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for image "
    "generation. Evaluate the level of detail in the user prompt:\n"
    "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial relationships "
    "to create vivid and concrete scenes.\n"
    "- If the prompt is already detailed, refine and enhance the existing details slightly without overcomplicating.\n"
    "Here are examples of how to transform or refine prompts:\n"
    "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping peacefully "
    "on a warm sunny windowsill, surrounded by pots of blooming red flowers.\n"
    "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street lamps, "
    "a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass skyscrapers.\n"
    "Please generate only the enhanced description for the prompt below and avoid including any additional commentary or "
    "evaluations:\n"
    "User Prompt: "
)
"""what diffusers' pipeline puts before a prompt, by the authors of Sana; the text is theirs (Apache-2.0)"""


class Sana(CrossAttending):
    """See `CrossAttending`; it predicts the velocity of a straight flow."""

    cls = "SanaTransformer2DModel"
    sentinel = "qk_norm"
    flows = True
    schedulers = ("FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler")
    defaults: ClassVar = {"in_channels": 32, "out_channels": 32, "caption_channels": 2304}

    def sizes(self, config: Mapping[str, Any], vae: Mapping[str, Any]) -> Sizes:
        return self.sized(config, len(vae["encoder_block_out_channels"]), _MULTIPLE)

    def check_fit(self, config: Any, vae: Any, texts: Mapping[str, Any]) -> None:
        self.check_parts(config, vae, texts)
        for key, stock in (("timestep_scale", 1.0), ("guidance_embeds", False), ("out_channels", config.in_channels)):
            if config[key] not in (stock, None):
                raise SaeuronError(
                    f"'{key}' in transformer/config.json is {config[key]!r}; of Sana only text-to-image models with {stock!r} there can be edited (no Sprint)"
                )

    def calibrating(self, scheduler: Any, mended: Callable[[Any], Any]) -> Any:
        """Its own: it draws no noise, and any number of steps is one of its schedules."""
        self.check_scheduler(scheduler)
        return scheduler

    def check_scheduler(self, scheduler: Any) -> None:
        name, config = type(scheduler).__name__, scheduler.config
        if name not in self.schedulers:
            raise SaeuronError(f"its scheduler is a {name}; with Sana only {' and '.join(self.schedulers)} are supported")
        if name == "DPMSolverMultistepScheduler":
            if not config.get("use_flow_sigmas") or config.get("prediction_type") != "flow_prediction":
                raise SaeuronError(
                    "its scheduler doesn't follow a flow; Sana needs 'use_flow_sigmas' true and 'prediction_type' flow_prediction"
                )
            if "sde" in config.get("algorithm_type", ""):
                raise SaeuronError(
                    f"its scheduler's 'algorithm_type' is {config['algorithm_type']}, which draws noise at each step; take dpmsolver++"
                )
        for key in ("stochastic_sampling", "invert_sigmas", "use_dynamic_shifting"):
            if config.get(key):
                raise SaeuronError(f"its scheduler has '{key}' on, which is not supported with Sana; switch it off")
