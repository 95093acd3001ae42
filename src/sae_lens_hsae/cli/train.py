"""``hsae train``: SAELens' own flags, from files, presets and the command line, and one call of our runner."""

from __future__ import annotations

import argparse
import io
import re
import warnings
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import fields
from difflib import get_close_matches
from types import NoneType
from typing import Any, get_args, get_type_hints

from datasets import Dataset
from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.llm_sae_training_runner import _parse_cfg_args

from hsae_command.train import EVERY_FLAG, at_home, beyond_saelens, help_parser, sources
from sae_lens_hsae.cli.flags import NONE, OF_JSON, Flags, command_line, parse_flags, preset_flags, read_flags, spread
from sae_lens_hsae.cli.measure import measure
from sae_lens_hsae.cli.outcome import CallError, Outcome, check_device
from sae_lens_hsae.cli.training_plan import estimate, plan_text, warnings_of
from sae_lens_hsae.config import ARCHITECTURE, HierarchicalTrainingSAEConfig
from sae_lens_hsae.evaluation import ForestEvaluation
from sae_lens_hsae.presets import LANGUAGE_MODELS
from sae_lens_hsae.text.documents import documents
from sae_lens_hsae.training.run_checks import check_run, late_forest
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner

OF_WHOLE_NUMBERS: dict[str, Any] = {"seqpos_slice": tuple, "exclude_special_tokens": list}
"""Fields of several whole numbers, which SAELens' parser cannot read."""
DIVISORS = ("train_batch_size_tokens", "context_size", "feature_sampling_window", "wandb_log_frequency")
"""Fields at whose 0 SAELens' config fails without saying which it was."""
PATHS = ("model_name", "text", "dataset_path", "output_path", "checkpoint_path", "resume_from_checkpoint",
         "from_pretrained_path", "cached_activations_path")  # fmt: skip
OF_SAELENS = "python -m sae_lens.llm_sae_training_runner"
"""SAELens' own command, which trains the other architectures."""
KNOWN = {
    *(option.lstrip("-") for parser in (sources(), beyond_saelens()) for option in parser._option_string_actions),
    *(
        field.name
        for config in (LanguageModelSAERunnerConfig, HierarchicalTrainingSAEConfig, LoggingConfig)
        for field in fields(config)
    ),
    *("architecture", "help", EVERY_FLAG.lstrip("-")),
} - {"sae", "logger"}  # themselves configs
"""Every flag, without its dashes."""


def print_every_flag() -> None:
    """Print our flags, then those of SAELens' parser, which ends the process."""
    help_parser().print_help()
    _parse_cfg_args(["--architecture", ARCHITECTURE, "--help"])


def merged_flags(presets: Sequence[str], files: Sequence[str], given: Flags) -> Flags:
    """One value for each flag: presets, then files, then those given."""
    flags = preset_flags(presets)
    for source in (*map(read_flags, files), given):
        if {"text", "dataset_path"} <= set(source):
            text, data = (" ".join(source[name]) for name in ("text", "dataset_path"))
            raise CallError(f"text={text!r} and dataset_path={data!r}: give one of them")
        if "dataset_path" in source:
            flags.pop("text", None)
            flags.pop("column", None)
        flags |= source
    flags |= {name: [at_home(value) for value in flags[name]] for name in PATHS if name in flags}
    if "text" in flags:  # so the saved SAE says what it was trained on
        flags |= {"dataset_path": flags["text"], "is_dataset_tokenized": ["False"], "streaming": ["False"]}
    if flags.setdefault("architecture", [ARCHITECTURE]) != [ARCHITECTURE]:
        other = " ".join(flags["architecture"])
        raise CallError(f"architecture={other!r}: hsae train is for {ARCHITECTURE!r} alone; take {OF_SAELENS}")
    if "level_widths" in flags and "d_sae" not in flags:
        widths = flags["level_widths"]
        if all(width.isdigit() for width in widths):  # else the config says what is wrong
            flags["d_sae"] = [str(sum(map(int, widths)))]
    return flags


def all_flags(arguments: Sequence[str]) -> Flags:
    """The flags of a command line with those of its presets and files, as these are now."""
    own, given = sources().parse_known_args(list(arguments))
    return merged_flags(own.preset, own.config, parse_flags(given))


def check_known(names: Iterable[str]) -> None:
    """Refuse the first flag that does not exist, with one like it."""
    for name in names:
        if not {name, name.rpartition(".")[2], name.removeprefix("no")} & KNOWN:
            near = get_close_matches(name, KNOWN, n=1)
            meant = f"did you mean --{near[0]}? " if near else ""
            raise CallError(f"--{name} is no flag; {meant}hsae train {EVERY_FLAG} lists them all")


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, Any]:
    """Our own flags (``dry_run``, ``evaluation_tokens`` and so on) and SAELens' config."""
    own, _ = sources().parse_known_args(list(arguments))
    flags = all_flags(arguments)
    check_known(flags)
    several = {name: flags.pop(name) for name in OF_WHOLE_NUMBERS if _are_numbers(flags.get(name, []))}
    none = [name for name, values in flags.items() if values in NONE and name not in OF_JSON]
    flags = {name: values for name, values in flags.items() if name not in none}
    for name in DIVISORS:
        if flags.get(name) == ["0"]:
            raise ValueError(f"{name}=0 must be at least 1")
    said = io.StringIO()
    try:
        # Of a flag that they refuse both parsers print their whole usage, and end the process.
        with redirect_stderr(said):
            _, rest = beyond_saelens().parse_known_args(command_line(flags), own)
            cfg = _parse_cfg_args(rest)
    except (argparse.ArgumentError, SystemExit) as error:
        what = error if isinstance(error, argparse.ArgumentError) else said.getvalue().rpartition("error: ")[2].strip()
        raise CallError(f"{_plainly(str(what))}; hsae train {EVERY_FLAG} lists every flag") from error
    if set(own.preset) & set(LANGUAGE_MODELS) and "lr_warm_up_steps" not in flags:
        cfg.lr_warm_up_steps = cfg.total_training_steps // 10
    _set_none(cfg, none)
    for name, words in several.items():
        setattr(cfg, name, OF_WHOLE_NUMBERS[name](_whole_numbers(name, words)))
    if several and not range(cfg.context_size)[slice(*cfg.seqpos_slice)]:
        raise ValueError(f"seqpos_slice={cfg.seqpos_slice} leaves none of context_size={cfg.context_size} positions")
    check_run(cfg, own.max_bad_batches, own.keep_checkpoints)
    if own.evaluation_tokens < 0:
        raise ValueError(
            f"evaluation_tokens={own.evaluation_tokens} must be 0 for none, or more; 50000 is a good number"
        )
    if not 0 <= own.variance_floor <= 1:
        raise ValueError(f"variance_floor={own.variance_floor} must be a share of the variance, from 0 to 1")
    if "dtype" in flags and "sae.dtype" not in flags and cfg.dtype != cfg.sae.dtype and not cfg.use_cached_activations:
        raise ValueError(
            f"dtype={cfg.dtype!r} is the type of cached activations alone, and the SAE would be trained in "
            f"{cfg.sae.dtype}: give --autocast True to compute in bfloat16, or --sae.dtype {cfg.dtype} to hold the "
            "SAE's parameters in that type"
        )
    if own.column != beyond_saelens().get_default("column") and not own.text:
        raise ValueError(
            f"column={own.column!r} is only for a text of JSON lines; of a data set SAELens reads the column 'text' or "
            "'tokens', so leave it out and rename the data set's column"
        )
    return own, cfg


def _are_numbers(words: Sequence[str]) -> bool:
    """Whether words are more than SAELens' parser reads: several, a list, or a number that means no yes or no."""
    if len(words) != 1:
        return len(words) > 1
    return words[0].startswith("[") or (words[0].isdigit() and words[0] not in {"0", "1"})


def _whole_numbers(name: str, words: list[str]) -> list[int | None]:
    try:
        numbers = [None if [word] in NONE else int(word) for word in spread(words)]
    except ValueError as error:
        raise CallError(f"--{name} cannot be {' '.join(words)!r}: give whole numbers") from error
    if name == "exclude_special_tokens" and None in numbers:
        raise CallError(f"--{name} cannot hold None: give the ids of tokens")
    return numbers


def _set_none(cfg: Any, names: Sequence[str]) -> None:
    """Set fields to ``None``, which SAELens' parser reads as a word; those whose default it is were left out."""
    for name in names:
        for config in (cfg, cfg.sae, cfg.logger):
            default = {field.name: field.default for field in fields(config)}
            if name in default and NoneType in get_args(get_type_hints(type(config))[name]):
                if default[name] is not None:
                    setattr(config, name, None)
                break
        else:
            if name != "keep_checkpoints":
                raise CallError(f"--{name} cannot be None")


def _plainly(message: str) -> str:
    """A parser's message without the name of the function that could not read the value, nor options, maybe secret."""
    message = re.sub(r"argument (--\w+_kwargs): invalid \w+ value: .*", r"\1 is no JSON object", message)
    return re.sub(r"argument (--\S+): invalid \w+ value: ('.*')", r"\1 cannot be \2", message)


def run_train(arguments: Sequence[str]) -> Outcome:
    own, cfg = parse(arguments)
    if own.dry_run:
        rows = own_text(own, cfg.context_size)
        plan = {
            "config": cfg.to_dict(),
            "estimate": estimate(cfg),
            # An SAE that was trained before may have a forest.
            "warnings": [*([] if cfg.from_pretrained_path else late_forest(cfg)), *warnings_of(cfg, rows)],
        }
        return Outcome(plan_text(cfg, plan["estimate"], plan["warnings"]), plan)
    check_device(cfg.device)
    evaluation = train(own, cfg)
    where = "not saved: there is no --output_path" if cfg.output_path is None else f"saved to {cfg.output_path}"
    text = f"The SAE is {where}" if evaluation is None else f"{evaluation}\n\nThe SAE is {where}"
    data = None if evaluation is None else evaluation.to_dict()
    return Outcome(text, {"output_path": cfg.output_path, "evaluation": data})


def own_text(own: argparse.Namespace, context_size: int) -> Dataset | None:
    """The texts of ``--text`` in a column ``text``; None without it."""
    if own.text is None:
        return None
    texts = list(documents(own.text, own.column))
    n_characters = sum(map(len, texts))
    if n_characters < context_size:  # a token has at least one
        raise ValueError(
            f"text={own.text!r} holds {n_characters} characters, too few for context_size={context_size} tokens; "
            "give more text, or a smaller context_size"
        )
    return Dataset.from_dict({"text": texts})


def train(own: argparse.Namespace, cfg: Any) -> ForestEvaluation | None:
    """Train as `parse` read it; the measurement, where one was asked for."""
    rows = own_text(own, cfg.context_size)
    for warning in warnings_of(cfg, rows):
        print(f"Warning: {warning}", flush=True)
    # SAELens compares the number of rows with that of tokens.
    warnings.filterwarnings("ignore", "The training dataset contains fewer samples", UserWarning)
    if own.text is not None:  # one's own text is to be tokenised here; that it is read again was said
        warnings.filterwarnings("ignore", "Dataset is not tokenized", UserWarning)
        warnings.filterwarnings("ignore", "All samples in the training dataset have been exhausted", UserWarning)
    faults = {name: getattr(own, name) for name in ("max_bad_batches", "keep_checkpoints", "rank_timeout")}
    runner, measured = HierarchicalSAETrainingRunner(cfg, override_dataset=rows, **faults), []
    if own.evaluation_tokens:
        runner.after_training = lambda sae: measured.append(
            measure(runner, sae, own.evaluation_tokens, own.variance_floor)
        )
    runner.run()
    return measured[0] if measured else None
