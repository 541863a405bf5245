"""Everything a run reads: the core set and generated suites, or a data set of one's own (``data_dir``).

The suites of a run share no image and no phrase. A data set of one's own takes the place of the generated suites
and of the core set; where it cannot give a suite, that one is empty, and nothing is asked about it.
"""

from __future__ import annotations

import os
from pathlib import Path

from medlib.config import DataError, RunConfig, path, paths, provenance
from medlib.data import core24, own_suites, quality, variants
from medlib.data.cases import LabelledCase, read_scenarios
from medlib.data.images import check_images, check_split, inside, is_whole, load_image
from medlib.data.quality import Issue
from medlib.data.split import SIDES
from medlib.data.suite import Suite
from medlib.data.synthetic import grammar, lexicon, patients
from medlib.data.synthetic.lexicon import LEXICON, Finding, Lexicon

CORE_DIR = paths.generated("core24")
SUITES_DIR = paths.generated("suites")
#: The renderer of the images that no training sees.
RENDERER = "sketch"


def core(config: RunConfig, split: str) -> Suite:
    """The 16 training or 8 validation cases, on the real images if ``images_dir`` says where.

    Training has no case of a finding in ``held_out_findings``.

    Raises
    ------
    DataError
        If the files are not the published facts, or an image is missing, broken or a mask.
    """
    ensure_core()
    images_dir = core_images(config)
    scenarios = read_scenarios(CORE_DIR / f"{split}.jsonl")
    check_images(scenarios, images_dir, config.allow_masks, name=f"core24/{split}.jsonl")
    left_out = held_out_findings(config) if split == "train" else ()
    return Suite(f"core24_{split}", [s for s in scenarios if shown_finding(s) not in left_out], images_dir)


def ensure_core() -> None:
    """Rebuild the core set if a file or image is missing or cut off, then check it against its hash."""
    images = {CORE_DIR / "images" / s.image for s in core24.load_facts()}
    if not (CORE_DIR / "val.jsonl").is_file() or not all(map(is_whole, images)):
        core24.build(CORE_DIR)
    core24.verify(CORE_DIR)


def examples(config: RunConfig) -> Suite:
    """Cases to show what the task is: core cases, or the held-out ones of a data set of one's own."""
    return suite(config, "test") if config.data_dir else core(config, "val")


def described(config: RunConfig) -> list[LabelledCase]:
    """The cases that 01_data describes: the 24 core cases, or all of a data set of one's own."""
    if config.data_dir:
        return [s for side in SIDES for s in suite(config, side).scenarios]
    return core24.load_facts()


def findings_of(config: RunConfig, modality: str) -> list[Finding]:
    """What an image of this modality may show: what the generator draws, or what the data set and lexicon know."""
    if config.data_dir:
        return own_suites.of(config).findings_of(modality)
    return lexicon.findings_of(modality)


def lexicon_of(config: RunConfig) -> Lexicon:
    """The findings that notes are written of: the repository's, and what a data set of one's own adds."""
    return own_suites.of(config).lexicon if config.data_dir else LEXICON


def audit(config: RunConfig) -> list[Issue]:
    """What is wrong with the cases of `described` and with the images in use; refuses nothing."""
    if config.data_dir:
        suites = {side: suite(config, side) for side in SIDES}
        sides, images_dir = {side: part.scenarios for side, part in suites.items()}, suites["train"].images_dir
    else:
        ensure_core()
        sides = {side: read_scenarios(CORE_DIR / f"{side}.jsonl") for side in ("train", "val")}
        images_dir = core_images(config)
    side_of = {s.id: side for side, scenarios in sides.items() for s in scenarios}
    return quality.audit(
        [s for scenarios in sides.values() for s in scenarios], images_dir, side_of, drawn=not config.data_dir
    )


def is_drawn(suite: Suite, scenario: LabelledCase) -> bool:
    """Whether a scenario's image is one that this project draws: by its pixels, wherever it lies.

    An image is drawn again and compared, so a file that was put in the place of a drawn one is found out.
    """
    image = load_image(inside(suite.images_dir, scenario.image))
    redrawn = core24.redrawn(scenario) or grammar.redrawn(scenario, image.width)
    return redrawn is not None and image.size == redrawn.size and image.tobytes() == redrawn.tobytes()


def core_images(config: RunConfig) -> Path:
    """Folder of the core set's images: the user's real ones, or the drawn ones."""
    return path(config.images_dir) if config.images_dir else CORE_DIR / "images"


def suite(config: RunConfig, split: str) -> Suite:
    """The suite of a split, of data of one's own or generated; drawn on first use, then found on disk."""
    left_out = _left_out(config, split)
    if config.data_dir:
        return own_suites.of(config).suite(config, split)
    pairs = {"train": config.train_pairs, "val": config.val_pairs, "test": config.test_pairs}[split]
    name = f"{split}-{pairs}-{config.seed}{_mark(left_out)}"
    scenarios = grammar.build_suite(name, split, pairs, config.seed, SUITES_DIR, left_out)
    return Suite(name, scenarios, SUITES_DIR / name / "images")


def held_out_findings(config: RunConfig) -> frozenset[str]:
    """The findings that stand in the held-out suites only, as ``modality/finding``.

    Raises
    ------
    DataError
        If one cannot be drawn, or with a data set of one's own, whose split decides what training sees.
    """
    known = {f"{finding.modality}/{finding.name}" for finding in lexicon.FINDINGS}
    if unknown := sorted(set(config.held_out_findings) - known):
        raise DataError(f"held_out_findings: {', '.join(unknown)}: not one of {', '.join(sorted(known))}")
    if config.held_out_findings and config.data_dir:
        raise DataError("held_out_findings: for drawn images only; divide a data set of your own by its split")
    return frozenset(config.held_out_findings)


def _left_out(config: RunConfig, split: str) -> frozenset[str]:
    return frozenset() if split == "test" else held_out_findings(config)


def _mark(left_out: frozenset[str]) -> str:
    """What the name of a suite ends with if findings are left out of it."""
    return f"-without-{provenance.digest(sorted(left_out))[:8]}" if left_out else ""


def shown_finding(scenario: LabelledCase) -> str:
    """What the image of a generated or core case shows, as ``modality/finding``."""
    return f"{scenario.modality}/{scenario.factors.get('image_finding')}"


def generated(name: str, scenarios: list[LabelledCase], **card) -> Suite:
    """Write generated scenarios and a card on how they were made, draw their images. Existing files are reused."""
    folder = SUITES_DIR / name
    grammar.keep(scenarios, folder, {"name": name, **card, "pictures": "synthetic"})
    grammar.draw_images(scenarios, folder / "images")
    return Suite(name, scenarios, folder / "images")


def feedback(config: RunConfig) -> Suite:
    """Cases for raters: new ones in the words of training, some of whose notes contradict the image."""
    return _with_notes(config, "feedback", "train", config.feedback_pairs, config.feedback_note_pairs)


def monitoring(config: RunConfig) -> Suite:
    """48 cases in the words of validation, a third with a contradicting note, used to monitor training."""
    return _with_notes(config, "probe", "val", 16, 8)


def _with_notes(config: RunConfig, use: str, split: str, pairs: int, notes: int) -> Suite:
    if config.data_dir:
        return own_suites.of(config).further(config, use, split, pairs, notes)
    seed = config.seed
    left_out = _left_out(config, split)
    scenarios = grammar.generate(split, pairs, seed, use, left_out)
    scenarios += grammar.note_pairs(split, notes, seed, use, left_out) if notes else []
    name = f"{use}-{pairs}-{notes}-{seed}{_mark(left_out)}"
    return generated(name, scenarios, split=split, pairs=pairs, notes=notes, seed=seed)


def tuning(config: RunConfig) -> Suite:
    """Cases on which settings and methods are chosen: in the words of validation, as many as `calibration` has.

    Nothing else is chosen on them, and no case is in `calibration`.
    """
    return _in_words_of_validation(config, "tuning")


def calibration(config: RunConfig) -> Suite:
    """Cases on which the decision threshold is chosen and nothing else: in the words of validation."""
    return _in_words_of_validation(config, "calibration")


def _in_words_of_validation(config: RunConfig, use: str) -> Suite:
    pairs, seed = config.calibration_pairs, config.seed
    if config.data_dir:
        return own_suites.of(config).further(config, use, "val", pairs)
    left_out = _left_out(config, "val")
    scenarios = grammar.generate("val", pairs, seed, use, left_out)
    return generated(f"{use}-{pairs}-{seed}{_mark(left_out)}", scenarios, split="val", pairs=pairs, seed=seed)


def contradiction(config: RunConfig, split: str, pairs: int | None = None) -> Suite:
    """Pairs in which the note contradicts the image; written to disk and drawn on first use.

    Built by `medlib.data.synthetic.grammar.note_pairs`: one image, one note of another finding, and two
    treatments, of which the one that fits the image is CORRECT. Balanced over modality and verdict;
    a reader who takes the note's side is wrong on every scenario. Empty for cases of one's own: nobody knows which
    treatment another image would call for.
    """
    pairs, seed = pairs or config.contradiction_pairs, config.seed
    if config.data_dir:
        return own_suites.of(config).contradiction(config, split, pairs)
    left_out = _left_out(config, split)
    name = f"contradiction-{split}-{pairs}-{seed}{_mark(left_out)}"
    scenarios = grammar.note_pairs(split, pairs, seed, left_out=left_out)
    return generated(name, scenarios, split=split, pairs=pairs, seed=seed)


def paraphrase(config: RunConfig) -> Suite:
    """The held-out suite in other words; empty for given cases, for which nobody knows what means the same."""
    if config.data_dir:
        return own_suites.of(config).paraphrase(config)
    return variants.paraphrase(suite(config, "test"), config.seed)


def demographics(config: RunConfig) -> Suite:
    """The held-out suite with patients of another age and sex; empty for given cases."""
    if config.data_dir:
        return own_suites.of(config).demographics(config)
    return variants.other_patients(suite(config, "test"))


def patient_pairs(config: RunConfig, split: str, pairs: int | None = None) -> Suite:
    """Pairs of which only the patient differs, and decides; see `medlib.data.synthetic.patients`.

    Empty for a data set of one's own, whose images nobody has matched with rules about patients.
    """
    pairs, seed = pairs or config.patient_suite_pairs, config.seed
    if config.data_dir:
        return suite(config, split).rows([])
    left_out = _left_out(config, split)
    scenarios = patients.patient_pairs(split, pairs, seed, left_out)
    name = f"patients-{split}-{pairs}-{seed}{_mark(left_out)}"
    return generated(name, scenarios, split=split, pairs=pairs, seed=seed)


def second_renderer(config: RunConfig) -> Suite:
    """Whole pairs of the held-out suite with images of a second renderer; ids, words and verdicts stay.

    Balanced over modality and kind of pair. Empty for a data set of one's own, whose images are not drawn.
    """
    heldout = suite(config, "test")
    if config.data_dir:
        return heldout.rows([])
    scenarios = [
        s.model_copy(update={"image": f"{RENDERER}_{s.image}", "factors": s.factors | {"renderer": RENDERER}})
        for s in variants.balanced(heldout, config.renderer_pairs).scenarios
    ]
    return generated(f"{heldout.name}-{RENDERER}-{config.renderer_pairs}", scenarios, renderer=RENDERER)


def unseen_findings(config: RunConfig) -> Suite:
    """The held-out cases whose image shows a finding that training left out; empty if none was left out."""
    left_out, heldout = held_out_findings(config), suite(config, "test")
    return heldout.rows(i for i, s in enumerate(heldout.scenarios) if shown_finding(s) in left_out)


def together(name: str, suites: list[Suite]) -> Suite:
    """Suites as one; its images are named from the folder that holds all of them."""
    folder = Path(os.path.commonpath([suite.images_dir for suite in suites]))
    scenarios = [
        s.model_copy(update={"image": (suite.images_dir / s.image).relative_to(folder).as_posix()})
        for suite in suites
        for s in suite.scenarios
    ]
    return Suite(name, scenarios, folder)


def prepare(config: RunConfig) -> dict[str, Suite]:
    """Core set and the three suites, by name: core_train, core_val, train, val, test.

    With a data set of one's own the core set is left out: its two suites are empty.
    """
    suites = {side: suite(config, side) for side in SIDES}
    if config.data_dir:
        return {f"core_{split}": suites[split].rows([]) for split in ("train", "val")} | suites
    cores = {f"core_{split}": core(config, split) for split in ("train", "val")}
    check_split(cores["core_train"].scenarios, cores["core_val"].scenarios, cores["core_train"].images_dir)
    return cores | suites


def hashes(suites: dict[str, Suite]) -> dict[str, str]:
    """Name and SHA-256 of every suite, for ``run.json``."""
    return {s.name: s.sha256 for s in suites.values()}


def overlap(suites: dict[str, Suite]) -> dict[str, int]:
    """How many findings, treatments and images of the test suite stand in training; all must be 0."""
    train, test = suites["train"].scenarios, suites["test"].scenarios
    return {
        name: len({getattr(s, name) for s in train} & {getattr(s, name) for s in test})
        for name in ("finding", "treatment", "image", "id")
    }
