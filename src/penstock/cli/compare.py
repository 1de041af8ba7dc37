"""`penstock compare`: mechanisms side by side, on equal terms."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter


def compare(  # noqa: PLR0913 - each is a flag
    *mechanisms: str,
    skip: list[str] | None = None,
    router: list[str] | None = None,
    activation: list[str] | None = None,
    task: list[str] | None = None,
    preset: Literal["quick", "standard", "thorough"] | None = None,
    out: Path = Path("runs/compare"),
    text: Path | None = None,
    option: list[str] | None = None,
    seeds: int | None = None,
    trials: int | None = None,
    match: Literal["params", "flops"] | None = None,
    device: str | None = None,
    workers: int | None = None,
    ray: str | None = None,
    log: Literal["tensorboard", "mlflow", "wandb"] | None = None,
    spec: Path | None = None,
    resume: Annotated[bool, Parameter(negative="--no-resume")] = True,
    values: Annotated[list[str] | None, Parameter(name="--set")] = None,
) -> None:
    """Compare gating mechanisms on equal terms and write a report.

    Every mechanism gets a model of the same size, the same data in the same order, as many learning rates to choose from,
    and the same seeds. The same command goes on where it was stopped; mechanisms, tasks and seeds can be added later.

    Args:
        mechanisms: names, or package.module:Class, with arguments as in gla,heads=2; five well-known ones by default, and
            attention beside skips, routers and activations.
        skip: a way of skipping tokens, in every layer of a model with attention and SwiGLU, or a model that skips:
            early-exit, evit, jei-dnn, skip-middle; once for each.
        router: a router of a mixture of experts in the place of SwiGLU, beside attention, once for each.
        activation: an activation function, a mechanism or a name of the survey, of a plain feed-forward layer in the place
            of SwiGLU, beside attention, once for each.
        task: a task to compare on, once for each; by default mqar and text.
        preset: sizes and numbers: quick (minutes), standard or thorough; quick by default.
        out: the folder that everything is written to.
        text: a UTF-8 file for the task text.
        option: an option of a task, key=value or task.key=value, once for each.
        seeds: judged runs of a mechanism on a task.
        trials: learning rates tried for a mechanism on a task.
        match: what the models have in common: their parameters or their forward operations.
        device: cpu, cuda or mps; by default an accelerator where there is one.
        workers: runs done at a time; by default as many as there are cores or GPUs for.
        ray: address of a Ray cluster to do the runs on; auto finds the one this machine belongs to.
        log: a tracker to send the rows of every run to as well.
        spec: a TOML file that describes the study; flags go before it.
        resume: go on with what the folder already holds; without it, a folder that holds a study is refused.
        values: any other number of the study, key=value, such as steps=500 or dim=128, once for each.
    """
    from penstock.bench import compare as run
    from penstock.bench.plan.choice import Socket, assignment, for_socket

    if not resume:
        refuse_study(out)
    given: dict[str, Any] = {"preset": preset, "seeds": seeds, "trials": trials, "match": match, "device": device}
    given |= dict(assignment(pair) for pair in values or ())
    sockets: dict[Socket, list[str] | None] = {"skip": skip, "router": router, "activation": activation}
    named = [*mechanisms, *(name for socket, names in sockets.items() for name in for_socket(names or (), socket))]
    if named and not mechanisms:
        named.insert(0, "attention")
    run(
        named,
        task or (),
        out=out,
        spec=spec,
        text=text,
        options=option or (),
        workers=workers,
        ray=ray,
        log=log,
        **given,
    )


def refuse_study(out: Path) -> None:
    """Raise if the folder holds a study."""
    from penstock.core import ConfigError

    if (out / "study.json").exists():
        raise ConfigError(f"compare: {out} holds a study already; without --resume, name another folder with --out")
