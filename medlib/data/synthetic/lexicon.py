"""The words of the scenario grammar: findings, treatments, complaints, read from ``data/lexicon/*.yaml``.

Every phrase belongs to one split, so a test scenario is worded in a way that training never saw.
A treatment phrase is listed only if some finding calls for it: a phrase that is always wrong would
be a keyword that gives the verdict away.

`LEXICON` is all that the files hold. The names in capitals and `findings_of` are the part that the
generator can draw. `load` adds a user's own folder of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from medlib.config import MODALITIES, ROOT, DataError

FOLDER = ROOT / "data" / "lexicon"
SPLITS = ("train", "val", "test")
DEGREES = ("Mild", "Moderate", "Marked")


def _of_every_split(phrases: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    if unknown := phrases.keys() - set(SPLITS):
        raise ValueError(f"{', '.join(sorted(unknown))}: not one of {', '.join(SPLITS)}")
    if missing := [split for split in SPLITS if not phrases.get(split)]:
        raise ValueError(f"no phrase for {', '.join(missing)}")
    counts = Counter(phrase.lower() for split in SPLITS for phrase in phrases[split])
    if twice := [phrase for phrase, count in counts.items() if count > 1]:
        raise ValueError(f"listed twice: {', '.join(twice)}; a phrase belongs to one split")
    return phrases


Content = TypeVar("Content", bound=BaseModel)
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Phrases = Annotated[dict[str, tuple[Text, ...]], AfterValidator(_of_every_split)]  # split -> templates


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Guideline(_Entry):
    """What a rule from finding to care rests on."""

    name: Text
    year: int = Field(ge=1900, le=2100)
    section: Text
    checked: bool = Field(False, description="whether the section was read for this rule")
    remark: str = Field("", description="what the rule leaves out")


class Finding(_Entry):
    """A finding, the care it calls for and the ways to word it."""

    modality: str = ""  # the file's
    name: Text = Field(description="as image labels and `medlib.data.synthetic.draw` have it")
    label: Text = Field(description="canonical words, used in captions")
    care: Text
    accepts: tuple[Text, ...] = Field((), description="further care that is no error")
    unsuited: tuple[Text, ...] = Field((), description="treatments of that care that do not suit this finding")
    drawn: bool = Field(False, description="whether the generator can draw it")
    guideline: Guideline
    phrases: Phrases
    plain_phrases: Phrases | None = Field(None, description="for real images, whose label promises no sign")

    @property
    def benign(self) -> bool:
        return self.care == "observation"

    def fits(self, care: str) -> bool:
        """Whether this care is right for the finding."""
        return care == self.care or care in self.accepts


class Loss(_Entry):
    """How bad an error is, and its cost; round figures for ranking errors and not for accounting."""

    severity: Literal["moderate", "high", "critical"]
    cost: int = Field(ge=0, description="US dollars")


class Care(_Entry):
    """One kind of care and its treatments."""

    name: Text = Field(description="'observation' where nothing is done")
    rank: int = Field(description="order by invasiveness; tells over- from undertreatment")
    over: Loss | None = Field(None, description="given where less was called for")
    under: Loss | None = Field(None, description="called for where less was given")
    treatments: Phrases


class Modality(_Entry):
    """One file of ``data/lexicon``, or several files on one modality together."""

    modality: Text
    sex: Literal["female", "male"] | None = Field(None, description="of all patients; None: either")
    care: tuple[Care, ...] = ()
    complaints: tuple[Text, ...] = Field((), description="drawn apart from the finding")
    adults_only: tuple[Text, ...] = Field((), description="complaints and treatments not for children")
    findings: tuple[Finding, ...] = ()


class Lexicon:
    """Findings, care and complaints by modality; see `load`."""

    def __init__(self, modalities: dict[str, Modality]) -> None:
        self.modalities = modalities

    def findings_of(self, modality: str) -> list[Finding]:
        """All findings of a modality, in the order of the files; none for an unknown modality."""
        return list(self.modalities[modality].findings) if modality in self.modalities else []

    def finding(self, modality: str, name: str) -> Finding:
        """A finding by name.

        Raises
        ------
        DataError
            If it is unknown; lists the known ones and says how to add one.
        """
        for finding in self.findings_of(modality):
            if finding.name == name:
                return finding
        known = ", ".join(f.name for f in self.findings_of(modality)) or f"none of modality {modality!r}"
        raise DataError(
            f"finding {name!r} of modality {modality!r} is not in the lexicon (known: {known}); "
            "add it in a file lexicon/*.yaml of the data folder, as data/lexicon/README.md describes"
        )

    def care(self, modality: str, name: str) -> Care:
        """One kind of care by name."""
        return next(care for care in self.modalities[modality].care if care.name == name)

    def loss(self, given: str, finding: Finding) -> tuple[str, Loss]:
        """``"overtreatment"`` or ``"undertreatment"`` and what it costs, for care that does not fit."""
        wrong, right = self.care(finding.modality, given), self.care(finding.modality, finding.care)
        kind, loss = ("overtreatment", wrong.over) if wrong.rank > right.rank else ("undertreatment", right.under)
        assert loss is not None  # `_problems` has seen to it
        return kind, loss

    def treatments(self, finding: Finding, split: str, child: bool = False) -> list[str]:
        """The phrases of a split for the care of a finding, less those that do not suit it or a child."""
        left_out = (*finding.unsuited, *(self.modalities[finding.modality].adults_only if child else ()))
        phrases = self.care(finding.modality, finding.care).treatments[split]
        return [phrase for phrase in phrases if phrase not in left_out]

    def complaints(self, modality: str, child: bool = False) -> list[str]:
        """What a patient may complain of."""
        entry = self.modalities[modality]
        return [c for c in entry.complaints if not (child and c in entry.adults_only)]


def load(folders: Iterable[str | Path] = ()) -> Lexicon:
    """The project's lexicon, and what files ``*.yaml`` in further folders add to it.

    A file adds findings, care and complaints to a modality or describes a new one; it changes nothing
    that is there. A folder that does not exist adds nothing.

    Raises
    ------
    DataError
        Naming file and key of every problem of a file: a missing or unknown key, a bad value, a
        phrase listed twice, care that is not described, a name that is taken.
    """
    modalities: dict[str, Modality] = {}
    for folder in (FOLDER, *folders):
        for file in sorted(Path(folder).glob("*.yaml")):
            added = _read(file)
            known = modalities.get(added.modality, Modality(modality=added.modality))
            together = _together(known, added)
            if problems := _problems(together):
                raise DataError("\n".join(f"{file}, {problem}" for problem in problems))
            modalities[added.modality] = together
    order = [*MODALITIES, *sorted(modalities)]
    return Lexicon({name: modalities[name] for name in dict.fromkeys(order) if name in modalities})


def read_yaml(file: Path, schema: type[Content]) -> Content:
    """The content of a file by its schema; DataError names file and key of what does not fit."""
    try:
        return schema.model_validate(yaml.safe_load(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{file}: not readable as YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        first = next(iter(schema.model_fields))  # what an empty file lacks
        problems = [f"key '{'.'.join(map(str, e['loc'])) or first}': {e['msg']}" for e in error.errors()]
        raise DataError("\n".join(f"{file}, {problem}" for problem in problems)) from None


def _read(file: Path) -> Modality:
    entry = read_yaml(file, Modality)
    findings = tuple(f.model_copy(update={"modality": entry.modality}) for f in entry.findings)
    return entry.model_copy(update={"findings": findings})


def _together(known: Modality, added: Modality) -> Modality:
    return Modality(
        modality=known.modality,
        sex=added.sex or known.sex,
        care=tuple(sorted((*known.care, *added.care), key=lambda care: care.rank)),
        complaints=tuple(dict.fromkeys((*known.complaints, *added.complaints))),
        adults_only=tuple(dict.fromkeys((*known.adults_only, *added.adults_only))),
        findings=(*known.findings, *added.findings),
    )


def _problems(entry: Modality) -> list[str]:
    """What no single key shows: names used twice, references to nothing, errors without a cost."""
    problems = [] if entry.complaints else ["key 'complaints': missing"]
    for key, values in (
        ("findings", [f.name for f in entry.findings]),
        ("care", [c.name for c in entry.care]),
        ("care", [f"rank {c.rank}" for c in entry.care]),
    ):
        problems += [f"key '{key}': {v!r} is used twice" for v, n in Counter(values).items() if n > 1]
    for care in entry.care[:1]:
        problems += [f"key 'care.{care.name}.over': nothing is less invasive"] if care.over else []
    for care in entry.care[1:]:
        problems += [f"key 'care.{care.name}.{k}': missing" for k in ("over", "under") if not getattr(care, k)]
    treatments = {care.name: [p for s in SPLITS for p in care.treatments[s]] for care in entry.care}
    for finding in entry.findings:
        key = f"key 'findings.{finding.name}."
        for field, names in (("care", [finding.care]), ("accepts", finding.accepts)):
            unknown = [name for name in names if name not in treatments]
            problems += [f"{key}{field}': {n!r} is not one of {', '.join(treatments)}" for n in unknown]
        listed = treatments.get(finding.care, [])
        problems += [
            f"{key}unsuited': {p!r} is no treatment of its care" for p in finding.unsuited if p not in listed
        ]
    everything = {*entry.complaints, *(phrase for phrases in treatments.values() for phrase in phrases)}
    problems += [
        f"key 'adults_only': {phrase!r} is no complaint or treatment of the file"
        for phrase in entry.adults_only
        if phrase not in everything
    ]
    return problems


#: All that the project knows; real images may show any of it.
LEXICON = load()

#: What the generator can draw.
FINDINGS: tuple[Finding, ...] = tuple(f for m in LEXICON.modalities for f in LEXICON.findings_of(m) if f.drawn)

_CARE = {
    (modality, care.name): care
    for modality, entry in LEXICON.modalities.items()
    for care in entry.care
    if (modality, care.name) in {(f.modality, f.care) for f in FINDINGS}
}

#: Care in one modality, from least to most invasive; the order tells over- from undertreatment.
CARE_ORDER = {m: tuple(care for modality, care in _CARE if modality == m) for m in MODALITIES}

#: (modality, care) -> split -> phrases
TREATMENTS = {key: care.treatments for key, care in _CARE.items()}

#: Complaints are drawn apart from the finding, so they say nothing of the verdict.
COMPLAINTS = {m: LEXICON.modalities[m].complaints for m in MODALITIES}

#: Severity and cost of an error by modality and care, as (severity, US dollars).
OVERTREATMENT = {key: (care.over.severity, care.over.cost) for key, care in _CARE.items() if care.over}
UNDERTREATMENT = {key: (care.under.severity, care.under.cost) for key, care in _CARE.items() if care.under}


def findings_of(modality: str) -> list[Finding]:
    """The findings of a modality that the generator can draw, in the order of the file."""
    return [finding for finding in FINDINGS if finding.modality == modality]
