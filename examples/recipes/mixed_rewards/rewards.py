"""A composite whose last term counts only behind the others (the form of TimeMaster's reward, arXiv 2506.13705)."""

from __future__ import annotations

from sophia_mcore.environments import Episode, Question


def well_formed(episode: Episode) -> bool:
    """A thought, then an answer, and nothing cut off."""
    text = episode.text.strip()
    return text.startswith("<think>") and text.count("</think>") == 1 and episode.last.finish_reason == "stop"


def gated_brevity(episode: Episode, question: Question, *, most: int = 40, gated: bool = True) -> float:
    """1 for no token, 0 for ``most`` or more. A rule stands for the judge of the paper, which no toy has.

    ``gated``: 0 unless the answer is right and well formed; without the gate, the control, saying little is enough.
    """
    if gated and not (episode.right and well_formed(episode)):
        return 0.0
    return 1.0 - min(episode.tokens, most) / most
