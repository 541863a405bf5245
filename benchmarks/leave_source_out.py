"""Does a tower know the finding or the source? Every source of a data set is left out of the training once.

The tower of the stand-in learns to name findings as `medlib standin --data` has it, with all sources and without
each one that shares a finding with another. Both name the same images: those of the source on the test side, of
findings that the tower has met elsewhere. After an interruption the same command goes on.

    python benchmarks/leave_source_out.py --data DIR --out FOLDER
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tower_recipes import read_arguments

from medlib import stats
from medlib.cli.options import data_place
from medlib.config import resolve
from medlib.data import own_suites
from medlib.models.standin import own
from medlib.stats.text import rate_text, to_markdown


def shared_sources(rows: pd.DataFrame) -> list[str]:
    """Sources with a finding that another source has as well, the largest first."""
    several = rows.groupby(["modality", "finding"])["source"].transform("nunique") > 1
    return list(rows.loc[several, "source"].value_counts().index)


def part(side: own.Side, keep: np.ndarray) -> own.Side:
    """Some of the images of a side."""
    images = [image for image, kept in zip(side.images, keep) if kept]
    return replace(side, images=images, labels=side.labels[keep], groups=side.groups[keep])


def named(train: own.Side, val: own.Side, test: own.Side, words, recipe, folder: Path) -> np.ndarray:
    """The finding that a tower trained on ``train`` names for each image of ``test``; kept in ``folder``."""
    answers = folder / "named.json"
    if not answers.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        tower = own.drawn_model().model.vision_tower
        head, _ = own.train_tower(tower, train, val, words, recipe, folder)
        found = own.named(tower, head, test.pixels(recipe.size), test.labels, words)
        answers.write_text(json.dumps(found.tolist()))
    return np.array(json.loads(answers.read_text()))


def leave_out(data: str, out: Path, recipe: own.Recipe, seed: int) -> pd.DataFrame:
    """One row for each source and finding: images named right by the two towers."""
    suites = own_suites.of(resolve("standin", data_dir=data_place(data), seed=seed))
    words = own.words_of(suites)
    sides = {name: own.load_side(suites, name, words, 2 * recipe.size) for name in ("train", "val", "test")}
    sources = {name: own.image_rows(suites, name)["source"].to_numpy() for name in sides}
    everything = named(*sides.values(), words, recipe, out / "all")
    rows = []
    for source in shared_sources(own.image_rows(suites, "train")):
        keep = {name: sources[name] != source for name in sides}
        train, val = (part(sides[name], keep[name]) for name in ("train", "val"))
        without = named(train, val, sides["test"], words, recipe, out / source.replace("/", "_").replace(" ", "_"))
        here = (sources["test"] == source) & np.isin(sides["test"].labels, train.labels)
        for label in np.unique(sides["test"].labels[here]):
            these = here & (sides["test"].labels == label)
            finding = words.findings[label]
            row = {"Source": source, "Finding": f"{finding.modality}: {finding.label}", "Images": int(these.sum())}
            for title, answers in (("Source seen", everything), ("Source left out", without)):
                row[title] = rate_text(stats.proportion(int((answers[these] == label).sum()), int(these.sum())))
            rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    arguments = read_arguments(__doc__, epochs=10)
    recipe = own.Recipe(epochs=arguments.epochs)
    print(to_markdown(leave_out(arguments.data, arguments.out, recipe, arguments.seed)))


if __name__ == "__main__":
    main()
