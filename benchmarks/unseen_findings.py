"""What an adapter makes of findings that its training never had, beside one that had them.

Two trainings with the same seed and number of pairs, without these findings and with all of them, answer the same
held-out suite; so does the untouched base. A case counts by what its image shows. What is finished stays in the
folder, so the same command resumes. It ends by writing its table into benchmarks/README.md.

The stand-in met images and phrases of all findings in its own pretraining. So this shows whether an adapter
carries the task over to a finding that it was not trained on, and nothing about one that the base has never met.

    python benchmarks/unseen_findings.py                                    # one finding of each modality
    python benchmarks/unseen_findings.py --pairs 12 --test-pairs 24 --folder /tmp/u --out /tmp/unseen.md  # a try
"""

from __future__ import annotations

import pandas as pd
from noise import kept, options, write

from medlib import stats
from medlib.config import ADAPTER, BASE, files, jobs, path, provenance, resolve
from medlib.data import sources
from medlib.data.synthetic import lexicon
from medlib.evaluation import measured
from medlib.stats.text import rate_text, to_markdown
from medlib.systems import Session
from medlib.training import supervised

MARKS = "<!-- unseen findings: written by benchmarks/unseen_findings.py -->", "<!-- end of unseen findings -->"
#: One of each modality. Only that of MRI is the only one that calls for its care.
FINDINGS = (
    "xray/ground_glass",
    "histopathology/adenocarcinoma",
    "mri/well_circumscribed_mass",
    "ultrasound/simple_cyst",
)
#: Figures of a group of cases that are kept.
RATES = ("accuracy", "sensitivity", "specificity")
EVERY, OTHERS = "all of these", "the other findings"


def one(profile: str, findings: tuple[str, ...], leave_out: bool, sizes: dict, folder: str) -> dict:
    """Train with or without some findings and answer the held-out suite; read if it is done.

    Parameters
    ----------
    findings : names such as ``xray/ground_glass``
    leave_out : whether training does without them
    sizes : ``train_pairs``, ``test_pairs``, ``seed``, and any other settings

    Returns
    -------
    dict
        ``left_out``, ``settings``, ``measured`` (of `measured.facts`) and ``scores``: system -> finding,
        `EVERY` or `OTHERS` -> `RATES`. The base is asked where nothing is left out.
    """
    left_out = findings if leave_out else ()
    name = provenance.digest([profile, findings, sizes])[:8]
    run_dir = path(folder) / f"{name}-{'without' if leave_out else 'with'}"
    file = run_dir / "result.json"
    config = resolve(profile, **sizes, held_out_findings=left_out, run_dir=str(run_dir), processes=1)
    supervised.train(config)
    suites = sources.prepare(config)
    facts = measured.facts(config, suites)
    if before := kept(file, facts):
        return before
    session, test = Session(config, suites), suites["test"]
    shown = [sources.shown_finding(s) for s in test.scenarios]
    systems = (ADAPTER,) if leave_out else (BASE, ADAPTER)
    result = {
        "left_out": list(left_out),
        "settings": {"profile": profile} | sizes,
        "measured": facts,
        "scores": {system: scores(session.ask(system, test), shown, findings) for system in systems},
    }
    files.write_json(file, result)
    return result


def scores(frame: pd.DataFrame, shown: list[str], findings: tuple[str, ...]) -> dict[str, dict]:
    """`RATES` of the cases of each finding, of all of these together and of the others."""
    groups = {name: [s == name for s in shown] for name in findings}
    groups |= {EVERY: [s in findings for s in shown], OTHERS: [s not in findings for s in shown]}
    parts = {name: frame[rows] for name, rows in groups.items() if any(rows)}
    return {name: {rate: stats.score(part)[rate] for rate in RATES} for name, part in parts.items()}


def table(without: dict, everything: dict) -> pd.DataFrame:
    """A row for each finding, for all of them and for the others: trained without, trained with, untouched."""
    rows = []
    for name, rates in without["scores"][ADAPTER].items():
        beside = {system: everything["scores"][system][name]["accuracy"] for system in (ADAPTER, BASE)}
        rows.append(
            {
                "Finding": name,
                "Care known": _care_known(name, without["left_out"]),
                "Cases": f"{rates['accuracy']['n']:,}",
                "Trained without": rate_text(rates["accuracy"]),
                "Valid treatments recognised": rate_text(rates["sensitivity"]),
                "Errors caught": rate_text(rates["specificity"]),
                "Trained with": rate_text(beside[ADAPTER]),
                "Untouched": rate_text(beside[BASE]),
            }
        )
    return pd.DataFrame(rows)


def _care_known(name: str, left_out: list[str]) -> str:
    """Whether a finding that is not left out calls for the same care; "" for a group of findings."""
    care = {(f"{f.modality}/{f.name}"): (f.modality, f.care) for f in lexicon.FINDINGS}
    if name not in care:
        return ""
    return "yes" if any(care[name] == care[other] for other in care if other not in left_out) else "no"


def main() -> None:
    parser = options(__doc__, profile="standin", folder="runs/unseen")
    parser.add_argument("--leave-out", nargs="+", default=list(FINDINGS), help="findings, as modality/finding")
    parser.add_argument("--pairs", type=int, default=1200, help="training pairs")
    parser.add_argument("--epochs", type=float, help="by default those of the profile")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    findings = tuple(sorted(given.leave_out))
    sizes = {"train_pairs": given.pairs, "test_pairs": given.test_pairs, "seed": given.seed}
    sizes |= {"epochs": given.epochs} if given.epochs else {}
    tasks = [(given.profile, findings, leave_out, sizes, given.folder) for leave_out in (True, False)]
    without, everything = jobs.run(one, tasks, given.processes, "trainings")
    text = to_markdown(table(without, everything))
    print(text)
    made_of = f"Profile `{given.profile}`, seed {given.seed}, {given.pairs:,} training pairs."
    hashes = " and ".join(f"`{result['measured']['adapters'][ADAPTER][:12]}`" for result in (without, everything))
    write(f"{text}\n{made_of} SHA-256 of the adapters (without, with): {hashes}.\n", given.out, MARKS)


if __name__ == "__main__":
    main()
