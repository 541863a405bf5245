"""Patient pairs: image, note and treatment stay, and another patient flips the verdict.

The rules are read from ``data/patients.yaml``. Each names a treatment that suits what the image shows, the facts
about a patient that leave it right, those that make it wrong, and the guideline that it rests on. Every fact makes
one treatment right and another one wrong, so neither the patient alone nor the treatment alone gives the verdict
away. Phrases of training, validation and test are others.
"""

from __future__ import annotations

import itertools
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medlib.config import MODALITIES, ROOT, DataError
from medlib.data.cases import LabelledCase, Patient
from medlib.data.synthetic.grammar import SEED_BASE, Wording, drawn, stream
from medlib.data.synthetic.lexicon import LEXICON, SPLITS, Finding, Guideline, Loss, Phrases, Text, read_yaml

FILE = ROOT / "data" / "patients.yaml"
#: Image seeds of one split; those of the next one lie behind them.
IMAGES = 300_000


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fact(_Entry):
    """What is true of a patient: an age, a sex, a line of history."""

    name: Text
    ages: tuple[int, int] = Field(description="youngest and oldest, in years")
    sex: Literal["female", "male"] | None = Field(None, description="None: either")
    phrases: Phrases | None = Field(None, description="history; None: the age alone tells")

    @model_validator(mode="after")
    def _ages_in_order(self) -> Fact:
        if not 0 <= self.ages[0] <= self.ages[1] <= 120:
            raise ValueError("ages: youngest and oldest are needed, between 0 and 120")
        return self


class Rule(_Entry):
    """A treatment that suits the image, and which patients it suits."""

    name: Text
    modality: Text
    findings: tuple[Text, ...] = Field(min_length=1, description="what the image shows: one that can be drawn")
    care: Text = Field(description="what the treatment stands for in the lexicon")
    treatments: Phrases
    right: tuple[Text, ...] = Field(min_length=1, description="facts with which it is right")
    wrong: tuple[Text, ...] = Field(min_length=1, description="facts with which it is an error")
    error: Literal["overtreatment", "unnecessary_procedure", "undertreatment", "contraindication"]
    loss: Loss
    guideline: Guideline


class Rules(_Entry):
    """The content of ``data/patients.yaml``."""

    facts: tuple[Fact, ...]
    rules: tuple[Rule, ...]

    def fact(self, name: str) -> Fact:
        """A fact by name."""
        return next(fact for fact in self.facts if fact.name == name)


@lru_cache(maxsize=4)
def load(file: Path = FILE) -> Rules:
    """The rules of a file.

    Raises
    ------
    DataError
        Naming file and key of every problem: a missing or unknown key, a bad value, a name used twice, a finding
        that cannot be drawn, care or a fact that is not described, a fact that only ever makes right or wrong, a
        phrase of two splits.
    """
    rules = read_yaml(file, Rules)
    if problems := _problems(rules):
        raise DataError("\n".join(f"{file}, {problem}" for problem in problems))
    return rules


def _problems(rules: Rules) -> list[str]:
    """What no single key shows."""
    problems = []
    for key, names in (("facts", [f.name for f in rules.facts]), ("rules", [r.name for r in rules.rules])):
        problems += [f"key '{key}': {name!r} is used twice" for name, n in Counter(names).items() if n > 1]
    known = {fact.name: fact for fact in rules.facts}
    for rule in rules.rules:
        problems += [f"key 'rules.{rule.name}.{problem}" for problem in _problems_of(rule, known)]
    for fact in rules.facts:
        for side in ("right", "wrong"):
            if not any(fact.name in getattr(rule, side) for rule in rules.rules):
                problems.append(f"key 'facts.{fact.name}': never {side}, so it gives the verdict away")
    return problems + _shared_words(rules)


def _problems_of(rule: Rule, known: dict[str, Fact]) -> list[str]:
    """Names in a rule that stand for nothing, and facts that cannot be told apart."""
    drawable = {f.name for f in LEXICON.findings_of(rule.modality) if f.drawn}
    entry = LEXICON.modalities.get(rule.modality)
    kinds = {care.name for care in entry.care} if entry else set()
    problems = [f"findings': {name!r} cannot be drawn" for name in rule.findings if name not in drawable]
    problems += [] if rule.care in kinds else [f"care': {rule.care!r} is not one of {', '.join(sorted(kinds))}"]
    for side in ("right", "wrong"):
        problems += [f"{side}': {name!r} is no fact" for name in getattr(rule, side) if name not in known]
    facts = [[known[name] for name in side if name in known] for side in (rule.right, rule.wrong)]
    for fact in facts[0] + facts[1]:
        if entry and entry.sex and fact.sex not in (None, entry.sex):
            problems.append(f"modality': no patient of {rule.modality} is {fact.sex}, as {fact.name!r} says")
    for right, wrong in itertools.product(*facts):
        ages_meet = max(right.ages[0], wrong.ages[0]) <= min(right.ages[1], wrong.ages[1])
        if right == wrong or (ages_meet and not right.phrases and not wrong.phrases):
            problems.append(f"wrong': {wrong.name!r} cannot be told from {right.name!r}, which is right")
    return problems


def _shared_words(rules: Rules) -> list[str]:
    """Phrases that stand in two splits, whatever they are phrases of."""
    tables = [fact.phrases for fact in rules.facts if fact.phrases] + [rule.treatments for rule in rules.rules]
    splits: dict[str, set[str]] = {}
    for table in tables:
        for split in SPLITS:
            for phrase in table[split]:
                splits.setdefault(phrase.lower(), set()).add(split)
    return [
        f"key 'phrases': {text!r} stands in {', '.join(sorted(s))}" for text, s in splits.items() if len(s) > 1
    ]


def patient_pairs(
    split: str, pairs: int, seed: int = 0, left_out: frozenset[str] = frozenset(), rules: Rules | None = None
) -> list[LabelledCase]:
    """``2 * pairs`` scenarios: the right patient first, then the twin whom the treatment does not suit.

    Modalities take turns, and so do the rules of each. What does not decide is shared: the complaint, and age and
    sex wherever both facts allow it.

    Parameters
    ----------
    split : {"train", "val", "test"}
        Chooses the phrases and the images, which no other suite has.
    pairs : int
        At most 300,000.
    left_out : names such as ``xray/ground_glass``
        Findings of which no image is drawn.
    rules : by default those of the repository
    """
    rng = stream(split, seed, "patients")
    base = SEED_BASE["patients"] + IMAGES * SPLITS.index(split)
    image_seeds = base + rng.permutation(IMAGES)[:pairs]
    given = rules or load()
    turns = {m: r for m in MODALITIES if (r := _usable(given, m, left_out))}
    wording, names, scenarios = Wording(split), list(turns), []
    for index in range(pairs if turns else 0):
        mine = turns[names[index % len(names)]]
        rule, findings = mine[index // len(names) % len(mine)]
        finding = findings[int(rng.integers(len(findings)))]
        shown = drawn(finding, image_seeds[index])
        scenarios += _pair(f"{split}_patient_{index:05d}", given, rule, finding, shown, wording, rng)
    return scenarios


def _usable(rules: Rules, modality: str, left_out: frozenset[str]) -> list[tuple[Rule, list[Finding]]]:
    """The rules of a modality, each with the findings that are not left out."""
    usable = []
    for rule in rules.rules:
        names = [name for name in rule.findings if f"{modality}/{name}" not in left_out]
        if rule.modality == modality and names:
            usable.append((rule, [LEXICON.finding(modality, name) for name in names]))
    return usable


def _pair(pair_id, rules: Rules, rule: Rule, finding: Finding, shown, wording: Wording, rng) -> list[LabelledCase]:
    facts = [rules.fact(str(rng.choice(side))) for side in (rule.right, rule.wrong)]
    note, treatment = wording.finding(finding, rng), str(rng.choice(rule.treatments[wording.split]))
    image, image_factors = shown
    factors = {
        "pair": pair_id,
        "pair_kind": "patient",
        "image_finding": finding.name,
        "note_finding": finding.name,
        "care": rule.care,
        "rule": rule.name,
        **image_factors,
    }
    scenarios = []
    for letter, fact, patient in zip("ab", facts, _two_patients(facts, rule.modality, wording.split, rng)):
        is_right = letter == "a"
        source = "right_treatment" if is_right else rule.error
        scenarios.append(
            LabelledCase(
                id=f"{pair_id}_{letter}",
                modality=rule.modality,
                image=image,
                patient=patient,
                finding=note,
                treatment=treatment,
                verdict="CORRECT" if is_right else "ERROR",
                error_type="none" if is_right else rule.error,
                severity="none" if is_right else rule.loss.severity,
                cost_impact=0 if is_right else rule.loss.cost,
                factors=factors | {"source": source, "patient_fact": fact.name},
            )
        )
    return scenarios


def _two_patients(facts: list[Fact], modality: str, split: str, rng: np.random.Generator) -> list[Patient]:
    """A patient of each fact; they share complaint, age and sex as far as the facts allow."""
    ages = _ages([fact.ages for fact in facts], rng)
    shared = next((fact.sex for fact in facts if fact.sex), None) or str(rng.choice(["female", "male"]))
    sex = LEXICON.modalities[modality].sex or shared
    complaint = str(rng.choice(LEXICON.complaints(modality, child=min(ages) < 18)))
    patients = []
    for fact, age in zip(facts, ages):
        history = [str(rng.choice(fact.phrases[split]))] if fact.phrases else []
        patients.append(Patient(age=age, sex=fact.sex or sex, complaint=". ".join([complaint, *history])))
    return patients


def _ages(ranges: list[tuple[int, int]], rng: np.random.Generator) -> list[int]:
    """One age for both ranges where they overlap, else one of each."""
    youngest, oldest = max(low for low, _ in ranges), min(high for _, high in ranges)
    if youngest <= oldest:
        return [int(rng.integers(youngest, oldest + 1))] * len(ranges)
    return [int(rng.integers(low, high + 1)) for low, high in ranges]
