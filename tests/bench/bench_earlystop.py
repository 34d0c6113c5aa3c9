"""What an early stop saves of a digits round, at the same kept set; real vLLM, the demo's models.

python -m tests.bench.bench_earlystop [--questions 60] [--waves 1]

The policy captions the pictures; then the reasoner answers with all K x N trajectories, and again in waves. Both are
scored. ratio = tokens sampled with the option / without, those of texts that were given up included. ``equal``:
kept.parquet is the same, byte for byte. Beside it the tokens per CPU-second of both: the engine stays full.
"""

from __future__ import annotations

import argparse
import json
import runpy
import tempfile
from pathlib import Path
from typing import Any

from sophia_mcore.config.load import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.generate.captions import generate_captions
from sophia_mcore.generate.opening import open_engine
from sophia_mcore.generate.reasoning import generate_trajectories
from sophia_mcore.generate.vllm_cpu import prepare_process
from sophia_mcore.launch import work
from sophia_mcore.pretrained.family import ImageLimits
from sophia_mcore.progress import NoProgress
from sophia_mcore.score.phase import score_round
from sophia_mcore.store.layout import Round, RunFolder
from tests.bench.rollout_python import ROOT, Counted, inside

PLACES = 64  # a round of 800 questions fills 256 with one trajectory of each caption, 60 questions fill so many


def config_of(folder: Path, questions: int, waves: str) -> Config:
    """The demo's configuration on questions that lie in the folder."""
    sets = [f"run.folder={folder}", "score.second_opinions=0", f"reasoning.questions_per_unit={max(1, questions // 3)}"]
    sets.append(f"reasoning.engine.max_sequences={PLACES}")
    found = load_config(
        ROOT / "examples/digits/run.toml", sets=[*sets, *([f"reasoning.waves={waves}"] if waves else [])]
    )
    source = found.data.questions[0].model_copy(update={"path": str(folder / "data/train.jsonl"), "limit": questions})
    data = found.data.model_copy(update={"questions": (source,)})
    return found.model_copy(update={"data": data, "evaluate": found.evaluate.model_copy(update={"questions": ()})})


def sample_both(folder: Path, questions: int, waves: str) -> dict[str, Any]:
    """Under the rollout environment's Python: the captions once, then the trajectories of both rounds (0 and 1)."""
    prepare_process()
    config = config_of(folder, questions, "")
    run = RunFolder(folder)
    assert config.captions.engine.kind == "vllm" and config.reasoning.engine.kind == "vllm"
    captioner = open_engine(config.captions.engine, config.models.policy, limits=ImageLimits(max_tiles=1))
    generate_captions(Round(config, run, 0), captioner, NoProgress())
    captioner.close()
    reasoner: Any = open_engine(config.reasoning.engine, config.models.reasoner, limits=ImageLimits())
    found = {}
    for name, given in (("everything", ""), ("in_waves", waves)):
        counted = Counted(reasoner, config.reasoning.engine.max_sequences)
        generate_trajectories(round_of(folder, questions, given), counted, NoProgress())
        found[name] = counted.figures()
    reasoner.close()
    return found


def round_of(folder: Path, questions: int, waves: str) -> Round:
    """Round 0 of the run, or of a copy beside it with other trajectories to the same captions."""
    if not waves:
        return Round(config_of(folder, questions, ""), RunFolder(folder), 0)
    other = RunFolder(folder / "waves")
    if not other.path.exists():
        other.round(0).path.mkdir(parents=True)
        for path in (RunFolder(folder).questions_file, RunFolder(folder).images):
            (other.path / path.name).symlink_to(path)
        other.round(0).captions.symlink_to(RunFolder(folder).round(0).captions)
    return Round(config_of(folder, questions, waves), other, 0)


def main() -> None:
    """Measure both, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--waves", default="[1]", help="as reasoning.waves, such as [2,2]")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        print(json.dumps(sample_both(options.inside, options.questions, options.waves)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write = runpy.run_path(str(ROOT / "examples/digits/world.py"))["write_questions"]
        write("train", options.questions, folder / "data")
        work.questions(round_of(folder, options.questions, ""), NoProgress())
        given = [f"--questions={options.questions}", f"--waves={options.waves}", f"--inside={folder}"]
        found = inside("tests.bench.bench_earlystop", *given)
        rounds = [round_of(folder, options.questions, waves) for waves in ("", options.waves)]
        summaries = [score_round(round, NoProgress()) for round in rounds]
        kept = [round.folder.kept_file.read_bytes() for round in rounds]
    ours, peer = found["in_waves"], found["everything"]
    line = {
        "name": "earlystop",
        "ours": ours["tokens"],
        "peer": peer["tokens"],
        "ratio": round(ours["tokens"] / peer["tokens"], 3),
        "unit": "tokens",
        "peer_name": "all K x N",
        "equal": kept[0] == kept[1],
        "kept": summaries[0]["kept"],
        "waves": options.waves,
        "ratio_of_throughput": round(ours["tokens_per_cpu_second"] / peer["tokens_per_cpu_second"], 2),
        "ratio_of_seconds": round(ours["seconds"] / peer["seconds"], 2),
        **found,
        "early_stop": summaries[1]["early_stop"],
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
