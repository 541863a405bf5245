"""What each switch of the tower's recipe does on images of one's own: mean recall over the findings, validation.

Every variant up to `COMBINED` differs from the first in one setting and trains as long; those combine what won. An
interruption costs one variant.

    python benchmarks/tower_recipes.py --data DIR --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from tqdm.auto import tqdm

from medlib.cli.options import data_place
from medlib.config import resolve
from medlib.data import own_suites
from medlib.data.blind import STATISTICS, TREES, statistics_of_files
from medlib.models.standin import own
from medlib.stats.text import percent, to_markdown

VARIANTS: dict[str, dict] = {
    "crops down to 0.4 of the area, 112 pixels": {},
    "smaller crops, up to 0.2 of the area": {"crop": 0.2},
    "hardly any crop, 0.8 of the area": {"crop": 0.8},
    "half of the views with equalised histogram": {"equalised": 0.5},
    "all views cropped to what is not black": {"content": 1.0},
    "one rectangle hidden in half of the views": {"erased": 0.5},
    "all images equally often, not all findings": {"balanced": 0.0},
    "contrastive warm-up of two epochs": {"warm_up_epochs": 2},
    "learning rate 0.001": {"lr": 1e-3},
    "168 pixels per side": {"size": 168},
}
COMBINED: dict[str, dict] = {
    "0.8 of the area, 10 epochs": {"crop": 0.8, "epochs": 10},
    "0.8 of the area, grey levels not altered, 10 epochs": {"crop": 0.8, "contrast": 0.0, "epochs": 10},
    "0.8 of the area, 168 pixels, 10 epochs": {"crop": 0.8, "size": 168, "epochs": 10},
}


def measured(data: str, out: Path, epochs: float, seed: int) -> pd.DataFrame:
    """One row a variant: mean recall over the findings of the best epoch, and minutes."""
    suites = own_suites.of(resolve("standin", data_dir=data_place(data), seed=seed))
    words = own.words_of(suites)
    rows = [
        {"Recipe": name, "Mean recall": percent(value)} for name, value in forests(suites, words, seed).items()
    ]
    sides = [own.load_side(suites, side, words, 336) for side in ("train", "val")]
    for name, change in tqdm((VARIANTS | COMBINED).items(), desc="variants"):
        recipe = own.Recipe(**{"epochs": epochs, "crop": 0.4} | change)
        folder = out / "-".join(map(str, ["base", *(part for item in change.items() for part in item)]))
        kept = folder / "measured.json"
        if not kept.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            model, started = own.drawn_model(), time.time()
            own.resize_tower(model, recipe.size)
            _, history = own.train_tower(model.model.vision_tower, *sides, words, recipe, folder, seed)
            best = max(row["score"] for row in history)
            kept.write_text(json.dumps({"recall": best, "minutes": (time.time() - started) / 60}))
        row = json.loads(kept.read_text())
        rows.append({"Recipe": name, "Mean recall": percent(row["recall"]), "Minutes": round(row["minutes"], 1)})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def forests(suites: own_suites.OwnSuites, words, seed: int) -> dict[str, float]:
    """Mean recall of the auditor that sees image statistics only, with the file's size among them and without."""
    train, val = (own.image_rows(suites, side, words) for side in ("train", "val"))
    tables = [statistics_of_files(suites.data.images_dir, rows["file"]) for rows in (train, val)]
    labels, gold = own.labels_of(train, words), own.labels_of(val, words)
    found = {}
    for name, columns in (("width and height too", STATISTICS), ("no width and height", STATISTICS[:-2])):
        forest = RandomForestClassifier(TREES, random_state=seed, class_weight="balanced")
        forest.fit(tables[0][list(columns)], labels)
        modalities = np.array([words.findings[label].modality for label in forest.classes_])
        same = modalities == val["modality"].to_numpy()[:, None]
        chances = np.where(same, forest.predict_proba(tables[1][list(columns)]), -1)
        named = forest.classes_[chances.argmax(axis=1)]
        found[f"a forest on image statistics, {name}"] = own.balanced(named, gold)
    return found


def read_arguments(about: str | None, epochs: float) -> argparse.Namespace:
    """Data, folder for what is finished, epochs and seed of a benchmark that trains towers."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of labelled images")
    parser.add_argument("--out", type=Path, required=True, help="where what is finished is kept")
    parser.add_argument("--epochs", type=float, default=epochs)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments(__doc__, epochs=8)
    print(to_markdown(measured(arguments.data, arguments.out, arguments.epochs, arguments.seed)))


if __name__ == "__main__":
    main()
