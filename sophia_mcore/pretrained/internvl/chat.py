"""The chat templates of the original InternVL releases, and the text of an image in a prompt."""

from __future__ import annotations

from functools import partial

from sophia_mcore.pretrained.family import IMAGE_PLACE, Message, Render

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"

_SHANGHAI = "，".join(
    (
        "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型",
        "英文名叫InternVL, 是一个有用无害的人工智能助手。",
    )
)
_SCHOLAR = "，".join(
    (
        "你是书生·万象",
        "英文名是InternVL",
        "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
    )
)
# name -> (default system message, separator of turns)
_TEMPLATES = {
    "internvl2_5": (_SCHOLAR, "<|im_end|>\n"),
    "Hermes-2": (_SHANGHAI, "<|im_end|>"),
    "internlm2-chat": (_SHANGHAI, "<|im_end|>"),
}


def image_text(tokens: int) -> str:
    """Text of an image of ``tokens`` tokens in a prompt."""
    return IMAGE_START + IMAGE_CONTEXT * tokens + IMAGE_END


def _template(name: str, system_message: str | None) -> Render:
    """The function that renders messages with a template. ``system_message`` None: the template's default."""
    default, separator = _TEMPLATES[name]
    system = default if system_message is None else system_message

    def render(messages: list[Message], add_generation_prompt: bool) -> str:
        turns = messages if messages and messages[0].role == "system" else [Message("system", system), *messages]
        text = "".join(f"<|im_start|>{turn.role}\n{turn.text}{separator}" for turn in turns)
        text = text.replace(IMAGE_PLACE, IMAGE_CONTEXT)
        return text + ("<|im_start|>assistant\n" if add_generation_prompt else "")

    return render


TEMPLATES = {name: partial(_template, name) for name in _TEMPLATES}
