"""Labelled images as a counterfactual benchmark: the scenario grammar writes notes and treatments around them.

Pairs are those of `medlib.data.synthetic.grammar`, on real images instead of drawn ones. The two images
of a pair come from one source and one population where the data have them: a twin from another hospital
or another age group would tell the verdict by its look.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from medlib.config import DataError
from medlib.data.cases import LabelledCase
from medlib.data.split import listing
from medlib.data.synthetic import grammar
from medlib.data.synthetic.lexicon import LEXICON, Finding, Lexicon

COLUMNS = ("file", "modality", "finding", "split")
OPTIONAL = ("group", "source", "population")  # "" where they are missing

#: What the images of a pair have in common, best first.
TWINS = ("same source", "same population", "same modality")

_LISTED = 10  # problems of one kind in a message


def cases(
    table: pd.DataFrame,
    split: str,
    pairs: int | None = None,
    seed: int = 0,
    lexicon: Lexicon = LEXICON,
    max_uses: int = 4,
    kinds: Sequence[str] = grammar.PAIR_KINDS,
    use: str | None = None,
) -> list[LabelledCase]:
    """Counterfactual pairs around the labelled images of one split, two cases each.

    Balanced over modality, pair kind, verdict and which finding of a pair is the right one. Within a
    modality every two kinds of care are equally likely, and so are the findings that call for them, as
    far as there are images.

    Parameters
    ----------
    table : DataFrame
        One row for each image: ``file`` (relative to the images folder), ``modality``, ``finding`` and
        ``split``; ``group``, ``source`` and ``population`` if known. A population that names ages
        ("child 1-5 y") decides how old patients are.
    split : {"train", "val", "test"}
        Chooses images and phrases; no image of another split is used.
    pairs : int, optional
        None makes as many as every modality can give.
    seed : int
        Same table, split, pairs and seed give the same cases.
    max_uses : int
        Pairs in which one image may stand.
    use : str, optional
        A name of `grammar.SEED_BASE`: other pairs, whose ids begin with that name.

    Returns
    -------
    list of LabelledCase
        ``factors`` has those of the grammar and ``dataset``, ``population`` and ``group`` of the image,
        ``twin`` (one of `TWINS`).

    Raises
    ------
    DataError
        If a column is missing, a file is listed twice, the lexicon lacks a finding, no modality has two
        findings that call for different care, or the images do not suffice for so many pairs.
    ValueError
        For an unknown split or pair kind.

    Warns
    -----
    UserWarning
        If a modality is left out, because its images call for one kind of care only.
    """
    if unknown := set(kinds) - set(grammar.PAIR_KINDS):
        raise ValueError(f"pair kind {sorted(unknown)[0]!r} is not one of {', '.join(grammar.PAIR_KINDS)}")
    rng, scenarios = grammar.stream(split, seed, use, 2), []  # 2 and 3: not the streams of the generator
    for index, turn, choice in _choices(table, split, pairs, lexicon, max_uses, rng, len(kinds)):
        scenarios += grammar.pair(f"{use or split}_{index:05d}", kinds[turn % len(kinds)], *choice, rng)
    return scenarios


def note_pairs(
    table: pd.DataFrame,
    split: str,
    pairs: int | None = None,
    seed: int = 0,
    lexicon: Lexicon = LEXICON,
    max_uses: int = 4,
    use: str | None = None,
) -> list[LabelledCase]:
    """Pairs whose image and note disagree, as `medlib.data.synthetic.grammar.note_pairs` has them.

    Parameters, result and errors are those of `cases`; uses are counted apart from those there.
    """
    rng, scenarios = grammar.stream(split, seed, use, 3), []
    for index, _, choice in _choices(table, split, pairs, lexicon, max_uses, rng):
        scenarios += grammar.note_pair(f"{use or split}_note_{index:05d}", *choice, rng)
    return scenarios


def summary(scenarios: Sequence[LabelledCase]) -> pd.DataFrame:
    """What the pairs are made of, by modality.

    Returns
    -------
    DataFrame
        Index ``modality``; columns ``pairs``, ``images``, ``groups``, ``most uses`` (pairs of one
        image) and, for pairs with two images, how many are of each of `TWINS`.
    """
    frame = pd.DataFrame(
        [
            {"modality": s.modality, "image": s.image, "group": s.factors.get("group", s.image)}
            | {name: s.factors[name] for name in ("pair", "pair_kind", "twin")}
            for s in scenarios
        ]
    )
    by_modality = frame.groupby("modality")
    table = by_modality.agg(pairs=("pair", "nunique"), images=("image", "nunique"), groups=("group", "nunique"))
    uses = frame.groupby(["modality", "image"])["pair"].nunique()
    table["most uses"] = uses.groupby("modality").max()
    two = frame[frame["pair_kind"].isin(["finding", "image"])].drop_duplicates("pair")
    twins = pd.crosstab(two["modality"], two["twin"]).reindex(table.index, columns=list(TWINS), fill_value=0)
    return table.join(twins)


def ages(population: str) -> tuple[int, int]:
    """Youngest and oldest age in years that a population names; adults if it names none.

    >>> ages("child 1-5 y"), ages("infants, 2 to 11 months"), ages("children"), ages("adult")
    ((1, 5), (0, 0), (1, 17), (25, 85))
    """
    if match := re.search(r"(\d+)\s*(?:-|–|to)\s*(\d+)\s*(mo)?", population):
        youngest, oldest = sorted(min(int(years), 120) for years in match.group(1, 2))
        return (youngest // 12, oldest // 12) if match.group(3) else (youngest, oldest)
    words = population.lower()
    if re.search(r"neonat|newborn|infant", words):
        return 0, 0
    return (1, 17) if re.search(r"child|p(a)?ediatric", words) else grammar.ADULTS


# --- which images stand in a pair -----------------------------------------------------------------

_Choice = tuple[tuple[Finding, Finding], grammar.Wording, Callable[[Finding], grammar.Shown]]


def _choices(
    table: pd.DataFrame, split: str, pairs: int | None, lexicon: Lexicon, max_uses: int, rng, kinds: int = 1
) -> Iterator[tuple[int, int, _Choice]]:
    """(number of the pair, its number within the modality, what `grammar.pair` needs), modality by modality."""
    rows = _rows(table, split, lexicon)
    every = {name: _Images(part, lexicon, max_uses) for name, part in rows.groupby("modality")}
    images = {name: part for name, part in every.items() if part.options()}
    alone = [
        f"modality {name!r}: {', '.join(sorted(part.stock))} call for the same care or accept it; "
        f"images of split {split!r} need two findings that do not"
        for name, part in every.items()
        if name not in images
    ]
    if not images:
        raise DataError("\n".join(alone))
    for reason in alone:
        warnings.warn(f"left out: {reason}", stacklevel=2)
    for turn in itertools.count():
        if pairs is None and not all(part.options() for part in images.values()):
            return
        for number, (name, part) in enumerate(images.items()):
            index = turn * len(images) + number
            if pairs is not None and index >= pairs:
                return
            if not part.options():
                raise DataError(
                    f"split {split!r}: the {name} images are used up after {turn} pairs (max_uses is {max_uses}); "
                    f"ask for at most {turn * len(images)} pairs instead of {pairs}, or raise max_uses"
                )
            findings, population, image_of = part.choose(turn % kinds, rng)
            wording = grammar.Wording(split, lexicon, plain=True, ages=ages(population))
            yield index, turn, (findings, wording, image_of)


def _rows(table: pd.DataFrame, split: str, lexicon: Lexicon) -> pd.DataFrame:
    """The images of a split, sorted by file; DataError for what is missing or unknown."""
    if missing := [name for name in COLUMNS if name not in table]:
        raise DataError(f"table of labelled images, column {', '.join(missing)}: missing")
    table = table.reindex(columns=[*COLUMNS, *OPTIONAL]).astype(object).fillna("").astype(str)
    twice = sorted(table.loc[table["file"].duplicated(), "file"].unique())
    if twice:
        raise DataError(f"field 'file': listed more than once: {listing(twice, _LISTED)}")
    rows = table[table["split"] == split].sort_values("file")
    if rows.empty:
        raise DataError(f"field 'split': no image of split {split!r}")
    unknown = []
    for modality, finding in rows[["modality", "finding"]].drop_duplicates().itertuples(index=False):
        try:
            lexicon.finding(modality, finding)
        except DataError as error:
            unknown.append(str(error))
    if unknown:
        raise DataError("\n".join(unknown))
    return rows


class _Images:
    """The images of one modality by finding and by (source, population), and how often each was used."""

    def __init__(self, rows: pd.DataFrame, lexicon: Lexicon, max_uses: int) -> None:
        self.max_uses, self.uses = max_uses, Counter()
        # of a kind and two findings, which was first without its counterpart yet
        self.first: dict[tuple, str] = {}
        self.finding = {
            f.name: f for f in lexicon.findings_of(rows["modality"].iat[0]) if f.name in set(rows["finding"])
        }
        self.stock: dict[str, dict[tuple[str, str], list[dict]]] = {name: {} for name in self.finding}
        for row in rows.to_dict("records"):
            self.stock[row["finding"]].setdefault((row["source"], row["population"]), []).append(row)

    def options(self) -> dict[tuple[str, str], list[tuple]]:
        """Two kinds of care -> every (place in `TWINS`, findings, (source, population) of each) that is left."""
        found: dict[tuple[str, str], list[tuple]] = {}
        for one, other in itertools.combinations(self.finding.values(), 2):
            if one.fits(other.care) or other.fits(one.care):
                continue
            for places in itertools.product(self.stock[one.name], self.stock[other.name]):
                (_, population), (_, other_population) = places
                near = 0 if places[0] == places[1] else 1 if population == other_population != "" else 2
                found.setdefault((one.care, other.care), []).append((near, (one.name, other.name), places))
        return found

    def choose(self, kind: int, rng: np.random.Generator) -> tuple[tuple[Finding, Finding], str, Callable]:
        """Two findings, the first one's population, and a function that takes their images.

        As in the generator every two kinds of care are equally likely, and then the findings; here among
        those whose images have the most in common. Of several sources one is drawn by what is left in it.
        Every second pair of the same kind and findings has them in the opposite order.
        """
        options = self.options()
        of_care = options[sorted(options)[rng.integers(len(options))]]
        nearest = [option for option in of_care if option[0] == min(near for near, _, _ in of_care)]
        pairs = sorted({names for _, names, _ in nearest})
        names = pairs[rng.integers(len(pairs))]
        places = [place for _, these, place in nearest if these == names]
        left = np.array([min(map(self._left, names, place)) for place in places])
        at = dict(zip(names, places[rng.choice(len(places), p=left / left.sum())]))
        before = self.first.pop((kind, names), None)
        first = next(n for n in names if n != before) if before else names[rng.integers(2)]
        if not before:
            self.first[kind, names] = first
        second = next(name for name in names if name != first)
        twin = TWINS[nearest[0][0]]

        def image_of(finding: Finding) -> grammar.Shown:
            row = self._take(finding.name, at[finding.name], rng)
            named = {"group": row["group"], "dataset": row["source"], "population": row["population"]}
            return row["file"], {key: value for key, value in named.items() if value} | {"twin": twin}

        return (self.finding[first], self.finding[second]), at[first][1], image_of

    def _left(self, finding: str, place: tuple[str, str]) -> int:
        return sum(self.max_uses - self.uses[row["file"]] for row in self.stock[finding][place])

    def _take(self, finding: str, place: tuple[str, str], rng: np.random.Generator) -> dict:
        """One of the images used least; its last use takes it out of the stock."""
        here = self.stock[finding][place]
        fewest = min(self.uses[row["file"]] for row in here)
        candidates = [row for row in here if self.uses[row["file"]] == fewest]
        row = candidates[rng.integers(len(candidates))]
        self.uses[row["file"]] += 1
        if self.uses[row["file"]] == self.max_uses:
            here.remove(row)
            if not here:
                del self.stock[finding][place]
        return row
