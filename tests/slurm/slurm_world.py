"""Runs small enough for tests, an endpoint that answers for a reasoner, and `sophia` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.launch.slurm.attempts import Attempt, read_attempts
from sophia_mcore.launch.slurm.commands import QueuedJob
from sophia_mcore.store.layout import RunFolder
from tests.slurm.cluster import Cluster, wait_for
from tests.support.pictures import smooth

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = 6


class Endpoint:
    """An OpenAI-compatible server. ``broken`` makes it refuse a prompt; ``seconds`` is how long an answer takes."""

    def __init__(self) -> None:
        self.prompts: Counter[str] = Counter()  # what was answered, by seed and prompt
        self.broken: Callable[[str], bool] = lambda prompt: False
        self.seconds = 0.0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._send(*owner.answer(body))

            def _send(self, status: int, reply: dict[str, Any]) -> None:
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Endpoint:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        content = body["messages"][-1]["content"]
        prompt = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        if self.broken(prompt):
            return 400, {"error": {"message": "this prompt cannot be answered", "type": "t", "code": "c"}}
        time.sleep(self.seconds)
        self.prompts[f"{body['seed']} {prompt}"] += 1
        number = prompt.rstrip("?").rpartition(" ")[2]
        right = body["seed"] % 4 or "nothing"
        text = f"It is {number}, so \\boxed{{{number if right else 0}}}."
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
        return 200, {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice],
                     "usage": usage}  # fmt: skip


def engine_of(endpoint: Endpoint, **changes: Any) -> dict[str, Any]:
    """Settings of an engine that asks the endpoint, at most two requests at a time."""
    fixed = {"kind": "openai", "base_url": endpoint.url, "model_name": "stub", "max_retries": 0, "concurrency": 2}
    return fixed | changes


def make_config(folder: Path, policy: Path, endpoint: Endpoint, **sections: dict[str, Any]) -> Path:
    """A run's TOML and its env file in ``folder``; the run folder is ``folder``/run. ``sections`` replace settings."""
    images = folder / "images"
    images.mkdir(parents=True)
    rows = []
    for i in range(QUESTIONS):
        (images / f"{i}.png").write_bytes(smooth(40, 40, seed=i))
        rows.append({"id": f"q{i}", "question": f"What is {i}?", "answer": str(i), "images": [f"{i}.png"]})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "seeing.txt").write_text("I see {caption}. {question}")
    (folder / "short.txt").write_text("Think.")
    (folder / "cluster.env").write_text(
        f"OPTIONS_ALL='--cpus-per-task=2 --mem=1G'\nTASKS_CAPTIONS=2\nTASKS_REASONING=2\nTASKS_EVALUATE=1\n"
        f"PYTHON_TRAINER={sys.executable}\nPYTHON_ROLLOUT={sys.executable}\nOMP_NUM_THREADS=1\n"
    )
    source = {"kind": "jsonl", "path": str(folder / "questions.jsonl"), "images_folder": str(images)}
    served = engine_of(endpoint)
    short = {"max_tokens": 8}
    values: dict[str, dict[str, Any]] = {
        "run": {"name": "tiny", "folder": folder / "run"},
        "models": {"policy": policy},
        "environments": {"rollout": sys.executable},
        "data": {"questions": [source]},
        "captions": {"per_image": 2, "images_per_unit": 1, "sampling": short, "engine": served,
                     "prompt_file": folder / "short.txt"},
        "reasoning": {"per_caption": 2, "questions_per_unit": 1, "sampling": short, "engine": served,
                      "prompt_file": folder / "seeing.txt"},
        "score": {"workers": 1, "second_opinions": 0},
        "batch": {"sequence_length_tokens": 192, "max_tiles": 1, "long_thinking_prompt_file": folder / "short.txt"},
        "parallel": {"pipeline": 2, "processes": 2, "processes_per_node": 1},
        "train": {"dtype": "float32", "steps": 6, "global_batch_samples": 2, "learning_rate": 5e-3,
                  "save_every_steps": 2, "measure_samples": 4, "threads_per_process": 1},
        "evaluate": {"questions": [source], "questions_per_unit": 2,
                     "engine": {"kind": "transformers", "dtype": "float32"},
                     "protocols": [{"name": "greedy", "sampling": {**short, "temperature": 0.0}}]},
        "track": {"enabled": False},
        "cluster": {"env_file": folder / "cluster.env", "scripts": ROOT / "slurm"},
    }  # fmt: skip
    for name, settings in sections.items():
        values[name] = values.get(name, {}) | settings
    path = folder / "run.toml"
    path.write_text(dump_toml(Config.model_validate(values)))
    return path


def sophia(cluster: Cluster, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command, as typed on a login node of the cluster."""
    command = [sys.executable, "-m", "sophia_mcore.cli", *map(str, arguments)]
    environment = {**cluster.environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def jobs(cluster: Cluster, phase: str = "") -> list[QueuedJob]:
    """All jobs that the cluster remembers, or those of one phase, oldest first."""
    text = cluster.command("squeue", "-h", "--array", "--states=all", "--format=%i|%T|%r|%N|%j", "--sort=i")
    rows = [line.split("|") for line in text.splitlines()]
    found = [QueuedJob(row[0], row[1], row[2], row[3], (row[4].partition("-r")[0], 0)) for row in rows]
    return [job for job in found if not phase or job.key[0] == phase]


def finish(cluster: Cluster, seconds: float = 120, *, hurry: bool = False) -> None:
    """Wait until no job is left. ``hurry``: the two minutes that Slurm waits after a requeue of its own are cut short.

    What job.sh requeues must begin without help, and well before those two minutes.
    """

    def idle() -> bool:
        waiting = cluster.command("squeue", "-h", "--format=%A|%T|%r").splitlines()
        for line in waiting:
            number, state, reason = line.split("|")
            if hurry and state == "PENDING" and reason == "BeginTime":
                cluster.command("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)
        return not waiting

    wait_for(idle, "the end of all jobs", seconds)


def attempts(run: RunFolder, phase: str) -> list[Attempt]:
    """Attempts at a phase, oldest first."""
    return [attempt for attempt in read_attempts(run) if attempt.phase == phase]


def logs(run: RunFolder) -> str:
    """Everything that the jobs wrote, for messages of failing tests."""
    folder = run.path / "slurm" / "logs"
    return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')}" for path in sorted(folder.glob("*.log")))
