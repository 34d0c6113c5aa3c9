"""The digits example: one tokenizer for all loaders, shapes that the demo's layout divides, stages that are checked."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import lessons
import make_base_models as recipe
import models
import pytest
import teach
import torch
import warmup
import world
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, InternVLForConditionalGeneration, Qwen2ForCausalLM

from sophia_mcore.config.load import load_config
from sophia_mcore.pretrained.chat import Chat, Message, user_text
from sophia_mcore.pretrained.families import image_processor
from sophia_mcore.pretrained.family import ImageLimits

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def words() -> teach.Words:
    """The tokenizer, built once."""
    return recipe.words()


@pytest.fixture(scope="module")
def base(words: teach.Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both directories, untrained."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    policy = InternVLForConditionalGeneration(models.policy_config(words.tokenizer))
    models.save_model(policy, words.tokenizer, folder / "policy")
    models.save_model(Qwen2ForCausalLM(models.language_config(words.tokenizer)), words.tokenizer, folder / "reasoner")
    return folder


def texts() -> list[str]:
    """What both models read and write, and some text that is not of this world."""
    rng = random.Random(0)
    board = world.random_board("train", rng)
    taught = [lessons.reasoner_lesson(rng) for _ in range(20)] + [lessons.policy_lesson(rng, board) for _ in range(20)]
    strange = ["naïve 1234 x7y", "  two  spaces\n\n", "你好 99 100", "<think> 5</think>don't 12a", "first3, 45 67"]
    return ["".join(text for text, _ in lesson.pieces) for lesson in taught] + strange


@pytest.mark.parametrize("name", ["policy", "reasoner"])
def test_every_loader_gives_the_same_ids(base: Path, name: str) -> None:
    plain = Tokenizer.from_file(str(base / name / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(base / name)
    for text in texts():
        ids = plain.encode(text).ids
        assert loaded(text)["input_ids"] == ids
        assert plain.decode(ids, skip_special_tokens=False) == text
        assert loaded.decode(ids) == text


def test_the_tokenizer_is_the_same_every_time(words: teach.Words) -> None:
    assert recipe.words().tokenizer.to_str() == words.tokenizer.to_str()


def test_names_digits_and_results_are_single_neighbouring_tokens(words: teach.Words) -> None:
    tokens = words.tokenizer.encode("The image shows first 3, second 7. first 3 times second 7=21").tokens
    assert tokens.count(" 3") == 2
    assert tokens[tokens.index(" 3") - 1] == "Ġfirst"
    assert tokens[-2:] == ["=", "21"]


def test_thinking_tags_survive_decoding_and_the_end_of_turn_does_not(words: teach.Words) -> None:
    ids = words.tokenizer.encode("<think>See first 3.</think>The answer is \\boxed{3}.<|im_end|>").ids
    assert words.tokenizer.decode(ids) == "<think>See first 3.</think>The answer is \\boxed{3}."


def test_lessons_have_the_form_of_the_chat_template(base: Path) -> None:
    board = world.random_board("train", random.Random(0))
    lesson = lessons.exchange("Is first even or odd?", "no", "Think step by step.", board)
    chat = Chat.from_model_dir(base / "policy")
    messages = [Message("system", "Think step by step."), Message("user", user_text("Is first even or odd?", 1))]
    assert chat.expand(chat.render(messages, add_generation_prompt=True), [4]) == lesson.prompt
    assert chat.end_of_turn == "<|im_end|>"
    parts = [{"type": "image"}, {"type": "text", "text": "Is first even or odd?"}]
    turns = [{"role": "system", "content": "Think step by step."}, {"role": "user", "content": parts}]
    loaded = AutoTokenizer.from_pretrained(base / "policy")
    text = loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text.replace("<IMG_CONTEXT>\n", lessons.IMAGE) == lesson.prompt


def test_the_recipe_shows_the_tower_what_the_project_shows_it(base: Path) -> None:
    from PIL import Image

    board = world.random_board("train", random.Random(0))
    picture = Image.fromarray(world.draw(board, random.Random(1)))
    spec = image_processor(base / "policy", ImageLimits(max_tiles=1))
    assert spec.size(*picture.size).tokens == models.IMAGE_TOKENS_PER_TILE
    ours = teach.pictures([board], random.Random(1))
    assert torch.allclose(torch.from_numpy(spec.pixels(picture)), ours, atol=1e-6)


def test_the_layout_of_the_demo_divides_the_models(base: Path) -> None:
    layout = load_config(EXAMPLE / "run.toml").parallel
    language = json.loads((base / "policy" / "config.json").read_text())["text_config"]
    for size in ("num_attention_heads", "num_key_value_heads", "vocab_size", "intermediate_size"):
        assert language[size] % layout.tensor == 0
    assert language["num_hidden_layers"] % layout.pipeline == 0


def test_saved_models_are_what_was_saved(base: Path, words: teach.Words) -> None:
    loaded, report = InternVLForConditionalGeneration.from_pretrained(base / "policy", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.generation_config.eos_token_id == words.tokenizer.token_to_id("<|im_end|>")
    lesson = lessons.policy_lesson(random.Random(3), world.random_board("train", random.Random(0)))
    eyes = teach.tower_eyes(loaded, random.Random(0))
    logits, labels = teach.answer_logits(loaded.model.language_model, loaded.lm_head, words, [lesson], eyes)
    assert logits.shape == (len(labels), words.tokenizer.get_vocab_size())


def test_warm_up_pairs_say_what_the_lessons_say(base: Path) -> None:
    chat, rng = Chat.from_model_dir(base / "policy"), random.Random(5)
    board = world.random_board("base", rng)
    for number in range(60):
        lesson = lessons.policy_lesson(rng, board)
        row = warmup.pair(number, lesson, "boards/0.png" if lesson.board else None)
        system = [Message("system", str(row["system"]))] if "system" in row else []
        images = row.get("images", [])
        assert isinstance(images, list)
        user = Message("user", user_text(str(row["question"]), len(images)))
        text = chat.expand(chat.render([*system, user], add_generation_prompt=True), [4] * len(images))
        assert text == lesson.prompt
        assert f"{row['response']}<|im_end|>" == lesson.pieces[1][0]


def test_the_warm_up_is_sophias_own_training(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "policy", tmp_path / "seeing")
    warmup.write_pairs(tmp_path, random.Random(0), steps=2)
    seen: list[tuple[int, str]] = []
    trained = warmup.warm_up(tmp_path, lambda count, note: seen.append((count, note)), steps=2)
    assert sum(count for count, _ in seen) == 2
    before, after = (load_file(folder / "model.safetensors") for folder in (base / "policy", trained))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("vision" not in name and "multi_modal_projector" not in name for name in moved)


def test_the_loss_is_taken_on_what_is_to_be_learnt(words: teach.Words) -> None:
    lesson = lessons.Lesson([("first 3 plus second 4", False), ("=7", True), (" first 9", False)])
    ids, labels = words.collate([lesson, lessons.Lesson([(" first", True)])])
    kept = labels[0][labels[0] != teach.IGNORE]
    assert words.tokenizer.decode(kept.tolist()) == "=7"
    assert ids.shape == labels.shape
    assert (labels[1, 1:] == teach.IGNORE).all()


def test_a_stage_learns(words: teach.Words) -> None:
    torch.manual_seed(0)
    rng, model = random.Random(0), Qwen2ForCausalLM(models.language_config(words.tokenizer))
    eyes = teach.imagined(words, model.get_input_embeddings())
    losses: list[float] = []

    def loss(_: float) -> torch.Tensor:
        value = teach.cross_entropy(
            teach.answer_logits(model.model, model.lm_head, words, [lessons.drill(rng, 1.0) for _ in range(8)], eyes)
        )
        losses.append(value.item())
        return value

    teach.teach(model, teach.Schedule(steps=25, rows=8, muon=0.01, adamw=4e-3), loss, lambda count, note: None)
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_a_stage_that_fails_its_check_is_repeated_from_another_seed() -> None:
    seeds: list[int] = []
    notes: list[str] = []

    def stage(seed: int, report: recipe.Report) -> tuple[str, dict[str, float]]:
        seeds.append(seed)
        return "model", recipe.require("X", {"lookup": 0.5 + seed / 2000}, {"lookup": 0.9})

    assert recipe.attempt(stage, 0, lambda count, note: notes.append(note))[0] == "model"
    assert seeds == [0, 1000]
    assert "lookup 0.500 < 0.9" in notes[0]


def test_a_stage_that_never_passes_stops_the_recipe() -> None:
    def stage(seed: int, report: recipe.Report) -> None:
        recipe.require("X", {"lookup": 0.1}, {"lookup": 0.9})

    with pytest.raises(recipe.CheckFailed, match=r"stage X: lookup 0\.100 < 0\.9"):
        recipe.attempt(stage, 0, lambda count, note: None)


def test_the_configuration_names_what_the_example_makes() -> None:
    config = load_config(EXAMPLE / "run.toml")
    for file in (config.captions.prompt_file, config.reasoning.prompt_file, config.batch.long_thinking_prompt_file):
        assert (EXAMPLE / "prompts" / file.name).is_file()
    assert config.captions.prompt_file.read_text().strip() == world.DESCRIBE
    used = {Path(source.path).stem: source.limit for source in (*config.data.questions, *config.evaluate.questions)}
    assert set(used) == {"train", "test"}, "validation is for choosing settings"
    assert used["test"] >= 500
    assert all(limit <= world.QUESTION_COUNTS[part] for part, limit in used.items())
    assert config.captions.sampling.max_tokens >= 20
