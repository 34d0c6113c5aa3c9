"""A second family of models needs no change elsewhere. That nothing else names one: test_families_apart.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer

from sophia_mcore.batch.samples import Sample
from sophia_mcore.batch.tokenize import tokenize
from sophia_mcore.errors import SophiaError
from sophia_mcore.model.vision import KINDS
from sophia_mcore.objective import logprob
from sophia_mcore.plan import memory
from sophia_mcore.pretrained import families, internvl
from sophia_mcore.pretrained.chat import IMAGE_PLACE, Chat, Message
from sophia_mcore.pretrained.family import ImageLimits, ImageSize
from tests.support.batch_world import SPECIAL, make_tokenizer


def test_every_family_has_a_tower() -> None:
    assert {family.vision_type for family in families.FAMILIES} == set(KINDS)


def test_the_planner_counts_with_the_models_own_constants() -> None:
    assert memory.ONE_PASS_TOKENS == logprob.ONE_PASS_TOKENS


class Grids:
    """Images as flat patches of 4 x 4 pixels, one token for every four of them."""

    row_shape = (48,)

    def size(self, width: int, height: int) -> ImageSize:
        rows = width // 4 * (height // 4)
        return ImageSize(rows=rows, tokens=rows // 4)

    def positions(self, input_ids: np.ndarray, sizes: object) -> np.ndarray:
        return np.arange(len(input_ids))

    def pixels(self, image: Image.Image) -> np.ndarray:
        return np.zeros((self.size(*image.size).rows, 48), np.float32)


SECOND = replace(
    internvl.FAMILY,
    name="Second",
    model_types={"second_vl": "hf"},
    architectures={"SecondForConditionalGeneration": "hf"},
    image_token="<|pad|>",
    text_has_image_token=False,
    image_text=lambda tokens: "<|pad|>" * tokens,
    templates={},
    default_template=None,
    image_processor=lambda folder, config, limit: Grids(),
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<|see|><|pad|><|seen|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, SECOND))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "second_vl"}))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path


def tokenizer_of_both() -> Tokenizer:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|see|>", "<|pad|>", "<|seen|>")])
    return tokenizer


def test_a_second_family_brings_its_own_image_token_and_processor(second: Path) -> None:
    chat = Chat.from_model_dir(second)
    text = chat.render([Message("user", f"{IMAGE_PLACE}What?")])
    assert text == "<|im_start|>user\n<|see|><|pad|><|seen|>What?<|im_end|>\n<|im_start|>assistant\n"
    processor = families.image_processor(second, ImageLimits())
    sample = Sample(id="s", source="kept", images=("d",), system=None, question="Sum?", response="5")
    done = tokenize([sample], tokenizer_of_both(), chat, lambda digest: processor.size(16, 24), 300)
    (tokens,) = done.samples
    pad = tokenizer_of_both().token_to_id("<|pad|>")
    assert tokens.image_sizes == (ImageSize(rows=24, tokens=6),)
    assert int((tokens.input_ids == pad).sum()) == 6
    assert processor.pixels(Image.new("RGB", (16, 24))).shape == (24, *processor.row_shape)


def test_text_that_spells_the_image_token_is_dropped(second: Path) -> None:
    chat = Chat.from_model_dir(second)
    sample = Sample(id="s", source="kept", images=(), system=None, question="<|pad|>", response="5")
    done = tokenize([sample], make_tokenizer(SPECIAL), chat, lambda digest: ImageSize(1, 1), 300)
    assert done.dropped == {"special_token_in_text": 1}


def test_a_model_type_without_family_takes_no_images(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert families.family_of_folder(tmp_path) is None
    with pytest.raises(SophiaError, match="'qwen2' takes no images; those that do: internvl, internvl_chat"):
        families.image_processor(tmp_path, ImageLimits())
