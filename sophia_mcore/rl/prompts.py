"""What the on-policy stage asks: the same messages for the engine that samples and the trainer that reads it back."""

from __future__ import annotations

from sophia_mcore.config.schema import Config
from sophia_mcore.data.prompts import load_prompt


def system_prompt(config: Config) -> str:
    """The system message that ``rl.prompt`` names; a file of the run's own replaces the one for long thinking.

    The user message is `pretrained.chat.user_text` of the question, as in every other phase.
    """
    name = config.on_policy.prompt
    return load_prompt(name, config.batch.long_thinking_prompt_file if name == "long_thinking" else None)
