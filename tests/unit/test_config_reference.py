"""Every setting is on the page, in the terminal and in the JSON schema, with what it does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sophia_mcore.cli import commands as cli
from sophia_mcore.config.reference import as_markdown, explain_setting, json_schema, reference
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError
from sophia_mcore.launch.phases import names_in
from tests.unit.test_provenance_settings import keys_of

ROOT = Path(__file__).resolve().parents[2]


def test_every_key_has_a_row_and_a_sentence() -> None:
    settings = [setting for section in reference() for setting in section.settings]
    assert {setting.key.replace("[]", "") for setting in settings} >= keys_of(Config)
    assert [setting.key for setting in settings if not setting.sentence] == []
    assert all("PydanticUndefined" not in s.default and "typing." not in s.type for s in settings)


def test_the_page_is_up_to_date() -> None:
    page = ROOT / "docs" / "settings.md"
    assert page.read_text() == as_markdown(), "run: python tools/write_settings.py"
    assert '`captions.engine (kind = "transformers")`' in page.read_text()


def test_a_key_and_a_section_are_explained() -> None:
    text = explain_setting("reward.alpha")
    assert "reward.alpha = 0.75 (paper)" in text and "number > 0 < 1" in text and "a caption passes iff" in text
    assert text.count("captions.engine (kind") == 0
    assert explain_setting("captions.engine").count("[captions.engine (kind") == 3
    for given, nearest in (("alhpa", "[a-z.]*alpha"), ("captions.per_imge", "captions.per_image")):
        with pytest.raises(UsageError, match=f"did you mean '{nearest}'"):
            explain_setting(given)


def test_the_schema_admits_the_examples_and_no_other_key() -> None:
    schema = json_schema()
    assert schema["$defs"]["Reward"]["properties"]["alpha"]["description"].startswith("strict: a caption passes")
    known = set(schema["properties"])
    for file in sorted(ROOT.glob("examples/*/run.toml")):
        assert set(tomllib.loads(file.read_text())) <= known
    assert schema["$defs"]["Reward"]["additionalProperties"] is False


def test_the_schema_admits_a_file_with_a_base_and_one_loss_for_each_name() -> None:
    schema = json_schema()
    assert "required" not in schema and schema["if"] == {"required": ["base"]}
    assert schema["else"]["required"] == ["run", "models"]
    assert schema["else"]["properties"]["run"] == {"required": ["name", "folder"]}
    assert "required" not in schema["$defs"]["Run"]
    own = schema["$defs"]["OwnLoss"]["properties"]["name"]["pattern"]
    losses = [
        one["properties"]["name"]["const"]
        for one in schema["$defs"].values()
        if "const" in one["properties"].get("name", {})
    ]
    assert len(losses) >= 8 and not any(re.search(own, name) for name in losses)
    assert re.search(own, "mine.py:loss")


def test_the_key_of_a_named_table_is_explained() -> None:
    assert "helpers.NAME.model = none" in explain_setting("helpers.judge.model")
    with pytest.raises(UsageError, match=r"did you mean 'helpers.NAME.model'"):
        explain_setting("helpers.judge.modle")


def test_the_list_of_commands_has_whole_sentences_at_80_columns() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "80"}, terminal_width=80).output
    commands = shown.partition("Commands:")[2]
    assert "fp8-check" in commands and "..." not in commands


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, word in (
        (["-h"], "Usage"), (["--version"], "sophia_mcore "), (["check", "--explain", "run.seed"], "run.seed = 0"),
        (["run", "-h"], "fp8-check"), (["--show-completion", "bash"], ""),
    ):  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "sophia_mcore.cli", *arguments], capture_output=True, text=True)
        assert done.returncode in (0, 1 if "completion" in arguments[0] else 0) and word in done.stdout, done
    cli.app(["check", "--schema"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["title"] == "sophia_mcore run"
    assert cli._PHASES.split(", ") == names_in("round")
