"""Links lead somewhere, commands exist, the tutorial runs, quoted errors are in the code."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from typer.main import get_command

from sophia_mcore import records
from sophia_mcore.cli import app
from sophia_mcore.config import load_config
from sophia_mcore.store.user_files import check_user_files
from tests.support.tools import load_tool

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
SHELL = ("bash", "sh")
TUTORIAL = ROOT / "docs" / "own_data.md"


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page."""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every call of `sophia`, in blocks (without the comment behind it) and in the running text."""
    for line in (*shell_lines(page), *inline_code(page)):
        for part in re.split(r";|&&|\|\|", line.split(" # ")[0].split("  #")[0]):
            found = re.match(r"\s*(?:\$ )?(?:\.venv/bin/)?sophia (.*)", part)
            if found:
                yield shlex.split(found[1])


def shell_lines(page: Path) -> Iterator[str]:
    """Lines of the shell blocks, continued ones joined."""
    for language, text in blocks(page):
        if language in SHELL:
            yield from text.replace("\\\n", " ").splitlines()


def inline_code(page: Path) -> list[str]:
    """What stands between backticks in the running text."""
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a link may name after "#": the headings, as GitHub and MkDocs write them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page)) + re.findall(r'(?:src|href)="([^"]+)"', prose(page))
    for target in targets:
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        assert (page.parent / path).exists(), target
        other = page.parent / path if path else page
        assert not anchor or anchor in anchors(other), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_flags_exist(page: Path) -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    for words in commands(page):
        for name in words[0].strip("`'\",.").split("|"):
            if name.startswith("-"):
                continue
            assert name in known, f"sophia {name}"
            flags = {flag for parameter in known[name].params for flag in parameter.opts} | {"--help"}
            used = {re.split(r"[=\]|]", word.lstrip("["))[0] for word in words[1:] if word.lstrip("[").startswith("--")}
            assert used <= flags, (name, used - flags)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_blocks_parse_and_name_what_exists(page: Path) -> None:
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for language, text in blocks(page):
        if language in SHELL:
            done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
            assert done.returncode == 0, done.stderr
        else:
            commands_in_it = re.findall(
                r"^(?:\$ )?(?:sophia|make|git|python3?|pip|source|\.venv/\S+) .*", text, re.MULTILINE
            )
            assert language == "python" or not commands_in_it, f"tag the block as sh: {commands_in_it}"
    for line in (*shell_lines(page), *inline_code(page)):
        for target in re.findall(r"^make ([a-z-]+)", line):
            assert target in targets, f"make {target}"
        for path in re.findall(
            r"(?<!\S)((?:examples|slurm(?=/env|/\w+\.sbatch)|tests|docs|tools|checkpoints_tools)/[\w./-]+)", line
        ):
            made = re.search(rf"(?:^cp \S+|>) {re.escape(path)}", line)
            if page.parent.name != "log" and not made:  # history may name what is gone
                pattern = re.sub(r"\b[A-Z]+\b", "*", path.rstrip("/."))  # slurm/PHASE.sbatch
                assert any(ROOT.glob(pattern)) or (ROOT / f"{path}.py").exists(), path
        module = re.search(r"python -m ((?:sophia_mcore|tests)[\w.]*)(.*)", line)
        if module:
            source = ROOT / f"{module[1].replace('.', '/')}.py"
            assert source.is_file(), module[1]
            options = re.findall(r"--([a-z][a-z-]*)", module[2])
            unknown = [name for name in options if name not in source.read_text()]
            assert not unknown, (module[1], unknown)


def test_pages_keep_their_budget() -> None:
    wide = {
        "weights_tables.md",
        "grading.md",
        "index.md",
        "objectives.md",
        "settings.md",
    }  # tables with a long name or rule in each row
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        long = [number for number, line in enumerate(page.read_text().splitlines(), 1) if len(line) > 160]
        assert page.name in wide or not long, (page.name, long)
    for name in ("slurm", "weights", "planner"):
        words = len((ROOT / "docs" / f"{name}.md").read_text().split())
        assert words <= 1200, (name, words)


def test_settings_named_on_the_command_line_exist() -> None:
    tried = 0
    for page in PAGES:
        for words in commands(page):
            sets = [value for flag, value in pairwise(words) if flag == "--set"]
            if sets:
                named = [ROOT / word for word in words if word.startswith("examples/") and word.endswith(".toml")]
                load_config(named[0] if named else ROOT / "examples" / "digits" / "run.toml", (), sets)
                tried += 1
    assert tried > 3


def executed(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """The page's bash blocks, one after another in ``folder``."""
    script = "set -e\n" + "\n".join(text for language, text in blocks(page) if language == "bash")
    (folder / "bin").mkdir()
    for name, arguments in (("sophia", " -m sophia_mcore.cli"), ("python", "")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        ["bash"], input=script, cwd=folder, env=environment, text=True, capture_output=True, timeout=600
    )


def test_own_functions_are_tried_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "own_reward.md"
    done = executed(page, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("every function said the same both times") == 4
    assert "#   brevity (weight 0.1): mean" in done.stdout and "#   changed (weight 0): mean" in done.stdout
    for line in re.findall(r"^# *(?:tried|correct|brevity) .*", text_blocks(page), re.MULTILINE):
        assert line in done.stdout, line  # what the page quotes of the output
    trained = re.search(r"cat > digits.toml <<'END'\n(.*?)^END$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert trained is not None
    (tmp_path / "digits.toml").write_text(trained[1].replace('base = "', f'base = "{ROOT}/'))
    monkeypatch.chdir(tmp_path)
    config = load_config(tmp_path / "digits.toml")
    check_user_files(config)
    assert [term.label for term in config.reward_terms] == ["correct", "brevity", "changed"]


def text_blocks(page: Path) -> str:
    """The page's text blocks."""
    return "\n".join(text for language, text in blocks(page) if language == "text")


def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    done = executed(TUTORIAL, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mydata" / "questions.parquet").is_file()
    assert "models.policy: models/InternVL3-8B: no such model directory" in done.stderr  # doctor's word on it

    from sophia_mcore.records import Question
    from sophia_mcore.store.shards import read_shard

    rows = read_shard(tmp_path / "runs" / "mydata" / "questions.parquet", Question)
    assert [(q.id, q.answer, q.answer_type) for q in rows] == [
        ("q1", "3", "integer"),
        ("q2", "4", "integer"),
        ("q3", "B", ""),
    ]
    assert rows[2].options == ("a triangle", "a square") and rows[1].images == rows[2].images != rows[0].images


def test_quoted_error_messages_are_in_the_code() -> None:
    templates = [text for path in (ROOT / "sophia_mcore").rglob("*.py") for text in _texts(ast.parse(path.read_text()))]
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = [row.split("|")[1].strip().strip("`") for row in text.splitlines() if row.startswith("| `")]
    assert len(quoted) > 15
    for message in quoted:
        pattern = re.compile(".*".join(re.escape(part) for part in message.split("…")), re.DOTALL)
        assert any(pattern.search(template) for template in templates), message


def _texts(tree: ast.AST) -> Iterator[str]:
    """Every string of a module; what an f-string fills in is "…", or its text if it is a constant of `records`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(map(_part, node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _part(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    return str(getattr(records, part.value.id, "…")) if isinstance(part.value, ast.Name) else "…"


def test_the_site_names_pages_that_exist_and_versions_that_are_exact() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("nav:")[1]
    pages = re.findall(r"[\w./-]+\.md", navigation)
    assert len(pages) > 8
    assert sorted(pages) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))
    pins = [line for line in (ROOT / "constraints" / "docs.txt").read_text().splitlines() if line[:1] not in ("#", "")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins)
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == "sophia-mcore"


def test_the_contents_of_the_log_are_those_of_its_pages() -> None:
    tool = load_tool("write_log")
    assert (ROOT / "docs" / "LOG.md").read_text() == tool.contents(), "run: python tools/write_log.py"
    assert sorted(path.stem for path in (ROOT / "docs" / "log").glob("*.md")) == sorted(tool.FILES)


def test_the_function_on_the_page_about_grading() -> None:
    block = (ROOT / "docs" / "grading.md").read_text().partition("```python\n")[2].partition("```")[0]
    *imports, call = [line for line in block.splitlines() if line]
    names: dict[str, object] = {}
    exec("\n".join(imports), names)
    code, _, value = call.partition("  # ")
    assert eval(code, names) == eval(value)
