"""``hsae clarity``: how well labels of tokens detect the features, and whether roots that branch are clearer."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from sae_lens_hsae.cli.collected import read_collected
from sae_lens_hsae.cli.outcome import Outcome
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.interpret.branching import branching
from sae_lens_hsae.interpret.labels import LabelDetection, label_detection, token_labels
from sae_lens_hsae.interpret.language_model.judging import JUDGEMENTS_FILENAME, parent_verdicts, read_judgements
from sae_lens_hsae.storage.whole_files import check_file_writable, write_whole

CLARITY_FILENAME = "clarity.csv"


def run_clarity(chosen: argparse.Namespace) -> Outcome:
    folder = Path(chosen.folder)
    output = Path(chosen.output or folder / CLARITY_FILENAME)
    check_file_writable("output", output)
    judgements = folder / JUDGEMENTS_FILENAME
    pairs = read_judgements(judgements) if judgements.is_file() else None
    dashboards, text_of = read_collected(folder)
    forest = dashboards.forest
    verdicts = {} if pairs is None else {name: parent_verdicts(pairs, forest, name) for name in ("refines", "none")}

    detection = label_detection(dashboards, text_of)
    frame = _table(forest, detection, token_labels(dashboards, text_of))
    write_whole(output, frame.to_csv())
    levels = frame.groupby("level")["detection"].agg(["count", "mean", "median"])
    shown = levels.round(3).reset_index().to_string(index=False)
    roots = branching(forest, detection.score)
    lines = [
        f"Every feature is in {output}. Detection by tokens, balanced accuracy, 0.5 is chance:\n{shown}",
        f"Mean detection of the roots, with 95 % intervals over roots\n{roots}",
    ]
    data = {"output": str(output), "levels": levels.reset_index().to_dict("records"), "roots": asdict(roots)}
    for relation, shares in verdicts.items():
        roots_judged = branching(forest, shares)
        lines.append(f'Mean share of their edges that were judged "{relation}"\n{roots_judged}')
        data[f"roots_judged_{relation}"] = asdict(roots_judged)
    return Outcome("\n\n".join(lines), data)


def _table(forest: FeatureForest, detection: LabelDetection, labels: dict[int, str]) -> pd.DataFrame:
    frame = detection.to_frame().rename(columns={"score": "detection"})
    frame.insert(0, "name", [forest.levels.name(feature) for feature in frame.index])
    frame.insert(1, "level", [int(name.split("/")[0]) for name in frame["name"]])
    frame.insert(2, "label", [labels.get(feature, "") for feature in frame.index])
    frame["n_children"] = forest.n_children.numpy()
    return frame
