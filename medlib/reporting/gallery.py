"""``reports/``: the executed notebooks of a full run, clean and small, to be read on GitHub.

Those of a run on labelled images of one's own go into ``reports/<name of the data set>/`` and show none of its
images: of all figures only those of cells tagged ``chart`` stay.

GitHub drops styles and scripts from a notebook's HTML, so tables carry their alignment as attributes.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from PIL import Image

from medlib.config import ROOT, STANDIN_NOTICE, ConfigError, RunConfig, files, path, runs
from medlib.data import own
from medlib.evaluation import measured
from medlib.evaluation.results import Results
from medlib.reporting import pages
from medlib.reporting.execute import NOTEBOOKS, tags

REPORTS = ROOT / "reports"
METRICS = "metrics.json"
PREDICTIONS = "predictions.parquet"
#: Columns of predictions: what a model wrote, and what no two runs share.
LEFT_OUT = ["generated", "seconds", "prompt_tokens", "completion_tokens", "usd", "left_out"]
#: Columns that name cases, and with images of one's own their files and patients.
NAMING = ["id", "cell", "pair", "source"]
RECOMPUTE = """`{file}` has every prediction, from which each figure can be computed anew:

```python
from pathlib import Path
from medlib.evaluation.results import Results
results = Results.read(Path("{file}"))
results.score("medgemma-lora", "heldout")["accuracy"]
```"""
#: Bytes of the folder; git keeps every version of it.
MAX_BYTES = 6_000_000
#: (share of the width, quality of JPEG), tried in this order until the folder is small enough.
FIGURE_SIZES = ((0.91, 85), (0.8, 75), (0.65, 65))
COLOURS = 64  # of a figure kept as PNG
KEPT_ATTRIBUTES = {"align", "alt", "colspan", "href", "rowspan", "scope", "src"}
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])(?:/(?:home|root|Users|tmp|work|mnt|content|private|var)/|[A-Z]:\\\\)\w")


def update(run_dir: str | Path, reports: Path = REPORTS) -> Path:
    """Write the executed notebooks and metrics of a run to ``reports/``, with an index; older ones are replaced.

    With them goes every prediction, from which the figures can be computed anew. A run on a data set of one's own
    goes into a folder of that name inside, where numbers take the place of the names of cases and patients.

    Returns
    -------
    Path
        The index, such as ``reports/README.md``.

    Raises
    ------
    ConfigError
        If the run is not complete, shows images or ratings that must not be published, or does not
        fit into `MAX_BYTES`.
    """
    run_dir, reports = path(run_dir), Path(reports)
    measured.check(run_dir, files.read_json(run_dir / "metrics.json"))
    record = files.read_json(run_dir / "run.json")
    # as they were given: the record has a hash in place of a folder
    config = runs.recorded(run_dir.resolve()) or RunConfig()
    _refuse_private(config)
    data_dir = config.data_dir
    reports = reports / Path(data_dir).name if data_dir else reports
    expected = sorted(file.name for file in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    missing = [name for name in expected if not (run_dir / "notebooks" / name).is_file()]
    if missing:
        raise ConfigError(
            f"{run_dir.name}: not executed: {', '.join(missing)}; run `python -m medlib report` first"
        )
    names = _names(config)
    metrics = _named((run_dir / METRICS).read_text(encoding="utf-8"), names)
    others = {METRICS: metrics.encode(), PREDICTIONS: predictions(run_dir, named=not data_dir)}
    for share, quality in FIGURE_SIZES:
        notebooks = {
            name: cleaned(run_dir / "notebooks" / name, share, quality, bool(data_dir), names) for name in expected
        }
        texts = {name: nbformat.writes(notebook) + "\n" for name, notebook in notebooks.items()}
        texts["README.md"] = _index(notebooks, record, config)
        contents = {name: text.encode() for name, text in texts.items()} | others
        if (size := sum(map(len, contents.values()))) <= MAX_BYTES:
            break
    else:
        raise ConfigError(
            f"reports: {size / 1e6:.1f} MB at the smallest figures, more than {MAX_BYTES / 1e6:.0f} MB"
        )
    for name, content in contents.items():
        files.write_bytes(reports / name, content)
    for old in reports.glob("*.ipynb"):
        if old.name not in contents:
            old.unlink()
    return reports / "README.md"


def predictions(run_dir: Path, named: bool = True) -> bytes:
    """Every prediction of a run as a Parquet file, without what the models wrote; cases by name or by number."""
    table = Results.read(run_dir / "predictions.jsonl").table
    if not named:
        unnamed = {name: _numbered(table[name], name) for name in NAMING if name in table}
        table = table.assign(**unnamed)
    return table.drop(columns=LEFT_OUT, errors="ignore").to_parquet(index=False, compression="zstd")


def _numbered(column: pd.Series, name: str) -> pd.Series:
    """Values as ``id 0``, ``id 1`` in the order in which they first appear; what is missing stays so."""
    codes, _ = pd.factorize(column)
    return pd.Series([None if code < 0 else f"{name} {code}" for code in codes], index=column.index)


def _refuse_private(config: RunConfig) -> None:
    if config.images_dir:
        raise ConfigError("reports: this run shows images of images_dir, which must not be published")
    if config.data_dir and own.read(path(config.data_dir), strict=False).kind == "cases":
        raise ConfigError("reports: this run shows notes of data_dir, which must not be published")
    if config.ratings:
        raise ConfigError("reports: this run shows clinicians' ratings, whose comments may hold patient data")


# ---- cleaning ------------------------------------------------------------------------------------


def _names(config: RunConfig) -> dict[str, str]:
    """The last part of every folder outside the repository that the run was told, by the whole."""
    places = (config.data_dir, config.model, config.biomedclip)
    return {place: Path(place).name for place in places if place and Path(place).is_absolute()}


def _named(text: str, names: Mapping[str, str]) -> str:
    """A text with the last parts of folders in place of the whole."""
    for place, shown in names.items():
        text = text.replace(place, shown)
    return text


def cleaned(
    file: str | Path,
    share: float = 1.0,
    quality: int = 85,
    charts_only: bool = False,
    names: Mapping[str, str] = MappingProxyType({}),
):
    """An executed notebook without noise, machine paths and styles, its figures made smaller.

    Parameters
    ----------
    share : float
        Of the width and height of a figure.
    quality : int
        Of a figure that is smaller as JPEG.
    charts_only : bool
        Leave out every figure and picture of a cell that is not tagged ``chart``.
    names : mapping
        What is written in place of a path, by path.
    """
    notebook = nbformat.reads(_named(Path(file).read_text(encoding="utf-8"), names), as_version=4)
    notebook.metadata = {
        key: value for key, value in notebook.metadata.items() if key in ("kernelspec", "language_info")
    }
    for cell in notebook.cells:
        cell.metadata = {"tags": tags(cell)} if tags(cell) else {}
        cell.source = _without_root(cell.source)
        if cell.cell_type == "code":
            outputs = [output for output in cell.outputs if not pages.is_noise(output)]
            if charts_only and "chart" not in tags(cell):
                outputs = [_without_pictures(output) for output in outputs]
            cell.outputs = [_clean_output(output, share, quality) for output in outputs]
    return notebook


def _without_pictures(output):
    """The output as text: no picture, none inside HTML either."""
    data = output.get("data", {})
    if any(kind.startswith("image/") for kind in data) or "<img" in data.get("text/html", ""):
        return nbformat.v4.new_output("stream", name="stdout", text="(a picture, which may not be published)\n")
    return output


def _clean_output(output, share: float, quality: int):
    output.metadata = {} if "metadata" in output else output.get("metadata")
    if output.output_type == "stream":
        output.text = _without_root(output.text)
        return nbformat.v4.new_output("stream", name=output.name, text=output.text)
    data = output.get("data", {})
    for kind, content in list(data.items()):
        if kind == "image/png":
            kind_now, data_now = _smaller(content, share, quality)
            del data[kind]
            data[kind_now] = data_now
        elif kind == "text/html":
            data[kind] = plain_html(_without_root(content))
        elif kind == "text/plain":
            data[kind] = re.sub(r" at 0x[0-9a-f]+", "", _without_root(content))
    return output


def _without_root(text: str) -> str:
    return text.replace(f"{ROOT}/", "").replace(str(ROOT), ".")


def plain_html(html: str) -> str:
    """HTML without styles, classes and ids; the columns that a style sets to the right stay there."""
    soup = BeautifulSoup(html, "html.parser")
    right = set()
    for style in soup("style"):
        for selector, rules in re.findall(r"([^{}]+)\{([^}]*)\}", style.get_text()):
            if re.search(r"text-align:\s*right", rules):
                right |= set(re.findall(r"\.(col\d+)", selector))
        style.decompose()
    for element in soup(["script", "link"]):
        element.decompose()
    for element in soup.find_all(True):
        to_right = element.name in ("td", "th") and right & set(element.get("class", []))
        element.attrs = {name: value for name, value in element.attrs.items() if name in KEPT_ATTRIBUTES}
        if element.name in ("td", "th"):
            element["align"] = "right" if to_right else "left"
    return str(soup).strip()


def _smaller(png: str, share: float, quality: int) -> tuple[str, str]:
    """(type, base64) of a figure: PNG of few colours, or JPEG where that is smaller, as for images."""
    image = Image.open(io.BytesIO(base64.b64decode(png)), formats=["PNG"]).convert("RGB")
    image = image.resize([round(side * share) for side in image.size], Image.Resampling.LANCZOS)
    drawn, photo = io.BytesIO(), io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(drawn, "PNG", optimize=True)
    image.save(photo, "JPEG", quality=quality, optimize=True)
    kind, best = min({"image/png": drawn, "image/jpeg": photo}.items(), key=lambda item: len(item[1].getvalue()))
    return kind, base64.b64encode(best.getvalue()).decode()


def _index(notebooks: dict, record: dict, config: RunConfig) -> str:
    """``README.md`` of the folder: a line for each notebook, and what the run was."""
    rows = [
        f"| [{Path(name).stem}]({name}) | {pages.introduction(notebook, Path(name).stem)[0]} |"
        for name, notebook in notebooks.items()
    ]
    data_dir, model = config.data_dir, _names(config).get(config.model, config.model)
    images = (
        f"The images are those of `{Path(data_dir).name}`, which may not be shown here, so pictures are left out. "
        "Charts, tables and sentences are complete."
        if data_dir
        else "All images are drawn by a program."
    )
    writer = "medlib report --data DIR --update-reports" if data_dir else "make report-full"
    standin = [f"> **{STANDIN_NOTICE}**", ""] if pages.is_stand_in(record) else []
    made = (
        f"Model `{model}`, seed {config.seed}, "
        f"revision `{str((record.get('git') or {}).get('revision'))[:10]}`, {str(record.get('timestamp'))[:10]}."
    )
    return "\n".join(
        [
            "# Executed notebooks of the last full run",
            "",
            f"`{writer}` writes this folder; nobody edits it by hand. The notebooks in `notebooks/` hold "
            "only the outputs of a small test run that are equal on every machine, which the tests compare.",
            "",
            *standin,
            f"{pages.NOT_A_DEVICE} {images}",
            "",
            "| Notebook | Question |",
            "|---|---|",
            *rows,
            "",
            made,
            "",
            RECOMPUTE.format(file=f"reports/{f'{Path(data_dir).name}/' if data_dir else ''}{PREDICTIONS}"),
            "",
        ]
    )


# ---- check ---------------------------------------------------------------------------------------


def problems(reports: Path = REPORTS, notebooks: Path = NOTEBOOKS) -> list[str]:
    """Why ``reports/`` does not belong to the committed notebooks, one sentence each; empty if it does."""
    reports, again = Path(reports), "; run `make report-full` again"
    committed = {file.name: file for file in sorted(Path(notebooks).glob("[0-9][0-9]_*.ipynb"))}
    executed = {file.name: nbformat.read(file, as_version=4) for file in sorted(reports.glob("*.ipynb"))}
    issues = [f"{name}: not in {reports.name}/{again}" for name in committed if name not in executed]
    issues += [f"{name}: no such notebook any more{again}" for name in executed if name not in committed]
    for name in executed.keys() & committed.keys():
        if _cells(executed[name]) != _cells(nbformat.read(committed[name], as_version=4)):
            issues.append(f"{name}: its cells are not those of the committed notebook{again}")
    return issues + unpublishable(reports)


def unpublishable(reports: Path) -> list[str]:
    """What must not stand in a folder of executed notebooks, one sentence each.

    A folder of images of one's own, which not everybody can make again, states its revision; it is checked for no
    more than this.
    """
    issues = []
    for file in sorted(reports.glob("*.ipynb")):
        issues += [f"{file.name}: {what}" for what in _unclean(nbformat.read(file, as_version=4))]
    metrics = reports / METRICS
    if metrics.is_file() and (found := ABSOLUTE_PATH.search(metrics.read_text(encoding="utf-8"))):
        issues.append(f"{METRICS}: a path of some machine: {found.group()}…")
    size = sum(file.stat().st_size for file in reports.iterdir())
    if size > MAX_BYTES:
        issues.append(f"{reports.name}: {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB")
    return issues


def _cells(notebook) -> list[tuple]:
    own = (cell for cell in notebook.cells if "injected-parameters" not in tags(cell))
    return [(cell.id, cell.cell_type, cell.source) for cell in own]


def _unclean(report) -> list[str]:
    outputs = [output for cell in report.cells if cell.cell_type == "code" for output in cell.outputs]
    issues = []
    if any(output.output_type == "error" for output in outputs):
        issues.append("a cell failed")
    if any(pages.is_noise(output) for output in outputs):
        issues.append("warnings or progress bars in the outputs")
    texts = [cell.source for cell in report.cells] + [text for output in outputs for text in _texts(output)]
    if found := [m.group() for text in texts if (m := ABSOLUTE_PATH.search(text))]:
        issues.append(f"a path of some machine: {found[0]}…")
    return issues


def _texts(output) -> list[str]:
    data = output.get("data", {})
    return [output.get("text", ""), *(str(data[kind]) for kind in data if not kind.startswith("image/"))]
