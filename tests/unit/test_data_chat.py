"""Chat templates and image placeholders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.chat import IMAGE_PLACE, Chat, Message
from sophia_mcore.pretrained.internvl.chat import IMAGE_CONTEXT

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "internvl"
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"InternVL reference data not found at {FIXTURES}; put it there to check exactness"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NATIVE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}{{ '<IMG_CONTEXT>\\n' }}{% elif part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LISTS_ONLY = NATIVE.replace("{% if m.content is string %}{{ m.content }}{% else %}", "").replace(
    "{% endfor %}{% endif %}<|im_end|>", "{% endfor %}<|im_end|>"
)
CONVERSATION = [Message("system", "Think."), Message("user", f"{IMAGE_PLACE}\nWhat is it?")]
RENDERED = (
    f"<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\n{IMAGE_CONTEXT}\nWhat is it?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def model_dir(folder: Path, template: Any = None, config: dict[str, Any] | None = None, **tokenizer: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "qwen2"}))
    content = tokenizer | ({"chat_template": template} if template is not None else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder


def native_config() -> dict[str, Any]:
    return {"model_type": "internvl", "vision_config": {"image_size": 56, "patch_size": 14}}


def _messages(entry: dict[str, Any]) -> list[Message]:
    turns = [turn for pair in entry["history"] or [] for turn in pair] + [entry["question"]]
    if entry["patches"] and not any("<image>" in turn for turn in turns):
        turns[0] = "<image>\n" + turns[0]  # what the original chat() does
    roles = ["user", "assistant"] * len(turns)
    system = [] if entry["system"] is None else [Message("system", entry["system"])]
    texts = [turn.replace("<image>", IMAGE_PLACE) for turn in turns]
    return system + [Message(role, text) for role, text in zip(roles, texts, strict=False)]  # type: ignore[arg-type]


@needs_fixtures
def test_inference_prompts_equal_the_original() -> None:
    entries = json.loads((FIXTURES / "chat_templates.json").read_text())["inference"]
    assert {entry["template"] for entry in entries} == {"internvl2_5", "Hermes-2", "internlm2-chat"}
    for entry in entries:
        chat = Chat.built_in(entry["template"])
        tokens = [entry["num_image_token"] * tiles for tiles in entry["patches"] or []]
        prompt = chat.expand(chat.render(_messages(entry), True), tokens)
        assert prompt == entry["prompt"], (entry["template"], entry["name"])


@needs_fixtures
def test_training_texts_and_targets_equal_the_original() -> None:
    entries = json.loads((FIXTURES / "chat_templates.json").read_text())["training"]
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    for entry in entries:
        chat = Chat.built_in("internvl2_5")
        turns = [(roles[t["from"]], t["value"].replace("<image>", IMAGE_PLACE)) for t in entry["conversations"]]
        messages = [Message(role, text) for role, text in turns]  # type: ignore[arg-type]
        text = chat.expand(chat.render(messages, False), [count for count in entry["num_image_tokens"] if count])
        assert ("<s>" if entry["tokenizer_adds_bos"] else "") + text == entry["text"]
        answers = [text + chat.end_of_turn for role, text in turns if role == "assistant"]
        assert answers == entry["supervised_substrings"]


@needs_fixtures
@pytest.mark.parametrize("name", ["internvl2_5-8b", "internvl3-38b", "internvl3-38b-hf"])
def test_fixture_directories_use_the_original_template(name: str) -> None:
    chat = Chat.from_model_dir(FIXTURES / name)
    assert chat.render([Message("user", "Hi")]) == Chat.built_in("internvl2_5").render([Message("user", "Hi")])


def test_built_in_templates_differ_in_the_newline_after_a_turn() -> None:
    assert Chat.built_in("internvl2_5").render(CONVERSATION) == RENDERED
    assert Chat.built_in("Hermes-2").render(CONVERSATION) == RENDERED.replace("<|im_end|>\n", "<|im_end|>")
    empty = [Message("system", ""), Message("user", "Hi")]
    expected = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert Chat.built_in("internvl2_5").render(empty, False) == expected


@pytest.mark.parametrize("template", [CHATML, NATIVE, LISTS_ONLY])
def test_templates_for_strings_and_for_lists(tmp_path: Path, template: str) -> None:
    chat = Chat.from_model_dir(model_dir(tmp_path, template, native_config()))
    assert chat.render(CONVERSATION) == RENDERED
    assert chat.render(CONVERSATION, add_generation_prompt=False) == RENDERED.removesuffix("<|im_start|>assistant\n")
    assert chat.end_of_turn == "<|im_end|>"
    two = [Message("user", f"Image-1: {IMAGE_PLACE}\nImage-2: {IMAGE_PLACE}\nSame?")]
    assert f"Image-1: {IMAGE_CONTEXT}\nImage-2: {IMAGE_CONTEXT}\nSame?<|im_end|>" in chat.render(two)


def test_where_the_template_comes_from(tmp_path: Path) -> None:
    """chat_template.jinja, then chat_template.json, then tokenizer_config.json (one, or the default of several)."""
    folder = model_dir(tmp_path, [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}])
    user = [Message("user", "x")]
    assert Chat.from_model_dir(folder).render(user) == "d"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "j"}))
    assert Chat.from_model_dir(folder).render(user) == "j"
    (folder / "chat_template.jinja").write_text("f")
    assert Chat.from_model_dir(folder).render(user) == "f"


def test_an_original_directory_uses_its_named_template_as_its_own_chat_does(tmp_path: Path) -> None:
    config = native_config() | {"model_type": "internvl_chat", "template": "internvl2_5", "system_message": None}
    chat = Chat.from_model_dir(model_dir(tmp_path, "from the language model", config))
    assert "书生" in chat.render([Message("user", "x")]) and "None" not in chat.render([Message("user", "x")])
    other = model_dir(tmp_path, "from the language model", config | {"system_message": "Own words."})
    assert "system\nOwn words.<|im_end|>" in Chat.from_model_dir(other).render([Message("user", "x")])
    unknown = model_dir(tmp_path, "fallback", config | {"template": "future"})
    assert Chat.from_model_dir(unknown).render([Message("user", "x")]) == "fallback"
    with pytest.raises(SophiaError, match="'future' is none of internvl2_5"):
        Chat.from_model_dir(model_dir(tmp_path, None, config | {"template": "future"}))


def test_variables_and_helpers_of_the_hub(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}{{ eos_token }}"
        "{% if tools is not none %}tools{% endif %}"
    )
    folder = model_dir(tmp_path, template, bos_token={"content": "<s>"}, eos_token="</s>")
    assert Chat.from_model_dir(folder).render([Message("system", "a"), Message("user", "né")]) == '<s>"né"</s>'


def test_templates_run_in_a_sandbox(tmp_path: Path) -> None:
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(SophiaError, match="refused"):
        Chat.from_model_dir(model_dir(tmp_path, attack)).render([Message("user", "x")])
    with pytest.raises(SophiaError, match="only users"):
        template = (
            "{{ messages[0].content }}{% if messages | length > 1 %}{{ raise_exception('only users') }}{% endif %}"
        )
        Chat.from_model_dir(model_dir(tmp_path, template)).render([Message("user", "x"), Message("user", "y")])


def test_missing_and_broken_templates(tmp_path: Path) -> None:
    with pytest.raises(SophiaError, match=r"no config\.json"):
        Chat.from_model_dir(tmp_path)
    with pytest.raises(SophiaError, match="no chat template"):
        Chat.from_model_dir(model_dir(tmp_path))
    with pytest.raises(SophiaError, match="cannot be parsed"):
        Chat.from_model_dir(model_dir(tmp_path, "{% for %}"))


def test_a_template_that_loses_images_is_noticed(tmp_path: Path) -> None:
    template = LISTS_ONLY.replace("{{ '<IMG_CONTEXT>\\n' }}", "<image>")
    with pytest.raises(SophiaError, match="turned 1 image placeholders into 0"):
        Chat.from_model_dir(model_dir(tmp_path, template, native_config())).render(CONVERSATION)


def test_expand_names_the_sample_when_the_counts_differ() -> None:
    chat = Chat.built_in("internvl2_5")
    assert chat.expand(f"a{IMAGE_CONTEXT}b{IMAGE_CONTEXT}", [2, 4]) == (
        f"a<img>{IMAGE_CONTEXT * 2}</img>b<img>{IMAGE_CONTEXT * 4}</img>"
    )
    with pytest.raises(SophiaError, match=r"sample q7: 1 image placeholders .* for 2 images"):
        chat.expand(IMAGE_CONTEXT, [1, 1], sample="q7")
    with pytest.raises(SophiaError, match="takes no images"):
        Chat(lambda messages, prompt: "", None).expand(IMAGE_PLACE, [1])


def test_agrees_with_transformers(tmp_path: Path) -> None:
    """The same text as the tokenizer of a directory makes."""
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    folder = model_dir(tmp_path, NATIVE, tokenizer_class="PreTrainedTokenizerFast", eos_token="<|im_end|>")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    plain = [{"role": message.role, "content": message.text} for message in CONVERSATION]
    theirs = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    assert Chat.from_model_dir(folder).render(CONVERSATION) == theirs
