"""`sophia benchmark` against stub endpoints, inside and outside a run; predictions go out and come back."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from typer.testing import CliRunner

from sophia_mcore.benchmarks.exchange import CELL_LIMIT, export_rows, read_predictions, write_predictions
from sophia_mcore.benchmarks.rows import read_benchmark
from sophia_mcore.cli import app
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.benchmark import Wanted, benchmark_config
from tests.support.benchmark_files import NEEDED, TABLES, folder, table

pytestmark = NEEDED


class Stub:
    """An OpenAI-compatible endpoint; ``reply(messages)`` makes the text. Keeps what it was asked."""

    def __init__(self, reply: Any) -> None:
        self.asked: list[list[dict[str, Any]]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.asked.append(body["messages"])
                message = {"role": "assistant", "content": reply(body["messages"])}
                text = json.dumps({
                    "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
                }).encode()  # fmt: skip
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def stubs() -> Iterator[list[Stub]]:
    opened: list[Stub] = []
    yield opened
    for stub in opened:
        stub.server.shutdown()
        stub.server.server_close()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["benchmark", *arguments], catch_exceptions=True)


def text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "<image>") for part in content)


@pytest.mark.parametrize("name", list(TABLES))
def test_predictions_go_out_as_vlmevalkits_files_and_come_back(name: str, tmp_path: Path) -> None:
    given = folder() / f"data/vlmevalkit_predictions/toy_{TABLES[name]}.tsv"
    found = read_predictions(given)
    for suffix in (".tsv", ".xlsx", ".json"):
        target = tmp_path / f"toy_{TABLES[name]}{suffix}"
        assert write_predictions(target, found.answers) == 0
        again = read_predictions(target)
        assert again.benchmark.name == name
        assert [(q.id, q.answer, q.options, text) for q, text in again.answers] == [
            (q.id, q.answer, q.options, text) for q, text in found.answers
        ]
    assert (tmp_path / given.name).read_bytes() == given.read_bytes()


def test_hostile_cells_of_predictions(tmp_path: Path) -> None:
    question = read_predictions(folder() / "data/vlmevalkit_predictions/toy_MathVision.tsv").answers[3][0]
    long = "x" * 40_000 + " so 60"
    texts = ["", "None", "=HYPERLINK(1)", long, "\x07 60", "<think>" + "y" * 40_000 + "</think>60"]
    details = json.loads(question.details)
    questions = []
    for number in range(len(texts)):
        values = details["values"] | {"id": str(number), "index": str(number)}
        text = json.dumps(details | {"values": values})
        questions.append(dataclasses.replace(question, id=str(number), details=text))
    answers = list(zip(questions, texts, strict=True))
    assert [row["prediction"] for row in export_rows(answers)][:2] == ["?", "None "]
    book = tmp_path / "m_MathVision.xlsx"
    assert write_predictions(book, answers) == 2  # a long answer and a long thought
    cells = [row[-2] for row in openpyxl.load_workbook(book).worksheets[0].iter_rows(min_row=2)]
    assert cells[2].data_type == "s" and cells[2].value == "=HYPERLINK(1)"
    assert len(str(cells[3].value)) == CELL_LIMIT and str(cells[3].value).endswith("so 60")
    assert read_predictions(book).cut == 2
    assert write_predictions(tmp_path / "m_MathVision.tsv", answers) == 0
    assert read_predictions(tmp_path / "m_MathVision.tsv").answers[3][1] == long
    assert read_predictions(tmp_path / "m_MathVision.tsv").answers[0][1] == ""
    (tmp_path / "m_Unknown.tsv").write_bytes((tmp_path / "m_MathVision.tsv").read_bytes())
    with pytest.raises(UsageError, match="name it with --on"):
        read_predictions(tmp_path / "m_Unknown.tsv")
    rows = (tmp_path / "m_MathVision.tsv").read_text().split("\n")
    (tmp_path / "n_MathVision.tsv").write_text("\n".join([*rows[:2], rows[1], ""]))
    with pytest.raises(SophiaError, match="index of another row"):
        read_predictions(tmp_path / "n_MathVision.tsv")


@pytest.mark.parametrize("suffix", ["tsv", "json"])
def test_an_index_that_stands_twice_is_named(tmp_path: Path, suffix: str) -> None:
    row = {"index": "7", "id": "validation_Art_1", "question": "Which?", "A": "red", "B": "blue", "answer": "A",
           "category": "Art", "l2-category": "Art & Design", "split": "validation", "prediction": "A"}  # fmt: skip
    rows = [row, row | {"index": "8", "id": "validation_Art_2"}, row | {"id": "validation_Art_3"}]
    file = tmp_path / f"m_MMMU_DEV_VAL.{suffix}"
    lines = ["\t".join(row), *("\t".join(one.values()) for one in rows)]
    file.write_text(json.dumps(rows) if suffix == "json" else "\n".join(lines) + "\n")
    result = run("--rescore", str(file), "--protocol", "vlmevalkit")
    assert isinstance(result.exception, SophiaError)
    assert str(result.exception) == f"{file}: row 2 has the index of another row: 7, first in row 0"


def test_rescoring_a_file(tmp_path: Path, stubs: list[Stub]) -> None:
    file = str(folder() / "data/vlmevalkit_predictions/toy_MathVista_MINI.tsv")
    out = tmp_path / "scores.json"
    result = run("--rescore", file, "--protocol", "vlmevalkit", str(out))
    assert result.exit_code == 0 and "25.00" in result.output and "rules only" in result.output
    assert "truncated unknown, unreadable" in result.output  # the file does not tell
    found = json.loads(out.read_text())
    assert found["score"] == 0.25 and found["judge_needed"] == 0.75 and found["truncated"] is None
    assert found["vlmevalkit"][0]["acc"] == 25.0

    def reply(messages: list[dict[str, Any]]) -> str:
        lines = (folder() / "data/predictions/MathVista_MINI.jsonl").read_text().splitlines()
        said = {row["prediction"].rpartition("</think>")[2].strip(): row["extracted"] for row in map(json.loads, lines)}
        return "Answer: " + next(value for key, value in said.items() if key in text_of(messages[-1]))

    stubs.append(Stub(reply))
    cache = f"{tmp_path}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cache)  # the judge's replies are stored in judge_cache
        result = run("--rescore", file, "--protocol", "vlmevalkit", "--judge", stubs[0].address, "--judge-model", "j")
        assert result.exit_code == 0, result.output
        assert result.output.startswith("at most 6 calls of the judge") and "75.00" in result.output
        assert len(stubs[0].asked) == 6
        run("--rescore", file, "--protocol", "vlmevalkit", "--judge", stubs[0].address, "--judge-model", "j")
        assert len(stubs[0].asked) == 6  # stored


def test_rescoring_writes_over_scores_alone(tmp_path: Path) -> None:
    file = tmp_path / "toy_MathVista_MINI.json"
    rows = [{"index": 1, "question": "?", "answer": "1", "question_type": "free_form", "answer_type": "integer",
             "prediction": "1", "task": "t", "skills": "['s']"}]  # fmt: skip
    file.write_text(json.dumps(rows))
    mine = tmp_path / "mine.json"
    mine.write_text('{"mine": 1}')
    for target in (file, mine):
        result = run("--rescore", str(file), "--on", "mathvista", str(target))
        assert isinstance(result.exception, UsageError) and "holds no scores" in str(result.exception)
    assert json.loads(file.read_text()) == rows and json.loads(mine.read_text()) == {"mine": 1}
    out = tmp_path / "scores.json"
    assert [run("--rescore", str(file), "--on", "mathvista", str(out)).exit_code for _ in range(2)] == [0, 0]


def test_lmms_evals_samples(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (row,) = pq.read_table(folder() / "data/hub/MathVista/testmini-00000-of-00001.parquet").slice(0, 1).to_pylist()
    row.pop("decoded_image")
    sample = {"doc_id": 0, "doc": row, "filtered_resps": ["C"], "target": "C"}
    file = tmp_path / "20260101_samples_mathvista_testmini.jsonl"
    file.write_text(json.dumps(sample) + "\n")
    result = run("--rescore", str(file))
    assert result.exit_code == 0 and "100.00" in result.output
    other = file.rename(tmp_path / "20260101_samples_mathvista_testmini_cot.jsonl")
    assert "did you mean 'mathvista'?): name it with --on" in str(run("--rescore", str(other)).exception)
    assert "100.00" in run("--rescore", str(other), "--on", "mathvista").output
    file.write_text(json.dumps({"doc_id": 0}) + "\n")
    assert isinstance(run("--rescore", str(file)).exception, SophiaError)


def test_an_endpoint_is_evaluated_outside_a_run(tmp_path: Path, stubs: list[Stub], monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    stubs.append(Stub(lambda messages: "<think>\nhm\n</think>\n\n\\boxed{C}"))
    out = tmp_path / "InternVL3-8B-eval"
    on = ",".join(f"{name}={table(name).path}" for name in ("mmmu", "mathvista"))
    arguments = (stubs[0].address, str(out), "--model-name", "InternVL3-8B", "--on", on, "--protocol=paper,vlmevalkit")
    monkeypatch.chdir(tmp_path)  # no environment with vLLM is here, and none is needed
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    assert len(stubs[0].asked) == 32  # 16 questions, two protocols
    with_system = [messages for messages in stubs[0].asked if messages[0]["role"] == "system"]
    assert len(with_system) == 16  # vlmevalkit's prompts have none
    asked = [text_of(messages[-1]) for messages in stubs[0].asked]
    assert (
        "How do <image> and <image> differ?\n(A) <image> is larger\n(B) <image> is larger\n(C) They are congruent"
        in asked
    )
    assert any(
        text.startswith("Question: How do <image> and <image> differ?\nOptions:\nA. <image> is") for text in asked
    )
    assert "the paper prints 67.80 for InternVL3-8B" in result.output
    assert "not the whole benchmark: it has 900 questions" in result.output
    again = run(*arguments)
    assert again.exit_code == 0 and len(stubs[0].asked) == 32  # finished work is not redone
    changed = (*arguments, "--max-tokens", "100", "--protocol", "paper")
    with pytest.raises(UsageError, match="--new-settings"):
        raise run(*changed).exception
    assert len(stubs[0].asked) == 32
    report = json.loads((out / "report.json").read_text())
    both = report["evaluation"]["base"]["protocols"]
    assert both["paper"]["benchmarks"]["mmmu"]["n"] == 8
    assert both["vlmevalkit"]["benchmarks"]["mathvista"]["vlmevalkit"][0]["tot"] == 8
    written = out / "predictions/vlmevalkit/InternVL3-8B/InternVL3-8B_MathVista_MINI.tsv"
    assert [text for _, text in read_predictions(written).answers] == ["<think>\nhm\n</think>\n\n\\boxed{C}"] * 8
    renewed = run(*changed, "--new-settings")
    assert renewed.exit_code == 0, (renewed.output, renewed.exception)
    assert len(stubs[0].asked) == 32 + 16


def test_an_engine_is_found_beside_this_environment(tmp_path: Path, monkeypatch: Any) -> None:
    python = tmp_path / "project/.venv-vllm/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "project/.venv"))
    monkeypatch.chdir(tmp_path)
    wanted = Wanted(model=str(tmp_path), on=["mmmu"])
    assert benchmark_config(wanted, tmp_path / "out").environments.rollout == python
    named = dataclasses.replace(wanted, settings=["environments.rollout=other"])
    assert benchmark_config(named, tmp_path / "out").environments.rollout == Path("other")


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (("x", str(tmp_path / "o"), "--on", "mathvisto"), "no such model folder|did you mean 'mathvista'"),
        ((str(tmp_path), str(tmp_path / "o"), "--on", "mathvisto"), "did you mean 'mathvista'"),
        ((str(tmp_path), str(tmp_path / "o"), "--on", "mmmu", "--protocol", "papre"), "one of paper, vlmevalkit"),
        ((str(tmp_path / "empty"), str(tmp_path / "o"), "--on", "mmmu"), "config.json is missing"),
        (("http://h/v1", "o", "--model-name", "m", "--on", "mmmu", "--engine", "vlm"), "vllm or transformers"),
        (("http://127.0.0.1:9/v1", str(tmp_path / "o"), "--on", "mmmu"), "--model-name"),
        ((), "name MODEL, OUT and --on"),
        (("--rescore", str(tmp_path / "no.tsv")), "no such file"),
        (("--rescore", str(tmp_path / "empty")), "is a folder, name a file in it"),
        (("m", "o", "--on", "mmmu", "--judge-model", "j"), "--judge-model j: give the judge's address with --judge"),
    ):
        result = run(*arguments)
        assert isinstance(result.exception, UsageError), arguments
        assert re.search(message, str(result.exception)), (arguments, str(result.exception))
    assert list(read_benchmark(table("mmmu")))
