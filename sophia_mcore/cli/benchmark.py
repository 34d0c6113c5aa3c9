"""`sophia benchmark`: its arguments. `launch.benchmark` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sophia_mcore.cli.options import NewSettings, Sets
from sophia_mcore.errors import UsageError


def benchmark(
    first: Annotated[str, typer.Argument(metavar="[MODEL]", help="Hugging Face folder, or an endpoint.")] = "",
    target: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="Folder of the run.")] = None,
    on: Annotated[
        list[str] | None, typer.Option("--on", metavar="NAME[=PATH],...", help="Benchmarks, each with its copy.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="paper, vlmevalkit, or both with a comma.")] = "paper",
    engine: Annotated[str, typer.Option(help="vllm or transformers.")] = "vllm",
    model_name: Annotated[str, typer.Option(help="The endpoint's name of the model.")] = "",
    judge: Annotated[str, typer.Option(metavar="URL", help="Endpoint of the judge.")] = "",
    judge_model: Annotated[str, typer.Option(help="The judge's model.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="First n questions of each benchmark.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer (default 16,384).")] = None,
    max_bad_rows: Annotated[int, typer.Option(min=0, help="Rows that may be unreadable.")] = 0,
    rescore: Annotated[
        Path | None, typer.Option("--rescore", metavar="FILE", help="Score these predictions instead of a model.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show the judge's cost; ask nothing.")] = False,
    new_settings: NewSettings = False,
    set_: Sets = None,
) -> None:
    """Evaluate a model on the benchmarks, or score predictions. See docs/benchmarks.md."""
    from sophia_mcore.config.schema import Score
    from sophia_mcore.launch import benchmark as work

    names = [one for text in on or () for one in text.split(",") if one]
    protocols = [name for name in protocol.split(",") if name]
    opened = work.judge_of(judge, judge_model)
    if rescore is not None:
        if len(protocols) != 1 or protocols[0] not in work.PROTOCOLS:
            raise UsageError(f"--protocol {protocol!r}: with --rescore one of {', '.join(work.PROTOCOLS)}")
        if len(names) > 1:
            raise UsageError("--rescore reads one benchmark's file: name one with --on, or none")
        out = target or (Path(first) if first else None)
        if out is not None:
            work.check_target(out, rescore)
        scoring = work.PROTOCOLS[protocols[0]].scoring
        name = names[0].partition("=")[0] if names else ""
        if opened is not None:
            typer.echo(work.rescore(rescore, scoring, Score(judge=opened), benchmark=name, dry_run=True)["cost"])
        if dry_run:
            return
        found = work.rescore(rescore, scoring, Score(judge=opened), benchmark=name)
        if out is not None:
            work.write_scores(out, found)
        for line in work.shown_benchmark(found):
            typer.echo(line)
        if found["cut_cells"]:
            typer.echo(
                f"warning: {found['cut_cells']} answers fill a cell to its last character: they were cut", err=True
            )
        return
    if not first or target is None or not names:
        raise UsageError("name MODEL, OUT and --on BENCHMARK,... (or --rescore FILE)")
    wanted = work.Wanted(
        model=first, on=names, protocols=protocols, engine=engine, model_name=model_name, limit=limit,
        max_tokens=max_tokens, judge=opened, max_bad_rows=max_bad_rows, settings=set_ or (),
    )  # fmt: skip
    for line in work.run_benchmark(wanted, target, dry_run=dry_run, new_settings=new_settings):
        typer.echo(line)
