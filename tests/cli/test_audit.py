"""The command `audit`, as a user meets it."""

import json

import pytest
from PIL import Image

from medlib.cli import main as cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command; (exit status or message, what it printed, what it said on stderr)."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["medlib", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return stopped.value.code or 0, said.out, said.err

    return call


@pytest.fixture
def of_run(small_config, random_adapter):
    """Options that name a run with an adapter."""
    from medlib.config import runs

    config = small_config.model_copy(update={"calibration_pairs": 12, "contradiction_pairs": 12})
    runs.record(config)
    return ["--run-dir", config.run_dir, "--adapter", str(random_adapter)]


@pytest.fixture
def question(suite):
    case = suite[0][0]
    image = suite[1] / case.image
    return [
        "--image",
        image,
        "--finding",
        case.finding,
        "--treatment",
        case.treatment,
        "--modality",
        case.modality,
    ]


def test_one_case(run, of_run, question, tmp_path):
    figure = tmp_path / "answer.png"
    status, out, err = run("audit", *question, "--age", "62", *of_run, "--figure", figure)
    assert status == 0 and out.split(":")[0] in ("PASS", "QUERY", "ABSTAIN")
    assert "Without the image the verdict" in out and "not a medical device" in out and "once" in err
    assert "Warning" not in err
    with Image.open(figure) as image:
        assert image.width > 700
    status, out, err = run("audit", *question, "--age", "62", *of_run, "--json", "--exit-code")
    answer = json.loads(out)
    assert status == {"pass": 0, "query": 1, "abstain": 3}[answer["decision"]] and "once" not in err
    assert answer["case"]["patient"]["age"] == 62 and len(answer["nearest"]) == 3


def test_errors_are_no_query(run, of_run, question):
    assert run("audit", *question, "--age", "old", *of_run, "--exit-code")[0] == 2
    message, _, _ = run("audit", *question, "--age", "old", *of_run)
    assert message == "error: age: 'old' is no age"


def test_a_run_without_an_adapter_says_what_to_do(run, small_config, question):
    message, _, _ = run("audit", *question, "--run-dir", small_config.run_dir)
    assert "medlib report" in message and "--adapter" in message and "\n" not in message


def test_a_worklist(run, of_run, worklist, tmp_path):
    file, images = worklist
    out = tmp_path / "audited"
    options = ["--cases", file, "--images", images, "--out", out, *of_run]
    status, said, _ = run("audit", *options, "--maps", "1")
    assert status == 0 and "asked now: 24" in said and (out / "index.html").is_file()
    assert len(list((out / "maps").glob("*.png"))) == 1
    with file.open("a") as more:
        more.write("\nx;absent.png;a mass;biopsy;40;f;xray")
    status, said, _ = run("audit", *options)
    assert status == 1 and "asked now" not in said
    assert "not answered: list.csv, row 26: field 'file': image 'absent.png' not found" in said


@pytest.mark.parametrize("more", [["--json"], ["--exit-code"], ["--figure", "a.png"], ["--frame", "0"]])
def test_what_only_one_case_has_is_refused_of_a_worklist(run, of_run, worklist, more):
    message, _, _ = run("audit", "--cases", worklist[0], *of_run, *more)
    assert f"{more[0]}: of one case; leave it out with --cases" in message


@pytest.mark.parametrize("more", [[], ["--exit-code"]])
def test_a_figure_that_cannot_be_written_is_one_message_and_no_query(run, of_run, question, tmp_path, more):
    (tmp_path / "a-file").touch()
    status, _, err = run("audit", *question, *of_run, "--figure", tmp_path / "a-file" / "a.png", *more)
    assert status == 2 if more else "a-file" in status and "\n" not in status
    assert not more or "error: " in err and "Traceback" not in err


def test_words_that_no_terminal_can_show(run, of_run, question):
    question[3] = "mass \x1b[2J"
    for more in ([], ["--json"]):
        status, out, _ = run("audit", *question, *of_run, *more)
        assert status == 0 and "\x1b" not in out
    question[3] = "mass \udcff"  # what a byte that is no UTF-8 becomes
    assert run("audit", *question, *of_run)[0].startswith("error: finding: ")
