"""Named configurations of an experiment, and the command line that chooses and changes them."""

import contextlib
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import filelock
import tyro

from jaxdet.training import checkpoints, compilation, loop, processes, signals

PATIENCE = 30  # Seconds in which a run that was asked to stop saves and ends.

Config = TypeVar("Config")
Result = TypeVar("Result")


def from_command_line(
    configs: Mapping[str, tuple[str, Config]],
    *,
    default: str,
    description: str,
    arguments: Sequence[str] | None = None,
) -> Config:
    """Returns the named configuration with the flags that follow it.

        python experiments/x.py NAME --flag value

    Args:
      configs: (what it is for, the configuration) by name; all of one dataclass.
      default: The name when none is given.
      description: Shown by `--help`, above the names.
      arguments: In place of the command line's.

    Raises:
      SystemExit: After `--help`, and where a name or flag is unknown.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments.pop(0) if named else default
    if name not in configs:
        print(f"There is no config {name!r}; choose one of: {', '.join(configs)}.", file=sys.stderr)
        raise SystemExit(2)
    width = max(map(len, configs))
    listing = "\n".join(f"  {key:{width}}  {text}" for key, (text, _) in configs.items())
    config = configs[name][1]
    text = (
        f"{help_text(description)}\n\n"
        f"Configs (the first word; '{default}' if none is given):\n{listing}\n\n"
        f"Flags change the config; shown below with the values of '{name}'."
    )
    return tyro.cli(type(config), default=config, args=arguments, description=text)


def run_script(
    main: Callable[[Config], Result],
    config: type[Config],
    *,
    description: str,
    faults: tuple[type[Exception], ...] = (ValueError,),
) -> Result:
    """Runs a script without named configurations, as the command line says.

    Args:
      main: What the script does.
      config: The dataclass that its flags fill.
      description: Shown by `--help`.
      faults: Errors of the user's, shown as their message alone.

    Returns:
      What `main` returned.

    Raises:
      SystemExit: With code 1 after a fault; after `--help`, and where a flag is unknown.
    """
    compilation.look_for_garbage_rarely()
    try:
        return main(tyro.cli(config, description=help_text(description)))
    except faults as fault:
        print(fault, file=sys.stderr)
        raise SystemExit(1) from None


def run_experiment(
    main: Callable[[Config], Result],
    configs: Mapping[str, tuple[str, Config]],
    *,
    default: str,
    description: str,
) -> Result:
    """Runs a script that trains, as the command line says, together with other processes if asked.

    Args:
      main: What the script does.
      configs: As in `from_command_line`; each has `training`, a `fit.Options`, and `out`, which is
        another folder in processes other than the first.
      default: As in `from_command_line`.
      description: As in `from_command_line`.

    Returns:
      What `main` returned.

    Raises:
      SystemExit: With code 1 after an error of the user's or a run that diverged, shown as their
        message alone, and where another process writes into `out`; with the signal's code after
        SIGTERM or SIGINT.
    """
    with _explained():
        config: Any = from_command_line(configs, default=default, description=description)
        config.training.check()  # Before data is read.
        compilation.keep(config.training.compilation_cache)
        compilation.look_for_garbage_rarely()
        together = processes.together(config.training.processes, out=config.out)
        with together as out, _explained(), _alone(out):
            _check_same_flags(config)
            result = main(dataclasses.replace(config, out=out))
            print(f"Written to {out}", flush=True)
            return result


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except loop.Interrupted as stop:
        print(f"\n{stop} The same command goes on from there.", file=sys.stderr)
        raise SystemExit(stop.exit_code) from None
    except (ValueError, OSError, loop.TrainingDiverged) as fault:
        print(f"\n{fault}", file=sys.stderr, flush=True)
        if isinstance(fault, checkpoints.CheckpointError):
            # Or threads that could not write would bury it under their complaints.
            signals.end_process(1)
        raise SystemExit(1) from None


@contextlib.contextmanager
def _alone(out: pathlib.Path) -> Iterator[None]:
    """Two that write into one folder would take each other's unfinished checkpoints away."""
    out.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / ".lock")  # The system's: it ends with the process.
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"{out}: waiting for another process that writes there.", flush=True)
            lock.acquire(timeout=PATIENCE)
    except filelock.Timeout:
        raise ValueError(
            f"{out}: another process writes there. Wait until it ends, or give another --out."
        ) from None
    except NotImplementedError:
        pass  # A file system without locks.
    try:
        yield
    finally:
        lock.release()


class ConfigError(ValueError):
    """A run cannot go on with the configuration given."""


def _check_same_flags(config: Any) -> None:
    """Processes with other numbers would train something that no single one would."""
    first, *others = processes.gather(as_json(config))
    for index, other in enumerate(others, start=1):
        if changed := _differences(first, other, free=("out", *processes.FREE)):
            raise ConfigError(
                f"Process {index} was started with other flags than the first:\n"
                + "\n".join(changed)
            )


def check_same_run(
    saved: Mapping[str, Any], now: Mapping[str, Any], *, free: Sequence[str], where: Any
) -> None:
    """Refuses to go on with a run under another configuration.

    Args:
      saved: What the run was begun with, as JSON holds it; dictionaries may be nested.
      now: What it would go on with.
      free: Names of entries that may change, without the names of what they are nested in.
      where: The run, for the message.

    Raises:
      ConfigError: Names every entry that differs, with both values.
    """
    if changed := _differences(saved, now, free=free):
        raise ConfigError(
            f"{where} holds a run that was begun differently:\n"
            + "\n".join(changed)
            + "\nGive the same flags to go on with it, or another --out."
        )


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], *, free: Sequence[str]
) -> list[str]:
    before, after = _flat(before), _flat(after)
    return [
        f"  {name}: {before.get(name)!r} -> {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and name.rpartition(".")[2] not in free
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def help_text(docstring: str) -> str:
    """Returns a script's docstring for `--help`, which runs lines together within paragraphs.

    Args:
      docstring: Lines that begin a new point are not indented; those that go on are.
    """
    return re.sub(r"(?<!\n)\n(?=\S)", "\n\n", docstring.strip())


def as_json(config: Any) -> dict[str, Any]:
    """Returns a configuration as JSON holds it: lists for tuples, strings for paths."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))
