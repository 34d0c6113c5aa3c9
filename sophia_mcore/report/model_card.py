"""The model card of an export: README.md with where the model comes from, its scores, and five lines that load it.

It is a pure function of the run: the same run makes the same bytes. Nothing of the weights is touched.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sophia_mcore import __version__
from sophia_mcore.config.schema import Config
from sophia_mcore.evaluate.results import results
from sophia_mcore.phase import Phase
from sophia_mcore.pretrained.families import family_of
from sophia_mcore.pretrained.hub import hub_name
from sophia_mcore.report.rendering import visible
from sophia_mcore.store.atomic import write_text
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.labels import BASE, STAGE, STAGE_START, round_of
from sophia_mcore.store.layout import MODEL_CARD, RunFolder
from sophia_mcore.track.lineage import lineage_of
from sophia_mcore.track.runs import redact

LOADS = """import PIL.Image, transformers
processor, model = transformers.AutoProcessor.from_pretrained("."), transformers.AutoModelForImageTextToText.from_pretrained(".")
chat = [{"role": "user", "content": [{"type": "image", "image": PIL.Image.open("picture.png")}, {"type": "text", "text": "What is this?"}]}]
inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=256))[0])
"""  # noqa: E501
_METHOD = {
    "": "SOPHIA, semi-off-policy reinforcement learning ([arXiv 2507.16814](https://arxiv.org/abs/2507.16814))",
    STAGE: "the on-policy stage that follows SOPHIA ([arXiv 2507.16814](https://arxiv.org/abs/2507.16814))",
}


def write_cards(config: Config, run: RunFolder, phases: Sequence[Phase]) -> list[Path]:
    """Write the card of each model that the run has exported. Returns those that have changed.

    Raises SophiaError when a card cannot be written.
    """
    labels = run.exports(_rounds(config, run)) | {STAGE: run.rl.model}
    exported = {label: folder for label, folder in labels.items() if (folder / "config.json").is_file()}
    if not exported:
        return []
    evaluation = results(run, config, lambda _: None)
    written = []
    for label, folder in exported.items():
        card = model_card(config, run, phases, label, evaluation)
        target = folder / MODEL_CARD
        if not target.is_file() or target.read_bytes() != card.encode():
            write_text(target, card)
            written.append(target)
    return written


def _rounds(config: Config, run: RunFolder) -> int:
    return max(config.run.rounds, len(run.rounds()))


def model_card(config: Config, run: RunFolder, phases: Sequence[Phase], label: str, evaluation: dict[str, Any]) -> str:
    """The text of a card. ``label``: "round-0", or "rl" for the on-policy stage; ``evaluation``: as in report.json."""
    folder = run.rl.model if label == STAGE else run.round(_index(label)).model
    before = STAGE_START if label == STAGE else BASE
    scores = {name: evaluation[name] for name in (before, label) if name in evaluation}
    parts = [
        _metadata(config, label, scores),
        f"# {_plain(config.run.name)}, {'on-policy stage' if label == STAGE else label.replace('-', ' ')}\n",
        f"Made from {_model(config.models.policy)} by {_METHOD[STAGE if label == STAGE else '']} with sophia_mcore.\n",
        _loading(folder),
        _scores(scores),
        _origin(config, run, label),
        _lineage(run, phases, label),
    ]
    return "\n".join(part for part in parts if part)


def _index(label: str) -> int:
    index = round_of(label)
    assert index is not None, f"{label}: not the label of a round"
    return index


def _metadata(config: Config, label: str, scores: dict[str, Any]) -> str:
    """The card's YAML head; its values are JSON, which is YAML too, so that no text can end a value."""
    base = _hub(config.models.policy)
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["sophia", "sophia_mcore", "vision-language", "reasoning"],
    }
    if base:
        head["base_model"] = base
    if label in scores:
        head["model-index"] = [{"name": _title(config, label), "results": _results(scores[label])}]
    return "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items()) + "---\n"


def _title(config: Config, label: str) -> str:
    return f"{visible(config.run.name)} {label}"


def _results(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the hub shows: pass@1 of each data set under each protocol."""
    return [
        {
            "task": {"type": "image-text-to-text"},
            "dataset": {"type": "custom", "name": visible(source)},
            "metrics": [{"type": "pass@1", "name": f"pass@1, {protocol}", "value": round(100 * value["pass_at_1"], 2)}],
        }
        for protocol, values in result["protocols"].items()
        for source, value in values["by_source"].items()
    ]


def _loading(folder: Path) -> str:
    found = family_of(json_or_empty(folder / "config.json"))
    if found is not None and found[1] == "hf-custom":
        return (
            "## Loading\n\nThe folder has the layout of the original repositories. vLLM loads it as it is.\n"
            "For transformers, write the native layout first: `sophia convert MODEL OUT --to hf`.\n"
        )
    return f"## Loading\n\nIn this folder, with a `picture.png` beside it:\n\n```python\n{LOADS}```\n"


def _scores(scores: dict[str, Any]) -> str:
    if not scores:
        return "## Scores\n\nNot evaluated yet.\n"
    lines = ["## Scores\n", "Share of held-out questions that are answered right at the first try (pass@1), in %.\n"]
    lines += ["| model | protocol | data set | pass@1 | 95% interval | questions |", "|---|---|---|---|---|---|"]
    for label, result in scores.items():
        for protocol, values in result["protocols"].items():
            rows = {"all": values} | (values["by_source"] if len(values["by_source"]) > 1 else {})
            for source, value in rows.items():
                low, high = (f"{100 * bound:.1f}" for bound in value["ci95"])
                cells = (label, _plain(protocol), _plain(source), f"{100 * value['pass_at_1']:.1f}")
                lines.append(f"| {' | '.join(cells)} | {low} to {high} | {value['n']:,} |")
    return "\n".join(lines) + "\n"


def _origin(config: Config, run: RunFolder, label: str) -> str:
    rows = {"policy": _model(config.models.policy), "reasoner": _model(config.models.reasoner)}
    rows["questions"] = ", ".join(_plain(source.name or str(source.path)) for source in config.data.questions) or "-"
    if label == STAGE:
        summary = json_or_empty(run.rl.summary_file)
        rows |= {name: f"{summary[key]:,}" for key, name in _STAGE.items() if isinstance(summary.get(key), int)}
    else:
        kept = json_or_empty(run.round(_index(label)).kept_summary_file)
        trained = json_or_empty(run.round(_index(label)).train_summary_file)
        rows |= {
            name: f"{kept[name]:,}" for name in ("captions", "trajectories", "kept") if isinstance(kept.get(name), int)
        }
        rows |= {"steps": f"{trained['steps']:,}"} if isinstance(trained.get("steps"), int) else {}
        rows["objective"] = f"`{config.objective.loss.name}`"
        rows["learning rate"] = f"{config.train.learning_rate:g}"
    rows["software"] = f"sophia_mcore {__version__}"
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    return f"## Training\n\n| | |\n|---|---|\n{table}"


_STAGE = {"batches": "batches", "updates": "updates", "tokens_sampled": "tokens sampled", "version": "version"}


def _lineage(run: RunFolder, phases: Sequence[Phase], label: str) -> str:
    links = lineage_of(run, 0 if label == STAGE else _index(label), phases)
    if label == STAGE:
        digest = json_or_empty(run.rl.summary_file).get("digest")
        links = {"stage": {"digest": digest} if digest else {}} | links
    rows = [(name, value) for name, link in links.items() for name, value in _flat(name, link)]
    if not rows:
        return ""
    table = "".join(f"| {_plain(name)} | {_plain(str(value))} |\n" for name, value in rows)
    return f"## Lineage\n\nEach link by its content, the last first.\n\n| link | content |\n|---|---|\n{table}"


_OF_A_LINK = (
    "sha256",
    "conversion_sha256",
    "from_checkpoint",
    "proof",
    "name",
    "model_digest",
    "digest",
    "of",
    "uid",
    "shared",
)


def _flat(name: str, link: dict[str, Any]) -> list[tuple[str, Any]]:
    found = [(f"{name} {key}", link[key]) for key in _OF_A_LINK if link.get(key) and not isinstance(link[key], dict)]
    nested = [(f"{name} {key}", child) for key, child in link.items() if isinstance(child, dict)]
    return found + [row for inner, child in nested for row in _flat(inner, child)]


def _hub(path: Path) -> str:
    """The name on the hub of a model setting, also of a folder in the hub's cache; "" for other folders."""
    if (name := hub_name(path)) is not None:
        return name.repository
    cached = next((part for part in path.parts if part.startswith("models--") and part.count("--") == 2), "")
    return "/".join(cached.split("--")[1:])


def _model(path: Path | None) -> str:
    """How a card names a model: linked by its name on the hub, else by its folder's name alone."""
    if path is None:
        return "-"
    found = _hub(path)
    return f"[{found}](https://huggingface.co/{found})" if found else f"`{_plain(path.name)}` (a local folder)"


def _plain(text: str) -> str:
    """A text of others as one line of Markdown that is text: no markup, no table cell, no HTML."""
    line = html.escape(redact(" ".join(visible(text).split()))[:300], quote=False)
    return "".join(f"\\{c}" if c in "\\`*_[]|#!" else c for c in line)
