"""Options and choices that several commands share, and how their values are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..edge_runtime.errors import UsageError
from ..train.config import SplitOptions
from .config import load_config

GRID = "grid-48"
PROTOCOLS = ("global-70-15-15", "balanced-700-150-150", "60-20-20", "subject-3-fold", GRID)
FILE = click.Path(path_type=Path)
SHARE = click.FloatRange(0, 1, max_open=True)
SEED = click.IntRange(0, 2**32 - 1)  # what numpy, scikit-learn and Keras take

JSON = click.option("--json", is_flag=True, help="Print one JSON object.")


def option(config: type, field: str, help: str, **words: Any) -> Callable[[Any], Any]:
    """The option of a field of a config dataclass: name, type, default and choices are those of the field.

    Args:
        config: the dataclass. A field without a default makes the option required.
        field: its name.
        help: of the option.
        words: further arguments of `click.option`, such as a range as ``type``.
    """
    (found,) = (item for item in dataclasses.fields(config) if item.name == field)
    kind, default = found.type.removesuffix(" | None"), found.default
    if "choices" in found.metadata:
        words.setdefault("type", click.Choice(found.metadata["choices"]))
    elif kind == "bool":
        words.setdefault("is_flag", True)
    else:
        words.setdefault("type", {"int": int, "float": float, "Path": FILE}.get(kind, str))
    if default is dataclasses.MISSING and "default" not in words:
        words["required"] = True
    else:
        words.setdefault("default", default)
    return click.option(words.pop("name", f"--{field.replace('_', '-')}"), help=help, **words)


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order in which the help lists them."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
CACHE_DIR = option(SplitOptions, "cache_dir", "Cache folder for preprocessed images.  [default: ~/.cache/edgeall]")
SPLIT_BY = option(
    SplitOptions,
    "split_by",
    "Unit that no two subsets share: laboratory (of masks), subject, block of file numbers, or image. auto: the first "
    "possible of the last three.",
)
EMBARGO = option(
    SplitOptions,
    "embargo",
    "By block: distance between subsets in file numbers.  [default: 37, the images of one patient]",
    type=click.IntRange(0),
    metavar="N",
)
VAL_FRAC = option(SplitOptions, "val_frac", "Validation share.", type=_SHARE)
TEST_FRAC = option(SplitOptions, "test_frac", "Test share.", type=_SHARE)
FOLD = option(SplitOptions, "fold", "Use fold I of K as the test subset, as in 1/5.", metavar="I/K")
NEW_SPLIT = together(SPLIT_BY, EMBARGO, VAL_FRAC, TEST_FRAC, FOLD)
POSITIVE = option(
    SplitOptions, "positive", "Positive labels, comma-separated.  [default: from names]", metavar="LABELS"
)
LABELS = click.option("--labels", type=FILE, help="Label file of a foreign model, one label per line.")


def _channels(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """One number for all channels, or three for red, green and blue."""
    if value is None:
        return None
    from ..edge_runtime.preprocess import channels_of

    try:
        return channels_of(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not one number, or three with commas between them") from error


MEAN = click.option(
    "--mean",
    callback=_channels,
    metavar="M",
    help="Normalization of a foreign float model: (pixel - mean) / std. One number, or three for red, green and blue.",
)
STD = click.option(
    "--std", callback=_channels, metavar="S", help="Standard deviation of that normalization, see --mean."
)
INPUT_SIZE = click.option(
    "--input-size", type=click.IntRange(1), help="Input size in pixels, for a foreign model without a fixed input size."
)
THREADS = click.option(
    "--threads", type=click.IntRange(1), help="Threads of each interpreter.  [default: measured once]"
)
WHEEL = click.option(
    "--wheel", type=FILE, help="Wheel of edgeall to install on the device.  [default: built from this checkout]"
)
DEVICE_PYTHON = click.option(
    "--device-python", metavar="COMMAND", default="python3", help="Python executable on the device."
)
WORKERS = click.option("--workers", type=click.IntRange(1), help="Number of interpreters.  [default: measured once]")
REQUIRE_SIGNATURE = click.option(
    "--require-signature", type=FILE, metavar="KEY.pub", help="Refuse a model that is not signed with this key."
)
CELL_MODEL = click.option(
    "--cell-model", type=FILE, help="Packed segmentation model that finds the cells.  [default: the one in the package]"
)
RED_CELL_PX = click.option(
    "--red-cell-px", type=float, help="Diameter of a red cell in pixels.  [default: measured in each image]"
)
UM_PER_PX = click.option(
    "--um-per-px", type=click.FloatRange(0, min_open=True), help="Micrometres per pixel, instead of --red-cell-px."
)


def _set_debug(ctx: click.Context, _: click.Parameter, debug: bool) -> None:
    ctx.obj["debug"] = debug


_COMMON = together(
    click.option(
        "--config",
        type=FILE,
        callback=load_config,
        is_eager=True,
        expose_value=False,
        help="TOML file of settings, one section per command.",
    ),
    click.option(
        "--debug",
        is_flag=True,
        callback=_set_debug,
        is_eager=True,
        expose_value=False,
        envvar="EDGEALL_DEBUG",
        help="Show the traceback of an error.",
    ),
)


_JSON_FILE = ".json"


class FlagOrJson(click.ParamType):  # type: ignore[type-arg]  # generic, but not in click 8.2
    """The type of a flag that may name a ``.json`` file: true, false, or the file.

    The flag takes the next word only where it ends in ``.json``, so that `--flag RUN` remains a flag and an argument.
    """

    name = "file.json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool | Path:
        if isinstance(value, (bool, Path)):
            return value
        if value.endswith(_JSON_FILE):
            return Path(value)
        try:
            return click.BOOL.convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} does not end in {_JSON_FILE}", param, ctx)


class _Command(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Attach its value to every flag of the type `FlagOrJson`."""
        flags = {name for one in self.params if isinstance(one.type, FlagOrJson) for name in one.opts}
        ready: list[str] = []
        for index, word in enumerate(args):
            if index and args[index - 1] in flags and word.endswith(_JSON_FILE):
                ready[-1] = f"{args[index - 1]}={word}"
            else:
                ready.append(f"{word}=true" if word in flags else word)
        return super().parse_args(ctx, ready)


def command(name: str, group: click.Group | None = None) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command of this name, in ``group`` if there is one, with the options that every command has."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        make = click.command if group is None else group.command
        return make(name, cls=_Command, no_args_is_help=False)(_COMMON(function))

    return decorate


def listed(text: str | None) -> tuple[str, ...]:
    """The parts of a comma-separated option."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def numbers(name: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """The numbers of a comma-separated option. Raises UsageError for anything else."""
    try:
        return tuple(kind(part) for part in listed(text))
    except ValueError:
        raise UsageError(f"--{name} {text}: not numbers", hint="separate them by commas") from None


def one_of(ctx: click.Context, **flags: bool) -> str | None:
    """The flag that is set, or None. The command line wins over the environment, the environment over --config."""
    for source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP):
        chosen = [name for name, is_set in flags.items() if is_set and ctx.get_parameter_source(name) is source]
        if len(chosen) > 1:
            raise UsageError(f"--{' and --'.join(chosen)} exclude each other", hint="choose one of them")
        if chosen:
            return chosen[0]
    return None
