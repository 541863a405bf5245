"""Where did the model look? Occlusion maps of a verdict, and a check that they mean something.

A part of the image mattered if the model becomes less sure of its verdict when that part is
hidden. This asks the model itself and nothing else, so it works for any architecture; attention
weights, in contrast, need not be what a verdict hangs on (S. Jain and B. Wallace 2019,
arXiv:1902.10186).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from medlib.config import ANSWERS
from medlib.data.cases import Case
from medlib.data.suite import Suite
from medlib.models import scoring
from medlib.models.verdict_model import VerdictModel


def occlusion_map(
    model: VerdictModel, scenario: Case, image: Image.Image, grid: int = 8, batch_size: int = 32
) -> tuple[np.ndarray, float]:
    """How much each patch of an image holds up the model's own verdict.

    Parameters
    ----------
    scenario : Case
        Its words are asked with every image; its gold verdict is not used.
    image : PIL.Image.Image
    grid : int
        Patches along each side; ``grid ** 2 + 1`` images are asked.
    batch_size : int
        Images a batch.

    Returns
    -------
    drop : ndarray of float, shape (grid, grid)
        Log-odds of the verdict that the model gives to the whole image, less those when the patch
        is painted in the image's mean colour. Positive: the patch speaks for the verdict.
    log_odds : float
        ln(P(CORRECT) / P(ERROR)) with the whole image; its sign is the verdict.

    References
    ----------
    M. D. Zeiler and R. Fergus (2014), "Visualizing and understanding convolutional networks", ECCV,
    arXiv:1311.2901, section 4.2.
    """
    patches = [np.array([patch]) for patch in range(grid**2)]
    drops, log_odds = _drops(model, scenario, image, patches, grid, batch_size)
    return drops.reshape(grid, grid), log_odds


def deletion_check(
    model: VerdictModel,
    scenario: Case,
    image: Image.Image,
    drop: np.ndarray,
    k: int = 8,
    draws: int = 20,
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, float]:
    """Whether hiding the ``k`` patches on top of a map moves the verdict more than any ``k`` would.

    Parameters
    ----------
    drop : ndarray, shape (grid, grid)
        Of `occlusion_map`, for the same scenario and image.
    k : int
        Patches hidden together.
    draws : int
        Random choices of ``k`` patches, by ``seed``.

    Returns
    -------
    dict
        ``top``: drop in the verdict's log-odds without the top patches; ``random``: mean drop over
        the draws; ``share_below``: share of the draws with a smaller drop than ``top`` (0.5: the map
        says nothing, 1: it says what matters); ``log_odds``: of the whole image.

    Raises
    ------
    ValueError
        Unless ``drop`` is square and ``k`` is from 1 to its number of patches.

    References
    ----------
    V. Petsiuk, A. Das and K. Saenko (2018), "RISE", BMVC, arXiv:1806.07421: the deletion metric, here
    at one point of its curve and against chance.
    """
    drop = np.asarray(drop, dtype=float)
    if drop.ndim != 2 or drop.shape[0] != drop.shape[1]:
        raise ValueError(f"drop: a square map is needed, not shape {drop.shape}")
    if not 1 <= k <= drop.size:
        raise ValueError(f"k={k} is not from 1 to the {drop.size} patches of the map")
    rng = np.random.default_rng(seed)
    chosen = [np.argsort(-drop, axis=None, kind="stable")[:k]]
    chosen += [rng.choice(drop.size, size=k, replace=False) for _ in range(draws)]
    drops, log_odds = _drops(model, scenario, image, chosen, len(drop), batch_size)
    top, others = drops[0], drops[1:]
    return {
        "top": float(top),
        "random": float(others.mean()),
        "share_below": float((others < top).mean()),
        "log_odds": log_odds,
    }


def _drops(model, scenario, image, hidden, grid, batch_size) -> tuple[np.ndarray, float]:
    """Drop in the verdict's log-odds for each set of hidden patches, and log-odds of CORRECT."""
    pixels = np.asarray(image.convert("RGB"))
    images = [pixels, *(_hide(pixels, patches, grid) for patches in hidden)]
    scores = np.concatenate(
        [
            _log_odds(model, scenario, [Image.fromarray(p) for p in images[i : i + batch_size]])
            for i in range(0, len(images), batch_size)
        ]
    ).astype(float)
    sign = 1.0 if scores[0] >= 0 else -1.0
    return sign * (scores[0] - scores[1:]), float(scores[0])


def _hide(pixels: np.ndarray, patches: np.ndarray, grid: int) -> np.ndarray:
    """A copy of an RGB array with patches (numbered row by row) in the image's mean colour."""
    rows, columns = (np.linspace(0, side, grid + 1).round().astype(int) for side in pixels.shape[:2])
    covered = pixels.copy()
    for row, column in zip(*np.divmod(patches, grid)):
        place = slice(rows[row], rows[row + 1]), slice(columns[column], columns[column + 1])
        covered[place] = pixels.mean(axis=(0, 1)).round()
    return covered


def _log_odds(model: VerdictModel, scenario: Case, images: list[Image.Image]) -> np.ndarray:
    """ln(P(CORRECT) / P(ERROR)) of one scenario with each of the images, float array (n,)."""
    batch = scoring.prompt_batch(model, [scenario] * len(images), images)
    scores = scoring.score_answers(model, batch)
    answers = list(ANSWERS)
    return scores[:, answers.index("CORRECT")] - scores[:, answers.index("ERROR")]


def lesion_patches(image: str | Path, grid: int = 8) -> np.ndarray | None:
    """Patches of a drawn image whose middle lies on its lesion.

    Parameters
    ----------
    image : str or Path
        A PNG that `medlib.data.synthetic.draw.save` wrote, with the place of the lesion in its text.

    Returns
    -------
    ndarray of bool, shape (grid, grid), or None
        None for a real image, and for a finding without one place, such as diffuse infiltrates.
    """
    try:
        with Image.open(image, formats=["PNG"]) as opened:
            drawn = opened.info.get("source") == "synthetic"
            content = json.loads(opened.info.get("content", "{}")) if drawn else {}
    except UnidentifiedImageError:  # drawn images are PNG
        return None
    if "centre" not in content:
        return None
    middles = (np.arange(grid) + 0.5) / grid
    # half a patch is added, so that one that is half on the lesion counts
    across, down = np.broadcast_to(content["radius"], 2) + 0.5 / grid
    (x, y), (columns, rows) = content["centre"], np.meshgrid(middles, middles)
    return ((columns - x) / across) ** 2 + ((rows - y) / down) ** 2 <= 1


def check_maps(suite: Suite, model: VerdictModel, cases: int = 12, grid: int = 8, seed: int = 0) -> pd.DataFrame:
    """`deletion_check` and pointing game on drawn images whose lesion has a known place.

    Parameters
    ----------
    cases : int
        Scenarios drawn by ``seed`` from those with such an image; fewer if there are fewer.

    Returns
    -------
    DataFrame
        One row for each scenario: id, ``on_lesion`` (whether the top patch of the map is on the lesion),
        ``by_chance`` (share of the image that is), and the results of `deletion_check`.

    References
    ----------
    J. Zhang et al. (2016), "Top-down neural attention by excitation backprop", ECCV,
    arXiv:1608.00507: the pointing game.
    """
    rows = []
    for i in np.random.default_rng(seed).permutation(len(suite.scenarios)):
        scenario = suite.scenarios[i]
        if len(rows) == cases:
            break
        lesion = lesion_patches(suite.images_dir / scenario.image, grid)
        if lesion is None:
            continue
        image = suite.image(scenario)
        drop, _ = occlusion_map(model, scenario, image, grid)
        k = max(1, grid**2 // 8)
        rows.append(
            {
                "id": scenario.id,
                "on_lesion": bool(lesion.flat[drop.argmax()]),
                "by_chance": float(lesion.mean()),
                **deletion_check(model, scenario, image, drop, k, seed=seed),
            }
        )
    columns = ["id", "on_lesion", "by_chance", "top", "random", "share_below", "log_odds"]
    return pd.DataFrame(rows, columns=columns)
