"""A family of models lives in its own files, beside the others. The rest of the package knows no family: not by name,
special token, setting, attribute or type. Every rule is tried on a line that breaks it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sophia_mcore.pretrained import families

PACKAGE = Path(__file__).resolve().parents[2] / "sophia_mcore"
FAMILY_FILES = {  # name -> where its files begin
    "internvl": ("pretrained/internvl/", "model/vision/internvl.py"),
    "qwen_vl": ("pretrained/qwen_vl/", "model/vision/qwen_vl.py"),
}
LISTS = ("pretrained/families.py", "model/vision/__init__.py")  # the tables of families, and nothing else
NAMES = ("internvl", "intern_vit", "internvit", "qwen2_5", "qwen2.5", "qwen_vl", "qwen3_vl", "qwen3-vl", "qwen2_vl",
         "qwen2vl", "qwen3vl", "internvision", "gotocr", "got_ocr")  # fmt: skip
READERS = ("get", "size", "only", "need", "section", "positive")  # of settings in config.json


@cache
def trees() -> dict[str, ast.Module]:
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def owner(name: str) -> str:
    """The family that a file belongs to; "": none."""
    return next((family for family, starts in FAMILY_FILES.items() if name.startswith(starts)), "")


def own_trees() -> list[ast.Module]:
    return [tree for name, tree in trees().items() if owner(name)]


def generic_trees() -> list[ast.Module]:
    return [tree for name, tree in trees().items() if not owner(name)]


def prose(tree: ast.Module) -> set[int]:
    """Ids of docstrings."""
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }


def attributes(found: list[ast.Module]) -> set[str]:
    """What classes define: fields, methods and attributes of instances."""
    names: set[str] = set()
    for tree in found:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                names |= {line.target.id for line in node.body if _is_field(line)}  # type: ignore[union-attr]
                names |= {line.name for line in node.body if isinstance(line, ast.FunctionDef)}
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return names


def _is_field(line: ast.stmt) -> bool:
    return isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)


def settings(found: list[ast.Module]) -> set[str]:
    """Keys of config.json and of image processors that the files read."""
    names: set[str] = set()
    for tree in found:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READERS:
                names |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)}
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                names |= {node.slice.value} if isinstance(node.slice.value, str) else set()
    return names


COMMON_WORDS = {"mlp", "norm", "patch", "shuffle", "std"}  # attributes of other libraries' classes too


@cache
def own_attributes() -> set[str]:
    """Attributes that only families' classes have."""
    return attributes(own_trees()) - attributes(generic_trees()) - COMMON_WORDS


@cache
def own_settings() -> set[str]:
    """Settings that only families read; the language models' own are `pretrained.language`'s."""
    language = settings([trees()["pretrained/language.py"]])
    return {key for key in settings(own_trees()) - language if "_" in key} - SHARED_KEYS


# files and keys that every folder of transformers has, whatever its family
SHARED_KEYS = {
    *("model_type", "torch_dtype", "rope_parameters", "rope_scaling", "tie_word_embeddings"),
    *("tokenizer_config.json", "preprocessor_config.json"),
}


@cache
def own_types() -> set[str]:
    own = {node.name for tree in own_trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in (node for tree in generic_trees() for node in ast.walk(tree)):
        own -= {node.name} if isinstance(node, ast.ClassDef) else set()
        own -= {t.id for t in node.targets if isinstance(t, ast.Name)} if isinstance(node, ast.Assign) else set()
    return own


def special_tokens() -> set[str]:
    found = families.FAMILIES
    return {token for one in found for token in (one.image_token, *one.reserved, *one.video_tokens)}


def words(node: ast.AST) -> list[str]:
    """The identifiers of one node."""
    found = [getattr(node, key, None) for key in ("id", "attr", "name", "arg", "asname")]
    return [word for word in found if isinstance(word, str)]


def knowledge(tree: ast.Module, *, lists_families: bool = False) -> Iterator[tuple[int, str]]:
    """(line, what) wherever code, not prose, knows something of a family."""
    skipped = prose(tree)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            text = node.value.lower()
            yield from ((line, f"the name {name}") for name in NAMES if name in text)
            yield from ((line, f"the token {token}") for token in special_tokens() if token.lower() in text)
            if node.value in own_settings():
                yield line, f"the setting {node.value}"
            if node.value in own_types():
                yield line, f"the type {node.value}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            asked = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant)]
            yield from ((line, f"the attribute {name}") for name in asked if name in own_attributes())
        if isinstance(node, ast.Attribute) and node.attr in own_attributes() and not lists_families:
            yield line, f"the attribute {node.attr}"
        if not lists_families:
            module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else ""
            yield from (
                (line, f"the name {name}") for word in [*words(node), module or ""] for name in NAMES
                if name in word.lower()
            )  # fmt: skip
            yield from ((line, f"the type {word}") for word in words(node) if word in own_types())
        elif isinstance(node, ast.If | ast.IfExp | ast.Match | ast.Compare | ast.Call):
            known = [word for inner in ast.walk(node) for word in words(inner) if word in own_types()]
            yield from ((line, f"a branch or call with the type {word}") for word in known)


def test_only_a_familys_own_files_know_it() -> None:
    wrong = [
        f"{name}:{line}: {what}"
        for name, tree in sorted(trees().items())
        if not owner(name)
        for line, what in knowledge(tree, lists_families=name in LISTS)
    ]
    assert not wrong, "these know a family:\n" + "\n".join(wrong)


def test_families_are_beside_each_other() -> None:
    """No family's file imports another family's."""
    wrong = []
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if owner(name) and isinstance(node, ast.ImportFrom | ast.Import):
                text = f"{getattr(node, 'module', '')}.{'.'.join(alias.name for alias in node.names)}".split(".")
                others = [other for other in FAMILY_FILES if other != owner(name) and other in text]
                wrong += [f"{name}:{node.lineno} imports {other}" for other in others]
    assert not wrong, "\n".join(wrong)


def test_every_family_is_among_the_files() -> None:
    folders = {path.name for path in (PACKAGE / "pretrained").iterdir() if (path / "__init__.py").is_file()}
    towers = {path.stem for path in (PACKAGE / "model" / "vision").glob("*.py")} - {"__init__", "layers"}
    assert folders == towers == set(FAMILY_FILES)
    for family in families.FAMILIES:
        assert any(name in family.parse.__module__ for name in FAMILY_FILES), family.name


BREACHES = {
    "name": 'if family.name == "Qwen2.5-VL": pass',
    "name of a variable": "is_internvl = True",
    "name of an argument": "f(qwen_vl=1)",
    "import": "from sophia_mcore.pretrained.internvl.spec import parse",
    "import of a function": "from sophia_mcore.pretrained import internvl",
    "special token": 'IMAGE = "<IMG_CONTEXT>"',
    "special token in a text": 'text.split("a <|image_pad|>")',
    "video token": 'if "<|video_pad|>" in text: pass',
    "type": "isinstance(spec.vision, WindowVisionSpec)",
    "type by name": 'type(spec.vision).__name__ == "DeepVisionSpec"',
    "pattern": "match x:\n    case DeepVisionSpec(): pass",
    "attribute": "spec.vision.deepstack",
    "attribute of tiles": "processor.tokens_per_tile",
    "attribute by name": 'getattr(spec.vision, "full_layers", ())',
    "setting": 'config["vision_config"]',
    "setting of a processor": 'value.get("spatial_merge_size")',
    "layer": 'found = "InternVisionModel"',
}


@pytest.mark.parametrize("case", BREACHES)
def test_the_rules_see_a_breach(case: str) -> None:
    assert list(knowledge(ast.parse(BREACHES[case])))


@pytest.mark.parametrize(
    "line", ["f(isinstance(spec, VisionSpec))", "x = 1 if type(a) is WindowVisionSpec else 2", 'y = "<img>"']
)
def test_a_list_of_families_has_no_branch(line: str) -> None:
    assert list(knowledge(ast.parse(line), lists_families=True))


def test_prose_may_name_a_family() -> None:
    assert not list(knowledge(ast.parse('"""As InternVL\'s <IMG_CONTEXT> does."""\nx = 1')))
