"""An engine that is kept full across work units, against one unit after the other; real vLLM, long-tailed lengths.

python -m tests.bench.bench_filling [--texts 192] [--places 8] [--each 4 2 1] [--mean 60] [--hidden 512]

A step reads the weights of a model of 35M parameters (`--hidden`, 8 layers), as a step of a large model does; with a
toy's weights the time goes into what is done for every text. The weights are random: each token ends the text with the
same chance, so that lengths are geometric, cut off at five times the mean. A prompt has 24 tokens: with a mean of 60 a
third of all tokens that the model computes are a prompt's, which are computed once whatever the order is. (A caption
and its question are a tenth of what a reasoner computes; with short answers the prompts hide what the order does.)

`--each`: texts of a unit for each place of the engine. In the examples for 8B and 38B it is 4 in reasoning, 2 in
captions, 1/4 in evaluation; in the one for 1B it is 2, 2 and 1/2. The first is the line's own figure, the others are
under their number. The same units are sampled twice in the same process; ratio = tokens per CPU-second, together / one
unit after the other. ``equal``: the shards' bytes are the same (with a toy's weights: larger products round by what
runs beside). Units are taken in order: which one is the last decides how long the engine runs empty at the end, which
weighs more here than in a phase of thousands of units. It takes four minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from sophia_mcore.config.engines import Sampling, VllmEngine
from sophia_mcore.generate.engine import Request
from sophia_mcore.generate.opening import open_engine
from sophia_mcore.generate.phase import Asked
from sophia_mcore.generate.sampling import run_phase
from sophia_mcore.generate.vllm_cpu import prepare_process
from sophia_mcore.pretrained.chat import Message
from sophia_mcore.pretrained.family import ImageLimits
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Trajectory
from sophia_mcore.store.units import Unit, UnitQueue, units_of
from tests.bench.rollout_python import Counted, inside

LONGEST = 5  # times the mean


def make_model(folder: Path, mean: int, hidden: int) -> None:
    """A small text model of which each token in ``mean`` is an end token."""
    from tests.support.tiny_models import save_qwen2

    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": 8}
    save_qwen2(folder, seed=3, **sizes, num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    ends = random.Random(0).sample(range(3, vocabulary), vocabulary // mean)
    path.write_text(json.dumps({**settings, "eos_token_id": sorted(ends)}))


def ask(unit: Unit, mean: int) -> list[Asked[Trajectory]]:
    sampling = Sampling(max_tokens=LONGEST * mean)
    return [
        Asked(
            Request(messages=(Message("user", f"{int(item) % 10} and 7"),), sampling=sampling, seed=int(item)),
            partial(Trajectory, id=item, question_id=item, index=0),
        )
        for item in unit.items
    ]


def sample_both(engine: Any, options: argparse.Namespace, each: int) -> dict[str, Any]:
    """The same units in turn and together."""
    size = each * options.places
    units = units_of([str(number) for number in range(options.texts // size * size)], size)
    found: dict[str, Any] = {}
    for name, across in (("in_turn", False), ("together", True)):
        counted = Counted(engine, options.places, across_units=across)
        queue = UnitQueue(options.inside / f"{name}-{each}", units, in_order=True)
        run_phase(name, queue, Trajectory, counted, NoProgress(), ask=partial(ask, mean=options.mean), settings={})
        found[name] = counted.figures()
    shards = [(options.inside / f"{name}-{each}").glob("*.parquet") for name in ("in_turn", "together")]
    first, second = ({path.name: path.read_bytes() for path in paths} for paths in shards)
    ours, peer = found["together"], found["in_turn"]
    return {
        "ours": ours["tokens_per_cpu_second"],
        "peer": peer["tokens_per_cpu_second"],
        "ratio": round(ours["tokens_per_cpu_second"] / peer["tokens_per_cpu_second"], 4),
        "ratio_of_steps": round(peer["steps"] / ours["steps"], 2),
        "ratio_of_seconds": round(peer["seconds"] / ours["seconds"], 2),
        "mean_to_maximum": round(LONGEST * options.mean * ours["texts"] / ours["tokens"], 1),
        **found,
        "equal": first == second,
    }


def sample_all(options: argparse.Namespace) -> dict[str, Any]:
    """By texts for each place. Under the rollout environment's Python."""
    prepare_process()
    config = VllmEngine(kind="vllm", dtype="float32", kv_cache_mib=64, max_sequences=options.places)
    engine: Any = open_engine(config, options.inside / "model", limits=ImageLimits())
    (warm,) = units_of([str(number) for number in range(options.places)], options.places)
    engine.generate([one.request for one in ask(warm, options.mean)])
    found = {str(each): sample_both(engine, options, each) for each in options.each}
    engine.close()
    return found


def main() -> None:
    """Measure, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("texts", 192), ("places", 8), ("mean", 60), ("hidden", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--each", type=int, nargs="+", default=[4, 2, 1])
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        print(json.dumps(sample_all(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model", options.mean, options.hidden)
        given = [f"--{name}={getattr(options, name)}" for name in ("texts", "places", "mean")]
        found = inside("tests.bench.bench_filling", *given, f"--inside={folder}", "--each", *map(str, options.each))
    about = {"name": "filling", "unit": "tokens per CPU-second", "peer_name": "one unit after the other"}
    first, *others = found.items()
    print(json.dumps(about | {"texts_per_place": int(first[0])} | first[1] | dict(others)))


if __name__ == "__main__":
    main()
