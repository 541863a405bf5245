"""More training cases from the same ones: the same findings in other words, some pairs more often.

Functions from `medlib.data.suite.Suite` to `Suite`. Images are never copied, so the features of a frozen
tower are still computed once. Only the training split is augmented: its words are its own, and no
phrase of validation or test can come in.
"""

from __future__ import annotations

from dataclasses import replace

from medlib.config import DataError
from medlib.data.cases import LabelledCase
from medlib.data.suite import Suite
from medlib.data.synthetic import grammar
from medlib.data.synthetic.lexicon import LEXICON, Lexicon
from medlib.data.variants import paraphrase


def augmented(
    suite: Suite, paraphrase_copies: int = 0, pair_copies: int = 1, seed: int = 0, lexicon: Lexicon = LEXICON
) -> Suite:
    """A training suite as a run is told to see it: `oversample_pairs`, then `in_other_words`.

    Parameters
    ----------
    suite : training suite of `medlib.data.synthetic.grammar` or `medlib.data.counterfactual`
    paraphrase_copies, pair_copies : as in `medlib.config.settings.RunConfig`

    Raises
    ------
    DataError
        If a scenario is not of the training split.
    """
    if paraphrase_copies == 0 and pair_copies == 1:
        return suite
    return in_other_words(oversample_pairs(suite, pair_copies, lexicon=lexicon), paraphrase_copies, seed, lexicon)


def in_other_words(suite: Suite, copies: int, seed: int = 0, lexicon: Lexicon = LEXICON) -> Suite:
    """The suite, and behind it ``copies`` of it with every phrase changed for another of its split.

    Members of a pair change together (`medlib.data.variants.paraphrase`), so a pair still differs in one
    factor. Ids get the suffix ``-words1``, ``-words2``, ...; each copy draws by its own seed, and
    where a finding has few phrases two copies can draw the same.
    """
    scenarios = list(suite.scenarios)
    for number in range(1, copies + 1):
        changed = paraphrase(suite, seed + number, lexicon).scenarios
        scenarios += [_renamed(s, f"words{number}") for s in changed]
    return _training_only(replace(suite, name=f"{suite.name}-words{copies}", scenarios=scenarios), lexicon)


def oversample_pairs(suite: Suite, times: int, kind: str = "image", lexicon: Lexicon = LEXICON) -> Suite:
    """The suite with its counterfactual pairs of one kind ``times`` over; other scenarios once.

    Pairs of kind ``image`` have the same words on both sides: only the image tells them apart, so
    this is the remedy for a model that reads and does not look. Ids of the copies get ``-again2``, ...
    """
    again = [
        _renamed(s, f"again{number}")
        for number in range(2, times + 1)
        for s in suite.scenarios
        if s.factors.get("pair_kind") == kind
    ]
    name = f"{suite.name}-{kind}{times}"
    return _training_only(replace(suite, name=name, scenarios=suite.scenarios + again), lexicon)


def _renamed(scenario: LabelledCase, suffix: str) -> LabelledCase:
    pair = scenario.factors.get("pair")
    factors = scenario.factors | ({"pair": f"{pair}-{suffix}"} if pair else {})
    return scenario.model_copy(update={"id": f"{scenario.id}-{suffix}", "factors": factors})


def _training_only(suite: Suite, lexicon: Lexicon) -> Suite:
    """The suite, if none of its words are of another split."""
    kept = {phrase for split in ("val", "test") for phrase in grammar.phrases(split, lexicon)}
    for scenario in suite.scenarios:
        for field in ("finding", "treatment"):
            if getattr(scenario, field) in kept:
                raise DataError(
                    f"{suite.name}, {scenario.id}, field '{field}': a phrase kept for "
                    "validation or test; augment the training suite only"
                )
    return suite
