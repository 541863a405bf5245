"""The three ways of the README to data of one's own, each from one command to a training that would start."""

import csv
import json
import sys

import pytest

from medlib.cli import main as cli
from medlib.data import own_suites
from medlib.data.synthetic import grammar
from medlib.data.synthetic.draw import draw, save
from medlib.models import prompts

PATIENT = "**Patient Information:**\n- Age: {age}\n- Gender: {sex}\n- Complaint: {complaint}\n\n"
NOTE = "**Clinical Finding:**\n{finding}\n\n**Prescribed Treatment:**\n{treatment}\n\n**Your Assessment:**"


@pytest.fixture
def scenarios(tmp_path):
    """24 generated cases, each pair of which is a group, and their images in ``tmp_path/own/images``."""
    cases = grammar.generate("train", 12, 0)
    (tmp_path / "own" / "images").mkdir(parents=True)
    for case in cases:
        drawn = draw(case.modality, str(case.factors["image_finding"]), int(case.factors["image_seed"]), 64)
        save(drawn, tmp_path / "own" / "images" / case.image)
    return cases


def a_table(folder, cases):
    with open(folder / "cases.csv", "w", newline="", encoding="cp1252") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["Case ID", "Image", "Age", "Finding", "Therapy", "Appropriate", "Patient"])
        for number, case in enumerate(cases):
            # the first cannot be read
            answer = "ja" if number == 0 else {"CORRECT": "yes", "ERROR": "no"}[case.verdict]
            pair = case.factors["pair"]
            row = (case.id, f"images/{case.image}", "062Y", case.finding, case.treatment, answer, pair)
            writer.writerow(row)


def labelled_folders(folder, cases):
    for number, case in enumerate(cases):
        for copy in range(2):
            finding = str(case.factors["image_finding"])
            place = folder / case.modality / finding
            place.mkdir(parents=True, exist_ok=True)
            save(draw(case.modality, finding, 9_000_000 + 2 * number + copy, 64), place / f"{number}_{copy}.png")


def the_original_format(folder, cases):
    for name, part in (("train", cases[:16]), ("val", cases[16:])):
        lines = []
        for case in part:
            facts = case.patient.model_dump() | {"finding": case.finding, "treatment": case.treatment}
            lines.append(
                {
                    "id": case.id,
                    "instruction": "Review.",
                    "input": (PATIENT + NOTE).format(**facts),
                    "output": prompts.ANSWERS[case.verdict],
                    "image_path": f"images/{case.image}",
                    "metadata": {"modality": case.modality, "cost_impact": case.cost_impact or 0},
                }
            )
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize("way", [a_table, labelled_folders, the_original_format])
def test_each_way_of_the_readme_leads_to_training(way, scenarios, tmp_path, small_config, monkeypatch, capsys):
    folder = tmp_path / "own"
    if way is labelled_folders:
        folder = tmp_path / "labelled"
    way(folder, scenarios)
    monkeypatch.setattr(own_suites, "ASSIGNMENTS", tmp_path / "sides")
    monkeypatch.setattr(
        sys,
        "argv",
        ["medlib", "train", "--dry-run", "--data", str(folder), "--model", small_config.model]
        + ["--run-dir", small_config.run_dir, "--set", "train_pairs=4", "--set", "val_pairs=4"]
        + ["--set", "test_pairs=4"],
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    output, notes = capsys.readouterr()
    assert end.value.code == 0, output
    counts = json.loads(output[output.index("{\n") :])
    assert counts["training_scenarios"] > 4 and counts["tokens_of_first_scenario"] > 50
    if way is a_table:
        assert "cases.csv, row 2" in notes and "Appropriate" in notes  # the row that cannot be read


def test_the_data_command_divides_a_data_set_of_ones_own(scenarios, tmp_path, monkeypatch, capsys):
    a_table(tmp_path / "own", scenarios)
    monkeypatch.setattr(own_suites, "ASSIGNMENTS", tmp_path / "sides")
    monkeypatch.setattr(
        sys, "argv", ["medlib", "data", "--profile", "tiny", "--data", str(tmp_path / "own"), "--no-audit"]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    output, notes = capsys.readouterr()
    assert end.value.code in (0, None) and "core24, hashes match" not in output and "cases.csv, row 2" in notes
    counts = {line.split(": ")[0]: int(line.split()[1]) for line in output.splitlines()}
    assert sum(counts.values()) == len(scenarios) - 1 and list((tmp_path / "sides").glob("*/split.csv"))
