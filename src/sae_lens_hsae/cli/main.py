"""The command ``hsae``."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from sae_lens.training._interruption import InterruptedException

from hsae_command import DEBUG
from hsae_command.parsers import read_line
from hsae_command.train import EVERY_FLAG
from sae_lens_hsae.cli.circuit import run_circuit
from sae_lens_hsae.cli.clarity import run_clarity
from sae_lens_hsae.cli.contrast import run_contrast
from sae_lens_hsae.cli.demo import demo
from sae_lens_hsae.cli.evaluate import run_evaluate
from sae_lens_hsae.cli.explain import run_explain
from sae_lens_hsae.cli.explore import run_explore
from sae_lens_hsae.cli.label import run_label_or_judge
from sae_lens_hsae.cli.outcome import CallError, Outcome, check_device
from sae_lens_hsae.cli.progress_bars import bars_on_terminals_only
from sae_lens_hsae.cli.push import run_convert, run_push
from sae_lens_hsae.cli.steer import run_steer
from sae_lens_hsae.cli.sweep import run_sweep_command
from sae_lens_hsae.cli.train import print_every_flag, run_train
from sae_lens_hsae.storage.whole_files import check_file_writable
from sae_lens_hsae.training.distributed.ranks import is_first_launched, n_launched
from sae_lens_hsae.training.runner import Interrupted

COMMANDS: dict[str, Callable[[argparse.Namespace], Outcome]] = {
    "evaluate": run_evaluate,
    "clarity": run_clarity,
    "explain": run_explain,
    "explore": run_explore,
    "contrast": run_contrast,
    "circuit": run_circuit,
    "steer": run_steer,
    "label": run_label_or_judge,
    "judge": run_label_or_judge,
    "sweep": run_sweep_command,
    "push": run_push,
    "convert": run_convert,
}
WRITE_FOLDERS = {"sweep", "convert"}
"""Commands whose ``--output`` may be a folder; they check it themselves."""
FLAG_OF = {"explained": "--explain", "n_edges": "--edges", "other_seeds": "--other-seed"}
"""What sets an argument that is called otherwise, for an error that begins with it; others differ by hyphens."""
CALL_ERROR = 2
HEEDED = r"\s*This SAE has non-empty model_from_pretrained_kwargs"
"""How SAELens begins to say what the commands do anyway: they load the language model with these."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand.

    Exit codes: 0; 1 where bad input or the machine kept it from being done; 2 on a wrong call; 130 and 143 on SIGINT
    and SIGTERM. An error is one message on stderr; ``--debug``, anywhere on the line, shows its traceback instead.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    chosen = read_line(arguments)
    try:
        with bars_on_terminals_only(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", HEEDED, UserWarning)
            outcome = _run(chosen)
    except (KeyboardInterrupt, InterruptedException) as error:
        if chosen.debug:
            raise
        print(f"hsae {chosen.command}: interrupted", file=sys.stderr)
        sys.exit(_code_after(error))
    except Exception as error:
        if chosen.debug:
            raise
        said = f"hsae {chosen.command}: {_message(error, chosen)}"
        if not isinstance(error, CallError):
            sys.exit(said)
        print(said, file=sys.stderr)
        sys.exit(CALL_ERROR)
    if outcome is not None and is_first_launched():
        outcome.show(as_json=getattr(chosen, "json", "--json" in chosen.further))


def _run(chosen: argparse.Namespace) -> Outcome | None:
    if chosen.command != "train" and n_launched() > 1:
        raise CallError(f"this is for one process, but {n_launched()} were started; torchrun is for train")
    if chosen.command == "demo":  # shows what it does while it does it
        demo(chosen.model)
        return None
    if chosen.command == "train" and EVERY_FLAG in chosen.further:
        print_every_flag()
    if hasattr(chosen, "device"):
        check_device(chosen.device)
    writes = chosen.command not in WRITE_FOLDERS and not getattr(chosen, "estimate", False)
    if writes and getattr(chosen, "output", None):  # files in the SAE's folder each command checks itself
        check_file_writable("output", Path(chosen.output))
    with redirect_stdout(sys.stderr):  # what libraries print is no result
        return run_train(chosen.further) if chosen.command == "train" else COMMANDS[chosen.command](chosen)


def _code_after(error: BaseException) -> Any:
    if isinstance(error, Interrupted):
        return error.code
    number: int = signal.SIGINT
    if isinstance(error, InterruptedException):
        # That of SAELens' runner says which signal it was nowhere but in the handler that raised it.
        *_, (handler, _) = traceback.walk_tb(error.__traceback__)
        number = handler.f_locals.get("sig_num", number)
    return 128 + number


def _message(error: Exception, chosen: argparse.Namespace) -> str:
    line = " ".join(str(error).split())
    name = (re.match(r"\w*", line) or [""])[0]
    if name in vars(chosen) and (name in FLAG_OF or "_" in name):
        line = FLAG_OF.get(name, f"--{name.replace('_', '-')}") + line[len(name) :]
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{str(error.filename)!r}: {error.strerror}"
    if isinstance(error, (OSError, ValueError, ImportError)):
        return line
    # Not one that we foresaw: its text alone may say nothing, as that of a KeyError.
    return f"{type(error).__name__}: {line} ({DEBUG} shows where)"
