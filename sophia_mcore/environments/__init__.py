"""Rewards, environments, and what is learned from episodes: what functions of a user's own are given and return.

    from sophia_mcore.environments import Ask, Episode, Message, Question, Reply, Step, Target, Weight

docs/own_reward.md is the tutorial. Everything here is pure Python without torch and vLLM.
"""

from sophia_mcore.environments.types import (
    IMAGE,
    Ask,
    Episode,
    Reply,
    Step,
    Target,
    Turn,
    Weight,
)
from sophia_mcore.pretrained.family import Message
from sophia_mcore.records import Question

__all__ = ["IMAGE", "Ask", "Episode", "Message", "Question", "Reply", "Step", "Target", "Turn", "Weight"]
